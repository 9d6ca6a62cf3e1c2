"""Sums updates: their mean, weighted, and as factor averaging approximates it, and task arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Update, average, total
from hatemtl.merging.lora import LoRAUpdate


def check_weights(weights: Sequence[float] | None, given: str, *, negative: bool = False) -> None:
    """Raises UserError where these are no weights, one a source, not all 0; `given` is the key that the user typed."""
    allowed = [math.isfinite(weight) and (negative or weight >= 0) for weight in weights or ()]
    if weights is not None and not (any(weights) and all(allowed)):
        raise UserError(
            f"{given}={weights}: expected {'numbers' if negative else 'numbers from 0'}, one a source, not all 0; type "
            f"{given}=[1,2], or null for equal ones"
        )


def _one_each(weights: Sequence[float] | None, updates: Sequence[Update]) -> list[float]:
    if weights is not None and len(weights) != len(updates):
        raise UserError(f"merge.weights holds {len(weights)} numbers for {len(updates)} sources; give one a source")
    return list(weights or [1.0] * len(updates))


@dataclass(frozen=True, kw_only=True)
class Mean(Merge):
    """The true mean of the updates, Σ wᵢ·ΔWᵢ / Σ wᵢ (Wortsman et al. 2022, Model soups, arXiv:2203.05482), exactly."""

    weights: Sequence[float] | None
    is_mean = True

    def __post_init__(self) -> None:
        check_weights(self.weights, "merge.weights")

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        weights = _one_each(self.weights, updates)
        return total(updates, [weight / sum(weights) for weight in weights])


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Merge):
    """λ·Σ wᵢ·ΔWᵢ (Ilharco et al. 2023, Editing models with task arithmetic, arXiv:2212.04089), exactly."""

    scale: float
    weights: Sequence[float] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self.weights, "merge.weights", negative=True)

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        return total(updates, [self.scale * weight for weight in _one_each(self.weights, updates)])


@dataclass(frozen=True, kw_only=True)
class Linear(Merge):
    """Averages as AdapterHub's `average_adapter("linear")` does: the A's and the B's, apart.

    It is near the mean of the updates only where the sources started from the same A. Of what is no LoRA it is the mean.
    """

    is_mean = True

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        factors = [update for update in updates if isinstance(update, LoRAUpdate)]
        if len(factors) < len(updates):
            return average(updates)
        if len({update.rank for update in factors}) > 1:
            raise UserError("merge=linear needs sources of one rank on the same layers; use merge=mean, which takes any")
        if len({update.scale for update in factors}) > 1:
            raise UserError("merge=linear needs sources of one scale alpha / rank; use merge=mean, which takes any")
        A, B = (torch.stack(both).mean(0) for both in ([u.A for u in factors], [u.B for u in factors]))
        return LoRAUpdate(A, B, factors[0].scale)
