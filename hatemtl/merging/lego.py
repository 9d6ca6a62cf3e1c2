"""Merges by LoRA-LEGO: the rank-one units of all LoRAs are sorted into heaps of like ones; each heap becomes one unit."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Update
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.seeds import generator

RESTARTS = 8
STEPS = 100  # of Lloyd's algorithm; a few dozen points settle in about ten


@dataclass(frozen=True, kw_only=True)
class LEGO(Merge):
    """A LoRA of the centroids of k clusters of units (Zhao et al. 2024, Merging LoRAs like playing LEGO, arXiv:2409.16167).

    A unit is a row a of A with its column b of B, ΔW = Σ b·aᵀ, with √|s| of the scale s on either side and its sign on b.
    Units (a, b) of all sources are clustered by k-means; a centroid is stretched to the mean length of its units, and all
    are scaled by √(r / k), r the greatest rank of a source, since a sum of k units spreads as √k.

    With no more units than k each stays as it is. What a unit is depends on how the factors are written: (c·a, b / c) is the
    same update but another unit, and (−a, −b) its opposite, so LoRAs should have started from one A.
    """

    units: int | None
    seed: int

    def __post_init__(self) -> None:
        if self.units is not None and self.units < 1:
            raise UserError(f"merge.units={self.units}: expected a number of units from 1, or null for the greatest rank")

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        factors = [update for update in updates if isinstance(update, LoRAUpdate)]
        if len(factors) < len(updates):
            raise UserError("merge=lego takes LoRAs apart; for other adapters and full models use merge=mean")
        rank = max(update.rank for update in factors)
        if not rank:
            return factors[0].nothing()
        # unique() sorts the rows, by their values alone
        points, copies = torch.unique(torch.cat([units(update) for update in factors]), dim=0, return_counts=True)
        points = points.repeat_interleave(copies, dim=0)
        k = rank if self.units is None else self.units
        own = torch.arange(len(points))
        cluster = own if len(points) <= k else kmeans(points, k, generator(self.seed, "lego", layer))
        member = torch.nn.functional.one_hot(cluster).T.double()
        share = member[member.any(dim=1)]
        share = share / share.sum(dim=1, keepdim=True)
        centroids, length = share @ points, share @ points.norm(dim=1)
        shrunk = centroids.norm(dim=1)
        # Units that cancel leave no direction to stretch.
        stretch = torch.where(shrunk > 1e-6 * length, length / shrunk.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        A, B = (stretch[:, None] * centroids).split([factors[0].shape[1], factors[0].shape[0]], dim=1)
        return LoRAUpdate(A, B.T, (rank / len(centroids)) ** 0.5)


def units(update: LoRAUpdate) -> Tensor:
    """Gives the units of a LoRA, (r, in + out): a row of A and its column of B, with half of the scale each."""
    root = abs(update.scale) ** 0.5
    return torch.cat([root * update.A.double(), (root if update.scale > 0 else -root) * update.B.double().T], dim=1)


def kmeans(points: Tensor, k: int, draw: torch.Generator) -> Tensor:
    """Finds the cluster of each point (n, d), numbers below k (n,): the best of several k-means++ starts."""
    gram = points @ points.T  # of which all distances come: a step costs as little for wide points as for narrow ones
    square = gram.diagonal()
    between = (square[:, None] + square - 2 * gram).clamp(min=0)
    best, least = torch.zeros(len(points), dtype=torch.int64), float("inf")
    for _ in range(RESTARTS):
        chosen = [int(torch.randint(len(points), (), generator=draw))]
        nearest = between[chosen[0]]
        while len(chosen) < k:
            likely = nearest if nearest.sum() > 0 else torch.ones_like(nearest)  # fewer places than clusters
            chosen.append(int(torch.multinomial(likely, 1, generator=draw)))
            nearest = torch.minimum(nearest, between[chosen[-1]])
        cluster = between[:, chosen].argmin(dim=1)
        for _ in range(STEPS):
            member = torch.nn.functional.one_hot(cluster, k).double()
            count = member.sum(dim=0)
            share = member / count.clamp(min=1)
            away = square[:, None] - 2 * gram @ share + (share * (gram @ share)).sum(dim=0)
            away[:, count == 0] = float("inf")
            before, cluster = cluster, away.argmin(dim=1)
            if torch.equal(before, cluster):
                break
        if (cost := float(away.amin(dim=1).sum())) < least:
            best, least = cluster, cost
    return best
