"""Deals posts to folds, by groups that stay together or by texts: for cross-validation, and for how a test score spreads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from hatemtl.corpora.base import Posts, Split
from hatemtl.corpora.cells import is_given
from hatemtl.corpora.splitting import deal, draws, keys
from hatemtl.errors import UserError, did_you_mean
from hatemtl.labels import name_of


@dataclass(frozen=True, kw_only=True)
class Folds:
    """Deals the posts of a split to `number` folds.

    of: train: cross-validation. The training posts are dealt, those of fold `fold` are the run's test posts and the others
        train; validation stays as it is, and the corpus' own test posts are left out, for the one run that is reported.
        test: every training is as ever, and the test posts are dealt, over whose folds a score has a mean and a spread.
    group_by: a column of the corpus with one label a post, or any of a user's table; posts of one label are in one fold.
        None: posts of one text are, whatever its case, marks and spaces, and folds have labels alike.
    fold: the one that is tested, counted from 1; None for each in turn. seed: draws the folds; not the run's.
    """

    number: int
    group_by: str | None = None
    of: Literal["train", "test"] = "train"
    fold: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.number < 2:
            raise UserError(f"folds.number={self.number}: expected at least 2; type folds=5")
        if self.fold is not None and self.of == "test":
            raise UserError(f"folds.fold={self.fold}: of test posts all folds are shown; type folds.fold=null")
        if self.fold is not None and not 1 <= self.fold <= self.number:
            raise UserError(f"folds.fold={self.fold}: expected one from 1 to {self.number}, or null for each in turn")

    def of_run(self, posts: Posts) -> Posts:
        """Gives a run its posts: those of `fold` as its test split, the other training posts to train; all where of=test."""
        if self.of == "test":
            return posts
        if self.fold is None:
            raise UserError(f"folds.fold=null: a run trains one fold; type folds.fold=1, up to {self.number}")
        of = self.dealt(posts, "train")
        splits = np.where(of == self.fold, "test", posts.splits)
        columns = {name: column.judging(of == self.fold) for name, column in posts.columns.items()}
        kept = np.flatnonzero((of > 0) | (posts.splits == "val"))
        return replace(posts, splits=splits, columns=columns).at(kept)

    def dealt(self, posts: Posts, split: Split) -> np.ndarray:
        """The fold of each of N posts, (N,), counted from 1; 0 for those of other splits.

        Raises UserError where the corpus lacks the column, or has fewer groups than folds.
        """
        here = np.flatnonzero(posts.splits == split)
        mine = posts.at(here)
        groups = [""] * len(mine) if self.group_by is None else self._labels(mine)
        texts = zip(groups, keys(mine.texts, mine.pairs), strict=True)
        together = [f"group {group}" if group else f"text {text}" for group, text in texts]
        if (found := len(set(together))) < self.number:
            what = "texts" if self.group_by is None else f"groups in column {self.group_by!r}"
            many = f"; type folds={found}, or fewer" if found > 1 else "; give another folds.group_by, or folds=null"
            raise UserError(f"folds={self.number}: the {split} posts have {found} {what}{many}")
        of = np.zeros(len(posts), np.int64)
        if self.group_by is None:
            of[here] = 1 + deal(together, [1 / self.number] * self.number, self.seed, mine.strata())
        else:
            of[here] = 1 + balanced(together, self.number, self.seed)
        if empty := set(range(1, self.number + 1)) - set(of.tolist()):
            raise UserError(f"folds={self.number}: fold {min(empty)} would be empty; type a smaller number")
        return of

    def _labels(self, posts: Posts) -> list[str]:
        """Names the group of each post; "" where it has none."""
        name = str(self.group_by)
        if posts.raw is not None and name in posts.raw.cells:
            return [name_of(value) if is_given(value) else "" for value in posts.raw.cells[name]]
        if posts.raw is not None and posts.raw.seconds is not None and name in posts.raw.pairs:
            place = posts.raw.pairs.index(name)
            return [name_of(of_post[place]) for of_post in posts.raw.seconds]
        fitting = {of: column for of, column in posts.columns.items() if column.space.carries == "one"}
        if name not in fitting:
            known = did_you_mean(name, [*fitting, *(posts.raw.cells if posts.raw else ())])
            kind = f"is {posts.columns[name].space.kind}, not one label a post" if name in posts.columns else "is not there"
            raise UserError(f"folds.group_by={name}: expected a column of the corpus, and this one {kind}; {known}")
        column = fitting[name]
        return [column.space.names[i] if has else "" for i, has in zip(column.values, column.has, strict=True)]


def balanced(groups: Sequence[str], number: int, seed: int) -> np.ndarray:
    """Deals posts (N,) to folds (N,) from 0 on, each group whole: the largest first, always to the smallest fold so far.

    As scikit-learn's GroupKFold does; groups of one size come in an order drawn by seed.
    """
    names, of, sizes = np.unique(np.array(groups, object), return_inverse=True, return_counts=True)
    fold_of, filled = np.zeros(len(names), np.int64), np.zeros(number, np.int64)
    for group in np.lexsort((draws(names.tolist(), seed), -sizes)):
        fold_of[group] = filled.argmin()
        filled[fold_of[group]] += sizes[group]
    return fold_of[of]
