"""Merges by task arithmetic: the sum of updates, scaled."""

from collections.abc import Sequence
from dataclasses import dataclass

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Update
from hatemtl.merging.mean import check_weights, total
from hatemtl.merging.sparsity import check_scale


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Merge):
    """λ·Σ wᵢ·ΔWᵢ (Ilharco et al. 2023, Editing models with task arithmetic, arXiv:2212.04089), exactly.

    scale: λ; 1/n gives the mean of n sources.
    weights: wᵢ, one a source, in the sources' order; a negative one takes away what its source learned; None: 1 for each.

    From one source: λ·w·ΔW.
    """

    scale: float
    weights: Sequence[float] | None

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if self.weights is not None:
            check_weights(self.weights, "merge.weights", negative=True)

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        weights = [1.0] * len(updates) if self.weights is None else list(self.weights)
        if len(weights) != len(updates):
            raise UserError(f"merge.weights holds {len(weights)} numbers for {len(updates)} sources; give one a source")
        return total(updates, [self.scale * weight for weight in weights])
