"""Averages updates: as a mean is defined, weighted, and as factor averaging approximates it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Update, dense
from hatemtl.merging.lora import LoRAUpdate, combine


def check_weights(weights: Sequence[float], given: str, *, negative: bool = False) -> None:
    """Raises UserError where these are no weights, one a source, not all 0; `given` is the key that the user typed."""
    if not any(weights) or not all(math.isfinite(weight) and (negative or weight >= 0) for weight in weights):
        raise UserError(
            f"{given}={weights}: expected {'numbers' if negative else 'numbers from 0'}, one a source, not all 0; type "
            f"{given}=[1,2], or null for equal ones"
        )


def total(updates: Sequence[Update], weights: Sequence[float]) -> Update:
    """Computes Σ wᵢ·ΔWᵢ: in factors where all are, else dense."""
    if all(isinstance(update, LoRAUpdate) for update in updates):
        return combine([update for update in updates if isinstance(update, LoRAUpdate)], weights)
    merged = torch.zeros(tuple(updates[0].shape), dtype=torch.float64)
    for update, weight in zip(updates, weights, strict=True):  # of embeddings, a stack of them would be great
        merged.add_(dense([update])[0], alpha=weight)
    return merged


@dataclass(frozen=True, kw_only=True)
class Mean(Merge):
    """The true mean of the updates, Σ wᵢ·ΔWᵢ / Σ wᵢ (Wortsman et al. 2022, Model soups, arXiv:2203.05482), exactly.

    weights: one a source, in the sources' order, not negative; None weighs all alike.
    """

    weights: Sequence[float] | None

    def __post_init__(self) -> None:
        if self.weights is not None:
            check_weights(self.weights, "merge.weights")

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        weights = [1.0] * len(updates) if self.weights is None else list(self.weights)
        if len(weights) != len(updates):
            raise UserError(f"merge.weights holds {len(weights)} numbers for {len(updates)} sources; give one a source")
        return total(updates, [weight / sum(weights) for weight in weights])


@dataclass(frozen=True, kw_only=True)
class Linear(Merge):
    """Averages as AdapterHub's `average_adapter("linear")` does: the A's and the B's, apart.

    It is near the mean of the updates only where the sources started from the same A; kept to compare with. Of other
    adapters and full models, whose parameters are averaged each by itself, it is the mean.
    """

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        factors = [update for update in updates if isinstance(update, LoRAUpdate)]
        if len(factors) < len(updates):
            return Mean(weights=None)(updates, layer=layer)
        if len({update.rank for update in factors}) > 1:
            raise UserError("merge=linear needs sources of one rank on the same layers; use merge=mean, which takes any")
        if len({update.scale for update in factors}) > 1:
            raise UserError("merge=linear needs sources of one scale alpha / rank; use merge=mean, which takes any")
        A, B = (torch.stack(both).mean(0) for both in ([u.A for u in factors], [u.B for u in factors]))
        return LoRAUpdate(A, B, factors[0].scale)
