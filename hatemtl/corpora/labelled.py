"""Puts the files of a corpus together whose texts, pairs or choices have one annotation a post."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hatemtl.corpora.base import Column, Posts, Split
from hatemtl.corpora.rows import Rows
from hatemtl.corpora.splitting import divide, keys
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace


@dataclass(frozen=True)
class Part:
    """The posts of one file.

    name: comes before a post's place in its file, counted from 0, in the post's id.
    pairs: as in `Posts`. values: each post's label's position, or its number; None where it has none.
    """

    name: str
    split: Split
    texts: list[str]
    values: Sequence[float | None]
    pairs: list[tuple[str, ...]] | None = None


def gather(parts: Sequence[Part], space: LabelSpace, *, validation: float | None = None, seed: int = 0) -> Posts:
    """Gathers the posts of several files under the one column `label`.

    validation: the share of the labelled training posts that validates, where a corpus has no official validation posts.
        It is drawn by seed as the labels are distributed; posts that share a text stay together.
    """
    texts = [text for part in parts for text in part.texts]
    pairs = [pair for part in parts for pair in part.pairs or ()] if parts[0].pairs is not None else None
    values = [value for part in parts for value in part.values]
    labels = np.array([0 if v is None else v for v in values], np.float32 if space.kind == "score" else np.int64)
    has = np.array([value is not None for value in values], bool)
    splits = np.array([part.split for part in parts for _ in part.texts])
    if validation is not None:
        train = np.flatnonzero(splits == "train")
        mine = keys([texts[i] for i in train], None if pairs is None else [pairs[i] for i in train])
        given = [key for key, labelled in zip(mine, has[train], strict=True) if labelled]
        strata = labels[train][has[train]].round().astype(np.int64)
        drawn = divide(given, (1 - validation, validation, 0), seed, strata)
        validating = {key for key, split in zip(given, drawn, strict=True) if split == "val"}
        splits[train] = ["val" if key in validating else "train" for key in mine]
    ids = [f"{part.name}-{i}" for part in parts for i in range(len(part.texts))]
    return Posts(ids, texts, splits, {"label": Column(space, labels, has)}, pairs)


def paired(rows: Rows, first: str, second: str) -> tuple[list[str], list[tuple[str, ...]]]:
    """Pairs the texts of two columns, as `Posts` has them."""
    return rows.texts(first), [(text,) for text in rows.texts(second)]


def whole(rows: Rows, columns: Sequence[str]) -> Rows:
    """Keeps the rows with a text in each of these columns."""
    full = [i for i in range(len(rows)) if all(str(rows[name][i] or "").strip() for name in columns)]
    return rows.at(full)


def complete(folder: Path, files: Sequence[str], again: str) -> bool:
    """Tells whether the official files are there; False where none is.

    again: where a missing one comes from. Raises UserError where some are there and some are not.
    """
    missing = [name for name in files if not (folder / name).is_file()]
    if missing and len(missing) < len(files):
        raise UserError(f"{folder} has no {' and no '.join(missing)}, but needs {', '.join(files)}; {again}")
    return not missing


def check_validation(share: float) -> None:
    """Raises UserError unless it is a share of the training posts that leaves some."""
    if not 0 < share < 1:
        raise UserError(f"validation={share}: expected the share of the training posts that validates, between 0 and 1")
