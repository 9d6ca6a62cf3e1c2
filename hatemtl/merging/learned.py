"""Merges with coefficients that are searched for on posts: by gradient, or without one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from hatemtl.errors import UserError, did_you_mean
from hatemtl.merging.base import Merge, Needs, Update
from hatemtl.merging.mean import Mean, total

OBJECTIVES = ("loss", "entropy", "error", "bias")


class Bias(Protocol):
    """Measures how unlike a network treats groups, one number of which less is better: as `merge.bias_of` names it."""

    def __call__(self, scores: Tensor, targets: Tensor, has: Tensor, *, threshold: float) -> float:
        """Measures the posts of a multilabel task: scores and targets (N, C), has (N,) bool, which of them are annotated.

        threshold: the score from which the head predicts a label.
        """
        ...


def false_positive_equality_difference(scores: Tensor, targets: Tensor, has: Tensor, *, threshold: float) -> float:
    """Sums |FPR - FPR of the label| over labels: the labels are the groups, and FPR is that of all of them pooled.

    Dixon et al. 2018, Measuring and mitigating unintended bias in text classification, doi:10.1145/3278721.3278729. A label
    that every post carries has no FPR and is left out. It is 0 where nothing is predicted: weigh it against error.
    """
    negative = (targets < 0.5) & has[:, None]
    told = negative.any(dim=0)
    alarms, chances = (negative & (scores >= threshold)).sum(dim=0)[told], negative.sum(dim=0)[told]
    return float((alarms / chances - alarms.sum() / chances.sum()).abs().sum())


@dataclass(frozen=True, kw_only=True)
class Learned(Merge):
    """Σ λᵢ·ΔWᵢ with coefficients that make the merged network best, on posts and with the merged heads.

    The search judges the lossless sum; a cut to a rank comes after it. What is minimised is a weighted sum of objectives, of
    which each run of the search records every one that counts, so that two of them can be traded. loss: the weight of the
    heads' loss on labels. entropy: that of predictions' entropy, which reads no label (Yang et al. 2024, AdaMerging,
    arXiv:2310.02575). error: that of 1 - the tasks' primary metric, by cmaes only (Huang et al. 2024, LoraHub,
    arXiv:2307.13269). bias: that of bias_of, the mean over tasks, by cmaes only, which records it of multilabel tasks even
    where it does not count.
    by: source, one λ each, or layer, one for each layer of each. start: every λ at the start; None for 1/n, the mean.
    search: gradient (Adam), or cmaes (Hansen 2016, arXiv:1604.00772), which only computes forwards.
    steps: batches of gradient, or generations. rate: of Adam, or the first standard deviation of CMA-ES.
    posts: how many are read, of the validation split; by CMA-ES once a candidate. seed: of the candidates, and of the order
    in which gradient reads the batches.
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
    bias_of: Bias = false_positive_equality_difference
    statistics: Sequence[Mapping[str, Tensor]] | None = None  # the coefficients that were found, each one number
    needs: ClassVar[Needs] = "search"

    def __post_init__(self) -> None:
        for name in OBJECTIVES:
            if not (isinstance(getattr(self, name), int | float) and getattr(self, name) >= 0):
                raise UserError(f"merge.{name}={getattr(self, name)}: expected how much it counts, a number from 0")
        if not self.objectives:
            names = ", ".join(f"merge.{name}" for name in OBJECTIVES)
            raise UserError(f"{names} are all 0: nothing to search by; type merge.loss=1")
        if self.error and self.search == "gradient":
            raise UserError(f"merge.error={self.error}: a metric has no gradient; type merge.search=cmaes, or merge.error=0")
        if self.bias and self.search == "gradient":
            raise UserError(f"merge.bias={self.bias}: counts have no gradient; type merge.search=cmaes, or merge.bias=0")
        if not callable(self.bias_of):
            raise UserError(f"merge.bias_of={self.bias_of}: expected a function; name it as conf/merge/learned.yaml does")
        for key, known in (("by", ("source", "layer")), ("search", ("gradient", "cmaes"))):
            if (value := getattr(self, key)) not in known:
                raise UserError(f"merge.{key}={value}: {did_you_mean(value, known)}")
        for key in ("steps", "posts"):
            if type(getattr(self, key)) is not int or getattr(self, key) < 1:
                raise UserError(f"merge.{key}={getattr(self, key)}: expected a whole number from 1")
        if type(self.rate) not in (int, float) or not self.rate > 0:
            raise UserError(f"merge.rate={self.rate}: expected a number above 0")
        if self.start is not None and type(self.start) not in (int, float):
            raise UserError(f"merge.start={self.start}: expected a number, or null for 1/n")

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        if self.statistics is None:
            raise UserError(
                "merge=learned searches its coefficients on posts during a run; where no posts are at hand use merge=mean"
            )
        if not all(layer in source for source in self.statistics):
            return Mean(weights=None)(updates, layer=layer)  # no source adapts it
        return total(updates, [float(source[layer]) for source in self.statistics])

    @property
    def objectives(self) -> dict[str, float]:
        """Gives those that count, and how much."""
        return {name: getattr(self, name) for name in OBJECTIVES if getattr(self, name)}
