"""What a corpus gives: posts, their splits and what annotators said of them."""

import hashlib
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import numpy as np

from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Column:
    """One kind of annotation over the N posts of a corpus.

    values: multiclass (N,) int64, the label's position; multilabel (N, C) float32 in [0, 1]; tokens (N,) of objects, each
        a float32 array in [0, 1] with one value a word of the post (`text.split(" ")`).
    has: (N,) bool, whether the post is annotated at all; where not, the value is a placeholder.
    """

    space: LabelSpace
    values: np.ndarray
    has: np.ndarray


@dataclass(frozen=True)
class Posts:
    """The N posts of a corpus. `texts[i].split(" ")` are the words of post i; `splits[i]` is train, val or test."""

    ids: list[str]
    texts: list[str]
    splits: np.ndarray
    columns: dict[str, Column]

    def __post_init__(self) -> None:
        sizes = {len(self.ids), len(self.texts), len(self.splits)}
        sizes |= {n for column in self.columns.values() for n in (len(column.values), len(column.has))}
        if len(sizes) != 1:
            raise ValueError(f"ids, texts, splits and columns differ in length: {sorted(sizes)}")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("post ids must be distinct")

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, rows: np.ndarray) -> "Posts":
        """The posts at these positions, in that order."""
        columns = {k: replace(c, values=c.values[rows], has=c.has[rows]) for k, c in self.columns.items()}
        return Posts([self.ids[i] for i in rows], [self.texts[i] for i in rows], self.splits[rows], columns)

    def limited(self, limit: int | None) -> "Posts":
        """The first `limit` posts of each split; all of them if None."""
        if limit is None:
            return self
        if limit < 1:
            raise UserError(f"limit={limit}: expected at least one post a split, or null for all")
        return self.at(np.sort(np.concatenate([np.flatnonzero(self.splits == split)[:limit] for split in SPLITS])))

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any text, split or annotation."""
        digest = hashlib.sha256("\x1e".join([*self.ids, *self.texts, *self.splits.tolist()]).encode())
        for name, column in sorted(self.columns.items()):
            values = np.concatenate(column.values) if column.values.dtype == object else column.values
            digest.update("\x1f".join([name, column.space.kind, *column.space.names]).encode())
            digest.update(values.tobytes() + column.has.tobytes())
        return digest.hexdigest()[:16]


class Corpus(Protocol):
    """A corpus as configured. Equal ones are loaded once, so implementations are frozen dataclasses."""

    def load(self) -> Posts:
        """Reads the corpus. Raises UserError with the file and the way out where it cannot."""
        ...
