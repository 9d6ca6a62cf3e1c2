"""Defines a corpus: posts, their splits and annotations."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np

from hatemtl.corpora.splitting import nested, proportional
from hatemtl.errors import UserError
from hatemtl.labels import Kind, LabelSpace

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
CALLED: dict[str, Split] = {"train": "train", **dict.fromkeys(("val", "validation", "valid", "dev"), "val"), "test": "test"}


@dataclass(frozen=True)
class Column:
    """One kind of annotation over the N posts of a corpus.

    values: multiclass, ordinal (N,) int64, the label's position; choice (N,) int64, the right pair's position; multilabel
        (N, C) float32 in [0, 1]; score (N,) float32; tokens (N,) of objects, each a float32 array in [0, 1] with one value
        a word of the post (`text.split(" ")`); span (N, A, 2) int64, of each right answer its first character in the second
        text and one past its last, -1 where the post has fewer.
    has: (N,) bool, whether the post is annotated at all; where not, the value is a placeholder.
    shares: (N, C) float32, of multiclass and multilabel the share of a post's annotators who gave each label, which the
        values are the majority of; None where the corpus does not tell.
    truth: values of the same shape that judge, of all posts, where a training post's own are others; None where they judge.
    """

    space: LabelSpace
    values: np.ndarray
    has: np.ndarray
    shares: np.ndarray | None = None
    truth: np.ndarray | None = None

    @classmethod
    def of(
        cls, kind: Kind, names: Sequence[str], values: Any, has: np.ndarray | None = None, shares: Any = None
    ) -> "Column":
        """Makes the column of these labels from values and shares of any type. has: None for all posts."""
        dtype = {"multilabel": np.float32, "score": np.float32, "tokens": object}.get(kind, np.int64)
        with np.errstate(over="ignore"):
            values = np.asarray(values, dtype)
        has = np.ones(len(values), bool) if has is None else has
        if kind == "score" and (wrong := np.flatnonzero(has & ~np.isfinite(values))).size:
            raise UserError(f"{names[0]}: post {wrong[0] + 1} carries a number that float32 does not hold; mend it")
        return cls(LabelSpace(kind, tuple(names)), values, has, None if shares is None else np.asarray(shares, np.float32))

    def at(self, rows: np.ndarray) -> "Column":
        """Takes the annotations of the posts at these positions, in that order."""
        shares, truth = (None if of is None else of[rows] for of in (self.shares, self.truth))
        return Column(self.space, self.values[rows], self.has[rows], shares, truth)

    def judging(self, posts: np.ndarray) -> "Column":
        """Gives these posts, (N,) bool, the values that judge, and the others what they train with."""
        if self.truth is None:
            return self
        values = self.values.copy()
        values[posts] = self.truth[posts]
        return replace(self, values=values, truth=None)


@dataclass(frozen=True)
class Raw:
    """The columns of a user's table as the file has them: what one annotates, the head of a task decides.

    source: the file or folder. cells[column][i]: a text, a number, a list, or None. places[i]: where row i stands, as an
    error names it. pairs: the columns that `Posts.pairs` are from. separator: what stands between the labels of one cell.
    strata: (N,) integers, equal where posts count as alike for `thinned` and `limited`. seconds: `Posts.pairs` as the file
    has them, for places in them.
    """

    source: str
    cells: dict[str, list[Any]]
    places: list[str]
    pairs: tuple[str, ...]
    separator: str
    strata: np.ndarray
    seconds: list[tuple[str, ...]] | None = None

    def at(self, rows: np.ndarray) -> "Raw":
        cells = {name: [column[i] for i in rows] for name, column in self.cells.items()}
        seconds = None if self.seconds is None else [self.seconds[i] for i in rows]
        return replace(self, cells=cells, places=[self.places[i] for i in rows], strata=self.strata[rows], seconds=seconds)


@dataclass(frozen=True)
class Posts:
    """The N posts of a corpus. `texts[i].split(" ")` are the words of post i.

    pairs[i]: the second texts that text i is read with: none; one, a sentence pair; several, a post's choices, each read
        with the text in a sequence of its own. None where no post has any.
    raw: the columns of a user's table, beside `columns`, whose kind is known.
    """

    ids: list[str]
    texts: list[str]
    splits: np.ndarray
    columns: dict[str, Column]
    pairs: list[tuple[str, ...]] | None = None
    raw: Raw | None = None

    def __post_init__(self) -> None:
        parts: list[Sized | None] = [self.ids, self.texts, self.splits, self.pairs, self.raw.places if self.raw else None]
        parts += [part for of in self.columns.values() for part in (of.values, of.has, of.shares, of.truth)]
        sizes = {len(part) for part in parts if part is not None}
        if len(sizes) != 1:
            raise ValueError(f"ids, texts, pairs, splits and columns differ in length: {sorted(sizes)}")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("post ids must be distinct")

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, rows: np.ndarray) -> "Posts":
        """Takes the posts at these positions, in that order."""
        columns = {name: column.at(rows) for name, column in self.columns.items()}
        pairs = None if self.pairs is None else [self.pairs[i] for i in rows]
        raw = None if self.raw is None else self.raw.at(rows)
        return Posts([self.ids[i] for i in rows], [self.texts[i] for i in rows], self.splits[rows], columns, pairs, raw)

    def limited(self, limit: int | None, seed: int = 0) -> "Posts":
        """Keeps `limit` posts of each split, all if None: as the labels are distributed, and nested.

        seed: draws those of train; of val and test it keeps the same under every seed, so that runs can be compared.
        """
        if limit is None:
            return self
        strata, kept = self.strata(), []
        for split in SPLITS:
            members = np.flatnonzero(self.splits == split)
            drawn_by = seed if split == "train" else 0
            kept.append(members[proportional([self.ids[i] for i in members], strata[members], limit, drawn_by)])
        return self.at(np.sort(np.concatenate(kept)))

    def thinned(self, fraction: float, seed: int) -> "Posts":
        """Keeps a share of the training posts, with all others: as the labels are distributed, drawn by seed, and nested.

        A smaller fraction's posts are among those of a larger one. Labels are those of the first multiclass or ordinal
        column, else of the first multilabel one (a post's rarest label); of a table, of its column `stratify_by`.
        """
        if fraction == 1:
            return self
        train = np.flatnonzero(self.splits == "train")
        kept = train[nested([self.ids[i] for i in train], self.strata()[train], fraction, seed)]
        return self.at(np.sort(np.concatenate([kept, np.flatnonzero(self.splits != "train")])))

    def strata(self) -> np.ndarray:
        """Numbers posts, (N,), alike where they count as alike for `thinned` and `limited`."""
        if self.raw is not None:
            return self.raw.strata
        for column in self.columns.values():
            if column.space.carries == "one":
                return np.where(column.has, column.values, -1)
        for column in self.columns.values():
            if column.space.carries == "any":
                carried = (column.values >= 0.5) & column.has[:, None]
                rarest = np.where(carried, carried.sum(axis=0), len(self) + 1).argmin(axis=1)
                return np.where(carried.any(axis=1), rarest, -1)
        return np.zeros(len(self), np.int64)

    def fingerprint(self, shares: str | None = None) -> str:
        """Gives sixteen hex digits that change with any text, split or annotation. shares: a column whose shares count."""
        digest = hashlib.sha256("\x1e".join([*self.ids, *self.texts, *self.splits.tolist()]).encode())
        if self.pairs is not None:
            digest.update("\x1e".join("\x1f".join(pair) for pair in self.pairs).encode())
        for name, column in sorted(self.columns.items()):
            values = np.concatenate(column.values) if column.values.dtype == object else column.values
            digest.update("\x1f".join([name, column.space.kind, *column.space.names]).encode())
            digest.update(values.tobytes() + column.has.tobytes())
        if self.raw is not None:
            digest.update(json.dumps([self.raw.separator, self.raw.cells], sort_keys=True, default=str).encode())
        if shares is not None and (told := self.columns[shares].shares) is not None:
            digest.update(told.tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Corpus(ABC):
    """A corpus as configured. Equal ones are loaded once.

    fraction: the share of the training posts that is kept, 1 for all; a smaller one's posts are among a larger one's.
    limit: then so many posts of each split, distributed as all are; of val and test the same ones whatever the seed; None
        for all.
    seed: draws what is kept for training, and the splits where none are official. Not the run's, whose repetitions share
        their posts.

    conf/corpus/NAME.yaml says what a corpus' other fields do. Two mean the same in all and are checked here: fractions, the
    shares of posts for the splits; validation (or val), the share of the official training posts that validates.
    """

    fraction: float = 1.0
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UserError(f"fraction={self.fraction}: expected a share of the training posts above 0, up to 1 for all")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit={self.limit}: expected at least one post a split, or null for all")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # as a YAML has it; could not be hashed, so equal corpora not be found
                object.__setattr__(self, field.name, tuple(value))
            shares = value if field.name == "fractions" and value is not None else (1, 0, 0)
            if len(shares) != 3 or any(share < 0 for share in shares) or not abs(sum(shares) - 1) <= 1e-6:
                raise UserError(f"fractions={list(shares)}: expected the shares of train, val and test, summing to 1")
            if field.name in ("validation", "val") and isinstance(value, int | float) and not 0 < value < 1:
                given = f"{field.name}={value}"
                raise UserError(f"{given}: expected the share of the training posts that validates, between 0 and 1")

    @abstractmethod
    def read(self) -> Posts:
        """Reads the whole corpus. Raises UserError with the file, the line and the way out where it cannot."""

    def load(self) -> Posts:
        """Loads the posts that this configuration keeps."""
        return self.read().thinned(self.fraction, self.seed).limited(self.limit, self.seed)
