"""A merge whose coefficients are searched for on posts: by gradient, or without one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from hatemtl.errors import UserError, did_you_mean
from hatemtl.merging.base import Merge, Update
from hatemtl.merging.mean import Mean, total

OBJECTIVES = ("loss", "entropy", "error")


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Σ λᵢ·ΔWᵢ with coefficients that make the merged network best, on posts and with the merged heads.

    What is minimised is a weighted sum of objectives, of which each run of the search records every one that counts, so that
    two of them can be traded. loss: the weight of the heads' loss on labels. entropy: that of predictions' entropy, which
    reads no label (Yang et al. 2024, AdaMerging, arXiv:2310.02575). error: that of 1 - the tasks' primary metric, by
    cmaes only (Huang et al. 2024, LoraHub, arXiv:2307.13269).
    by: source, one λ each, or layer, one for each layer of each. start: every λ at the start; None for 1/n, the mean.
    search: gradient (Adam), or cmaes (Hansen 2016, arXiv:1604.00772), which only computes forwards.
    steps: batches of gradient, or generations. rate: of Adam, or the first standard deviation of CMA-ES.
    posts: how many are read, of the validation split; by CMA-ES once a candidate.
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
    statistic: ClassVar[str] = "coefficients"

    def __post_init__(self) -> None:
        for name in OBJECTIVES:
            if not (isinstance(getattr(self, name), int | float) and getattr(self, name) >= 0):
                raise UserError(f"merge.{name}={getattr(self, name)}: expected how much it counts, a number from 0")
        if not self.objectives:
            raise UserError("merge.loss, merge.entropy and merge.error are all 0: nothing to search by; type merge.loss=1")
        if self.error and self.search == "gradient":
            raise UserError(f"merge.error={self.error}: a metric has no gradient; type merge.search=cmaes, or merge.error=0")
        for key, known in (("by", ("source", "layer")), ("search", ("gradient", "cmaes"))):
            if (value := getattr(self, key)) not in known:
                raise UserError(f"merge.{key}={value}: {did_you_mean(str(value), known)}")
        for key in ("steps", "posts"):
            if type(getattr(self, key)) is not int or getattr(self, key) < 1:
                raise UserError(f"merge.{key}={getattr(self, key)}: expected a whole number from 1")
        if type(self.rate) not in (int, float) or not self.rate > 0:
            raise UserError(f"merge.rate={self.rate}: expected a number above 0")
        if self.start is not None and type(self.start) not in (int, float):
            raise UserError(f"merge.start={self.start}: expected a number, or null for 1/n")

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        raise UserError(
            "merge=learned searches its coefficients on posts during a run; where no posts are at hand use merge=mean"
        )

    @property
    def objectives(self) -> dict[str, float]:
        """Those that count, and how much."""
        return {name: getattr(self, name) for name in OBJECTIVES if getattr(self, name)}

    def with_statistics(self, statistics: Sequence[Mapping[str, Tensor]]) -> Merge:
        """The merge with the coefficients that were found: one mapping a source, by layer, each one number."""
        return partial(_weighted, statistics=statistics)


def _weighted(updates: Sequence[Update], *, layer: str, statistics: Sequence[Mapping[str, Tensor]]) -> Update:
    if not all(layer in source for source in statistics):
        return Mean(weights=None)(updates, layer=layer)  # no source adapts it
    return total(updates, [float(source[layer]) for source in statistics])
