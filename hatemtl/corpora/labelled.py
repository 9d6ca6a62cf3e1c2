"""Puts the files of a corpus together whose texts, pairs or choices have one annotation a post."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hatemtl.corpora.base import Column, Posts, Split
from hatemtl.corpora.rows import Rows
from hatemtl.corpora.splitting import divide, keys
from hatemtl.labels import LabelSpace


@dataclass(frozen=True)
class Section:
    """The posts of one file.

    name: comes before a post's place in its file, counted from 0, in the post's id.
    texts: the columns of the text and, where there are any, of its second texts.
    values: each post's label's position, or its number; None where it has none.
    """

    name: str
    split: Split
    rows: Rows
    texts: Sequence[str]
    values: Sequence[float | None] | np.ndarray


def gather(sections: Sequence[Section], space: LabelSpace, *, validation: float | None = None, seed: int = 0) -> Posts:
    """Gathers the posts of several files under the one column `label`.

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
