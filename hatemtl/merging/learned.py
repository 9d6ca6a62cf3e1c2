"""Merges with coefficients that are searched for on posts: by gradient, or without one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.evaluations.base import Evaluation
from hatemtl.evaluations.false_positives import FalsePositiveDifference
from hatemtl.merging.base import Merge, Needs, Update, average, total


@dataclass(frozen=True, kw_only=True)
class Learned(Merge):
    """Σ λᵢ·ΔWᵢ with coefficients that make the merged network best, on posts and with the merged heads.

    The search judges the lossless sum; a cut to a rank comes after it. What is minimised is a weighted sum of objectives, of
    which each run of the search records every one that counts, so that two of them can be traded: entropy (Yang et al. 2024,
    AdaMerging, arXiv:2310.02575), error (Huang et al. 2024, LoraHub, arXiv:2307.13269), bias, the mean over tasks of
    `bias_of`'s `scalar`. cmaes (Hansen 2016, arXiv:1604.00772) computes forwards alone, of all posts each.
    """

    loss: float
    entropy: float
    error: float
    by: Literal["source", "layer"]
    start: float | None
    search: Literal["gradient", "cmaes"]
    steps: int
    rate: float
    posts: int
    seed: int
    bias: float = 0.0
    bias_of: Evaluation = field(default_factory=FalsePositiveDifference)
    statistics: Sequence[Mapping[str, Tensor]] | None = None  # the coefficients that were found, each one number
    needs: ClassVar[Needs] = "search"

    def __post_init__(self) -> None:
        for name, weight in self.objectives.items():
            if not 0 <= weight < math.inf:
                raise UserError(f"merge.{name}={weight}: expected how much it counts, a number from 0")
        if not self.objectives:
            raise UserError(
                "merge.loss, merge.entropy, merge.error, merge.bias are all 0: nothing to search by; type merge.loss=1"
            )
        for name, have in (("error", "a metric has"), ("bias", "counts have")):
            if name in self.objectives and self.search == "gradient":
                given = f"merge.{name}={self.objectives[name]}"
                raise UserError(f"{given}: {have} no gradient; type merge.search=cmaes, or merge.{name}=0")
        judge = self.bias_of
        if getattr(judge, "scalar", None) is None or judge.needs.columns or judge.needs.reader:
            raise UserError(
                f"merge.bias_of={judge}: expected an evaluation of predictions alone with a row of which less is "
                f"better; name it as conf/merge/learned.yaml does"
            )
        for key, count in (("steps", self.steps), ("posts", self.posts)):
            if count < 1:
                raise UserError(f"merge.{key}={count}: expected a whole number from 1")
        if not 0 < self.rate < math.inf:
            raise UserError(f"merge.rate={self.rate}: expected a number above 0")
        if self.start is not None and not math.isfinite(self.start):
            raise UserError(f"merge.start={self.start}: expected a finite number, or null for 1/n")

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        if self.statistics is None:
            raise UserError(
                "merge=learned searches its coefficients on posts during a run; where no posts are at hand use merge=mean"
            )
        if not all(layer in source for source in self.statistics):
            return average(updates)  # no source adapts it
        return total(updates, [float(source[layer]) for source in self.statistics])

    @property
    def objectives(self) -> dict[str, float]:
        """Gives those that count, and how much."""
        every = {"loss": self.loss, "entropy": self.entropy, "error": self.error, "bias": self.bias}
        return {name: weight for name, weight in every.items() if weight}
