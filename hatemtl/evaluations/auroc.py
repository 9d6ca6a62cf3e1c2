"""Tells how well scores order posts, whatever the threshold: areas under ROC curves."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import ClassVar

import numpy as np

from hatemtl.corpora.base import Column
from hatemtl.evaluations.base import Beforehand, Needs, Predicted, Reader, Row, check_some
from hatemtl.evaluations.bias import aucs
from hatemtl.labels import LabelSpace


@dataclass(frozen=True, kw_only=True)
class AUROC:
    """For each task of labels the area under the ROC curve of each label against all others, and of the task.

    The task's is the mean over pairs of labels, each way, of how well one is told from the other alone where a post has one
    label (Hand & Till 2001, doi:10.1023/A:1010920819831; HateXplain computes this, scikit-learn's "ovo"), and the
    mean over labels where it may have several. A label that every post carries, or none, has no area and is in no mean.
    """

    needs: ClassVar[Needs] = Needs()
    scalar: ClassVar[None] = None

    def check(self, spaces: Mapping[str, LabelSpace], test: Beforehand | None = None) -> None:
        check_some(spaces, ("one", "any"), "a multiclass, ordinal or multilabel task")

    def rows(
        self, predictions: Mapping[str, Predicted], posts: Mapping[str, Mapping[str, Column]], reader: Reader | None = None
    ) -> list[Row]:
        rows = []
        for task, said in predictions.items():
            if said.space.carries not in ("one", "any"):
                continue
            one = said.space.carries == "one"
            carried = said.gold[:, None] == np.arange(len(said.space)) if one else said.gold >= 0.5
            some = np.flatnonzero(carried.any(axis=0) & ~carried.all(axis=0)).tolist()
            each = {i: _area(said, i, carried[:, i], ~carried[:, i]) for i in some}
            pairs = [(i, j) for pair in combinations(some, 2) for i, j in (pair, pair[::-1])]
            of_all = [_area(said, i, carried[:, i], carried[:, j]) for i, j in pairs] if one else [*each.values()]
            rows += [Row(said.stage, task, "auroc", said.space.names[i], value) for i, value in each.items()]
            if of_all:
                rows.append(Row(said.stage, task, "auroc", None, fmean(of_all)))
        return rows


def _area(said: Predicted, label: int, mine: np.ndarray, others: np.ndarray) -> float:
    """Of this label's scores, between two sets of posts, (N,) bool."""
    return float(aucs(said.scores[:, label], mine, others, np.ones((len(mine), 1)))[0])
