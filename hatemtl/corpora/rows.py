"""Holds the rows of a file, each with the place that an error names, reads what their cells say, and makes posts of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hatemtl.corpora.base import Column, Posts, Split
from hatemtl.corpora.splitting import divide, keys
from hatemtl.errors import UserError, did_you_mean
from hatemtl.labels import LabelSpace

NOTHING = (None, "", "NA", "nan", "NaN")  # how files write that a number or a flag was not given
LONGEST = 1_000_000  # characters of a field: beyond it a quote was never closed, or it is no file of posts
YES, NO = (1, "1", "1.0", "True", "TRUE", "true"), (0, "0", "0.0", "False", "FALSE", "false")


@dataclass(frozen=True)
class Rows:
    """The rows of one file: `columns[name][i]` is a string, or whatever JSON or Parquet hold; None where there is none.

    lines[i]: the line that row i starts at, counted from 1. again: the way out of a broken file, which ends its errors.
    unit: what `lines` count, if not lines. arrow: the Arrow table that they are of, where all of one was read.

    What reads a column raises UserError about its first cell that does not say what is expected.
    """

    path: Path
    columns: Mapping[str, list[Any]]
    lines: Sequence[int]
    again: str
    unit: str = "line"
    arrow: Any = None

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, name: str) -> list[Any]:
        """Gives a column. Raises UserError where there is none of this name."""
        if name not in self.columns:
            raise UserError(f"{self.path} has no column {name!r}: {did_you_mean(name, self.columns)}; {self.again}")
        return self.columns[name]

    def at(self, rows: Sequence[int]) -> "Rows":
        """Takes the rows at these positions, in that order."""
        columns = {name: [column[i] for i in rows] for name, column in self.columns.items()}
        return replace(self, columns=columns, lines=[self.lines[i] for i in rows], arrow=None)

    def where(self, i: int, column: str | None = None) -> str:
        """Names row i as an error does."""
        return f"{self.path}, {self.unit} {self.lines[i]}" + (f", column {column!r}" if column else "")

    def wrong(self, i: int, column: str, expected: str) -> UserError:
        """Makes the error about one cell."""
        return UserError(f"{self.where(i, column)}: {shown(self.columns[column][i])}, expected {expected}; {self.again}")

    def texts(self, name: str) -> list[str]:
        """Reads a column of texts, none empty, without space around."""
        for i, value in enumerate(self[name]):
            if not isinstance(value, str) or not value.strip():
                raise self.wrong(i, name, "a text")
        return [value.strip() for value in self[name]]

    def posts(self, name: str) -> list[str]:
        """Reads a column of texts as posts: space collapsed, half an emoji made "?"."""
        posts = [as_post(text) for text in self.texts(name)]
        for i, post in enumerate(posts):
            if len(post) > LONGEST:
                raise self.wrong(i, name, f"a post of at most {LONGEST:,} characters, found {len(post):,}")
        return posts

    def array(self, name: str, low: float = -np.inf, high: float = np.inf, *, gaps: bool = False) -> np.ndarray:
        """Reads a column of numbers between low and high, (N,) float64; with `gaps`, NaN where the file gives none."""
        between = f" from {low} to {high}" if np.isfinite([low, high]).all() else ""
        number = (lambda value: np.nan if value in NOTHING else float(value)) if gaps else float
        numbers = np.array(self._each(name, number, f"a number{between}"), np.float64)
        fits = (np.isfinite(numbers) & (low <= numbers) & (numbers <= high)) | (gaps & np.isnan(numbers))
        if not fits.all():
            raise self.wrong(int(np.argmin(fits)), name, f"a number{between}")
        return numbers

    def flags(self, name: str, *, gaps: bool = False) -> np.ndarray:
        """Reads a column of yes and no as (N,) float64 of 0 and 1; with `gaps`, NaN where the file gives neither."""
        meant = dict.fromkeys(YES, 1.0) | dict.fromkeys(NO, 0.0) | dict.fromkeys(NOTHING if gaps else (), np.nan)
        return np.array(self._each(name, meant.__getitem__, "true or false, or 1 or 0"), np.float64)

    def positions(
        self, name: str, known: Mapping[str, int] | Sequence[str], meant: Callable[[str], str] = str.strip
    ) -> list[int]:
        """Reads a column of names as the numbers, or the places, that they have. meant: makes a cell a known name."""
        places = known if isinstance(known, Mapping) else {name: i for i, name in enumerate(known)}
        return self._each(name, lambda value: places[meant(str(value))], f"one of {', '.join(known)}")

    def _each(self, name: str, read: Callable[[Any], Any], expected: str) -> list[Any]:
        found: list[Any] = []
        try:
            found.extend(map(read, self[name]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise self.wrong(len(found), name, expected) from None
        return found


class Section(NamedTuple):
    """The posts of one file. name: comes before a post's place in its file, counted from 0, in the post's id.

    texts: the columns of the text and, where there are any, of its second texts.
    values: each post's label's position, or its number; None where it has none.
    """

    name: str
    split: Split
    rows: Rows
    texts: Sequence[str]
    values: Sequence[float | None] | np.ndarray


def gather(sections: Sequence[Section], space: LabelSpace, *, validation: float | None = None, seed: int = 0) -> Posts:
    """Gathers the posts of several files, whose texts, pairs or choices have one annotation, under the one column `label`.

    validation: the share of the labelled training posts that validates, where a corpus has no official validation posts.
        It is drawn by seed as the labels are distributed; posts that share a text stay together.
    """
    texts = [text for section in sections for text in section.rows.texts(section.texts[0])]
    second = [zip(*map(section.rows.texts, section.texts[1:]), strict=True) for section in sections]
    pairs = [pair for of_section in second for pair in of_section] or None
    values = [value for section in sections for value in section.values]
    label = Column.of(space.kind, space.names, [value or 0 for value in values], np.array([v is not None for v in values]))
    splits = np.array([section.split for section in sections for _ in section.values])
    if validation is not None:
        train = np.flatnonzero(splits == "train")
        mine = keys([texts[i] for i in train], None if pairs is None else [pairs[i] for i in train])
        given = [key for key, labelled in zip(mine, label.has[train], strict=True) if labelled]
        strata = label.values[train][label.has[train]].round().astype(np.int64)
        drawn = divide(given, (1 - validation, validation, 0), seed, strata)
        validating = {key for key, split in zip(given, drawn, strict=True) if split == "val"}
        splits[train] = ["val" if key in validating else "train" for key in mine]
    ids = [f"{section.name}-{i}" for section in sections for i in range(len(section.values))]
    return Posts(ids, texts, splits, {"label": label}, pairs)


def codes(names: Sequence[str]) -> Mapping[str, int]:
    """Gives the labels' places, by name and by the place itself: official files have the one, the hub the other."""
    return {name: i for i, name in enumerate(names)} | {str(i): i for i in range(len(names))}


def whole(rows: Rows, columns: Sequence[str]) -> Rows:
    """Keeps the rows with a text in each of these columns."""
    return rows.at([i for i in range(len(rows)) if all(str(rows[name][i] or "").strip() for name in columns)])


def ids(own: Sequence[Any], posts: int, corpus: str) -> list[str]:
    """Gives the posts' own ids, if all have one and no two the same; else the corpus' name and a post's place."""
    given = [str(one) for one in own]
    return given if len(set(given)) == posts else [f"{corpus}_{i}" for i in range(posts)]


def as_post(text: str) -> str:
    """The text with its space collapsed and half an emoji made "?"."""
    return sound(" ".join(text.split()))


def sound(value: Any) -> Any:
    """Gives the value; if a text, without halves of emojis, which are no text that could be written."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def shown(value: object) -> str:
    """Shows a value as an error quotes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
