"""Tells whether some labels are wrongly predicted more often than others, where the labels are groups of people."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hatemtl.corpora.base import Column
from hatemtl.evaluations.base import Beforehand, Needs, Predicted, Reader, Row, check_some
from hatemtl.labels import LabelSpace


@dataclass(frozen=True, kw_only=True)
class FalsePositiveDifference:
    """For each multilabel task the false positive rate of each label, FPR_c, and Σ over labels of |FPR - FPR_c|.

    FPR is that of all labels pooled. Dixon et al. 2018, Measuring and mitigating unintended bias in text classification,
    doi:10.1145/3278721.3278729. A label that every post carries has no rate, and is left out. The sum is 0 where nothing is
    predicted, so weigh it against error.
    """

    needs: ClassVar[Needs] = Needs()
    scalar: ClassVar[str] = "false_positive_difference"

    def check(self, spaces: Mapping[str, LabelSpace], test: Beforehand | None = None) -> None:
        check_some(spaces, ("any",), "a multilabel task, whose labels are the groups")

    def rows(
        self, predictions: Mapping[str, Predicted], posts: Mapping[str, Mapping[str, Column]], reader: Reader | None = None
    ) -> list[Row]:
        rows = []
        for task, said in predictions.items():
            if said.space.carries == "any":
                negative = said.gold < 0.5
                alarms, chances = (negative & (said.scores >= said.threshold)).sum(axis=0), negative.sum(axis=0)
                told = np.flatnonzero(chances)
                rates = alarms[told] / chances[told]
                labels = [said.space.names[place] for place in told]
                named = zip(labels, rates.tolist(), strict=True)
                rows += [Row(said.stage, task, "false_positive_rate", label, rate) for label, rate in named]
                difference = abs(rates - alarms.sum() / max(chances.sum(), 1)).sum()
                rows.append(Row(said.stage, task, self.scalar, None, float(difference)))
        return rows
