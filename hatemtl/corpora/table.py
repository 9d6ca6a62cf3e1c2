"""Reads the user's own table: posts in a CSV, TSV, JSON-lines or Parquet file, in a folder of them, or on the hub.

    uv run main.py tasks=[table] tasks.table.corpus.path=posts.csv tasks.table.column=label

What the column annotates is the head's matter: `head@tasks.table.head=score` reads the same cells as numbers, and
`cells.as_column` says how each kind is read. CONTRIBUTING.md shows a task with a name of its own.

A file of SQuAD's layout (.json, or a table with its columns) is a table of questions: corpus=squad names its columns.

To test a saved run on another table, give that one's `path`, and `fractions=[0,0,1]` where all of it is for the test.

A byte order mark, CRLF and empty lines are passed over; space in a text is collapsed; half an emoji becomes "?".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hatemtl.corpora.base import CALLED, Corpus, Posts, Raw, Split
from hatemtl.corpora.cells import is_given
from hatemtl.corpora.files import SUFFIXES, Hub, read_table
from hatemtl.corpora.rows import Rows, shown, sound
from hatemtl.corpora.splitting import divide, keys
from hatemtl.errors import UserError, did_you_mean
from hatemtl.labels import name_of

KEYS = "tasks.TASK.corpus."


@dataclass(frozen=True, kw_only=True)
class Table(Corpus):
    """A user's posts, one a row. Every column but those named here may be a task's.

    conf/corpus/table.yaml says what each key does. Where train and test alone are given, val is drawn from train, in the
    proportion of the fractions. No two splits share a group, whether drawn or given, nor drawn ones a text; but where second
    texts are the groups, first ones may be alike.
    """

    path: str | None
    config: str = "default"
    text: str = "text"
    pair: str | Sequence[str] | None = None
    id: str | None = None
    split: str | None = None
    fractions: Sequence[float] = (0.8, 0.1, 0.1)
    group_by: str | None = None
    stratify_by: str | None = None
    separator: str = ";"
    delimiter: str | None = None
    encoding: str = "utf-8-sig"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            own = "with experiment=own corpus.path=posts.csv"
            raise UserError(f"corpus=table needs a file of posts; {_type('path', 'posts.csv')}, {own}")
        if not self.separator:
            raise UserError(f"separator={self.separator!r}: expected what stands between the labels of a cell, such as ;")

    def read(self) -> Posts:
        parts = [(split, self._checked(rows)) for split, rows in self._parts()]
        if self.split is not None and parts[0][0] is not None:
            raise UserError(f"split={self.split}: {self.path} has a file for each split; {_type('split', 'null')}")
        texts = [text for _, rows in parts for text in rows.posts(self.text)]
        pairs = [pair for _, rows in parts for pair in zip(*map(rows.posts, self._pairs), strict=True)] or None
        named = dict.fromkeys(name for _, rows in parts for name in rows.columns)
        cells = {n: [v for _, rows in parts for v in rows.columns.get(n, [None] * len(rows))] for n in named}
        strata = cells[self.stratify_by] if self.stratify_by is not None else [""] * len(texts)
        own = {self.text, self.id, self.split, *self._pairs}
        raw = Raw(
            source=str(self.path),
            cells={name: [sound(value) for value in column] for name, column in cells.items() if name not in own},
            places=[rows.where(i) for _, rows in parts for i in range(len(rows))],
            pairs=self._pairs,
            separator=self.separator,
            strata=np.unique([*map(name_of, strata)], return_inverse=True)[1],
            seconds=[*zip(*(cells[name] for name in self._pairs), strict=True)] or None,
        )
        splits = self._splits([split for split, rows in parts for _ in rows.lines], cells, texts, raw)
        return Posts(self._ids(parts, cells, raw.places), texts, splits, {}, pairs, raw)

    @property
    def _pairs(self) -> tuple[str, ...]:
        return (self.pair,) if isinstance(self.pair, str) else tuple(self.pair or ())

    def _parts(self) -> Iterator[tuple[Split | None, Rows]]:
        """The files, each with the split that its name says, if any does."""
        path, read = Path(str(self.path)).expanduser(), partial(read_table, delimiter=self.delimiter, encoding=self.encoding)
        if path.is_file():
            yield None, read(path, keys=KEYS)
        elif path.is_dir():
            all_files = sorted(file for file in path.iterdir() if file.stem in CALLED)
            files = {CALLED[file.stem]: file for file in all_files}
            if not files or len(files) < len(all_files):
                found = ", ".join(file.name for file in all_files) or "none"
                raise UserError(f"path={path}: expected one file for each split, such as train.csv; found {found}")
            for split, file in files.items():
                yield (None if list(files) == ["train"] else split), read(file, keys=KEYS)
        elif path.suffix in SUFFIXES or len(str(self.path).split("/")) != 2:
            near = did_you_mean(path.name, sorted(file.name for file in path.parent.glob("*.*")))
            raise UserError(f"path={self.path}: no such file; {near}")
        else:
            here = f"and {self.path} is no file here; {_type('path', 'posts.csv')}"
            found_there = dict(Hub(str(self.path), self.config).splits([*CALLED], here, some=True))
            for name, rows in found_there.items():
                yield (None if [*found_there] == ["train"] else CALLED[name]), rows

    def _checked(self, rows: Rows) -> Rows:
        """The same rows, whose errors say how to name other columns, once it is sure that they have those named."""
        for key in ("text", "pair", "id", "split", "group_by", "stratify_by"):
            value = getattr(self, key)
            for name in [value] if isinstance(value, str) else value or ():
                replace(rows, again=_type(key, "COLUMN"))[name]
        return replace(rows, again="mend the cell, or leave the row out")

    def _splits(self, given: Sequence[Split | None], cells: dict[str, list[Any]], texts: list[str], raw: Raw) -> np.ndarray:
        if self.split is not None:
            said = [name.lower() for name in _names(cells[self.split])]
            for name, place in zip(said, raw.places, strict=True):
                if name not in CALLED:
                    where = f"{place}, column {self.split!r}"
                    raise UserError(f"{where}: {name or 'empty'}, expected train, val or test; mend the cell")
            given = [CALLED[name] for name in said]
        groups = [""] * len(texts) if self.group_by is None else _names(cells[self.group_by])
        if self.group_by in self._pairs:  # as texts with questions about them, of which the same may be asked of many
            together = keys(groups)
        else:
            together = keys(texts, [[f"\0{group}"] if group else [] for group in groups])
        splits = np.array([split or "" for split in given], "<U5")
        if given[0] is None:
            return divide(together, self.fractions, self.seed, raw.strata)
        if set(given) == {"train", "test"} and self.fractions[1]:
            train, (kept, drawn, _) = np.flatnonzero(splits == "train"), self.fractions
            shares = (kept / (kept + drawn), drawn / (kept + drawn), 0)
            splits[train] = divide([together[i] for i in train], shares, self.seed, raw.strata[train])
        first: dict[str, int] = {}
        for i, group in enumerate(groups):
            before = first.setdefault(group, i)
            if group and splits[before] != splits[i]:
                raise UserError(
                    f"{raw.places[i]}, column {self.group_by!r}: {shown(group)} stands in {splits[i]}, but in "
                    f"{splits[before]} at {raw.places[before]}; mend the splits, or {_type('group_by', 'null')} "
                    f"to let splits share it"
                )
        return splits

    def _ids(self, parts: Sequence[tuple[Split | None, Rows]], cells: dict[str, list[Any]], places: list[str]) -> list[str]:
        if self.id is None:
            names = [rows.path.name if split is None else split for split, rows in parts]
            return [f"{name}:{line}" for name, (_, rows) in zip(names, parts, strict=True) for line in rows.lines]
        ids = [sound(name) for name in _names(cells[self.id])]
        first: dict[str, int] = {}
        for i, name in enumerate(ids):
            if first.setdefault(name, i) != i or not name:
                where, twice = f"{places[i]}, column {self.id!r}", f"{name!r} stands at {places[first[name]]} already"
                raise UserError(
                    f"{where}: {twice if name else 'empty'}, expected an id of its own; mend it, or {_type('id', 'null')}"
                )
        return ids


def _names(cells: Sequence[Any]) -> list[str]:
    """Names what cells say; "" where they say nothing."""
    return [name_of(value) if is_given(value) else "" for value in cells]


def _type(key: str, value: str) -> str:
    return f"type {KEYS}{key}={value}"
