"""Merges by Fisher information: each entry is a mean of the sources', weighted by how sure each source is of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Needs, Update, average, dense, statistics_of


def fisher(inputs: Tensor, gradients: Tensor) -> Tensor:
    """Sums the squared gradients of a linear layer's weight over posts, (out, in), in double precision; add up over batches.

    inputs: what went into the layer (posts, tokens, in); gradients: of each post's own log-likelihood at what came out
    (posts, tokens, out). A post's gradient is Σ over its tokens, so padding must be zero in one of them. One post at a
    time is made dense.
    """
    total = torch.zeros(gradients.shape[-1], inputs.shape[-1], dtype=torch.float64, device=inputs.device)
    for x, g in zip(inputs.double(), gradients.double(), strict=True):
        total += (g.T @ x).square()
    return total


@dataclass(frozen=True, kw_only=True)
class Fisher(Merge):
    """ΔW = Σ Fᵢ ⊙ ΔWᵢ / Σ Fᵢ, entry by entry (Matena & Raffel 2022, Merging models with Fisher-weighted averaging,
    arXiv:2111.09832), Fᵢ the diagonal Fisher information of source i's weights: the mean squared gradient of its
    log-likelihood.

    It is the most likely weight if each source is a normal distribution with precision Fᵢ around its own. The weights
    Wᵢ = W₀ + ΔWᵢ start from the same W₀, so the formula for them is the one for the updates.

    normalize: divide each source's Fᵢ by its norm over all layers, so that a source with great gradients does not
    outweigh the others.
    floor: a pull to the plain mean, Fᵢ + floor · the mean of all F in the layer: it decides where no source is sure.

    posts: how many training posts each source reads for it.

    One source gives that source. A layer without statistics of every source gets the mean. The result is dense.
    """

    normalize: bool
    floor: float
    posts: int
    statistics: Sequence[Mapping[str, Tensor]] | None = None
    needs: ClassVar[Needs] = "fisher"

    def __post_init__(self) -> None:
        if not 0 < self.floor < float("inf"):
            raise UserError(f"merge.floor={self.floor}: expected a number over 0, such as 1e-6")
        if self.posts < 1:
            raise UserError(f"merge.posts={self.posts}: expected a whole number from 1, such as 512")

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        if self.statistics is None:
            raise UserError(
                "merge=fisher weighs the sources by the Fisher information of their weights, which is gathered from posts "
                "during a run; where no posts are at hand use merge=mean"
            )
        given = statistics_of(layer, self.statistics, sources=len(updates), shape=tuple(updates[0].shape))
        if given is None:
            return average(updates)
        shares = [1 / size if self.normalize and size > 0 else 1.0 for size in self._sizes]
        pull = self.floor * torch.stack([share * own.mean() for share, own in zip(shares, given, strict=True)]).mean()
        if not pull:
            return average(updates)
        weighted, weights = torch.zeros_like(given[0]), torch.zeros_like(given[0])
        for update, own, share in zip(updates, given, shares, strict=True):  # of dense matrices, few at once
            F = share * own + pull
            weights += F
            weighted += F.mul_(dense([update])[0])
        return weighted / weights

    @cached_property
    def _sizes(self) -> list[float]:
        """The norm of each source's information over all layers."""
        return [sum(float(F.double().square().sum()) for F in of.values()) ** 0.5 for of in self.statistics or ()]
