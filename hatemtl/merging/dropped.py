"""Merges that leave out entries by lot and make the others greater for it: DARE, DELLA."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Update, check_settings, dense
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.merging.trimmed import BLOCK, Election, agreeing_mean
from hatemtl.seeds import generator


@dataclass(frozen=True, kw_only=True)
class DARE(Merge):
    """λ times the mean, or the TIES merge, of sources of which a share of entries is dropped, the others divided by density.

    Yu et al. 2024, Language models are Super Mario, arXiv:2311.03099.

    elect: None takes the mean, whose expectation is the sources' mean; `total` or `count` the mean of those that have the
    elected sign, which is too great by up to 1/density, for it counts the kept ones alone.
    seed: of the lots, which belong to what a source holds: equal sources draw alike, in any order.
    """

    density: float
    elect: Election | None
    scale: float
    seed: int

    def __post_init__(self) -> None:
        check_settings(self.scale, self.density)

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Tensor:
        return DELLA(epsilon=0, **asdict(self))(updates, layer=layer)


@dataclass(frozen=True, kw_only=True)
class DELLA(Merge):
    """Drop, elect, fuse: as DARE, but the greater an entry among those of its row, the better its chance to be kept.

    Deep et al. 2024, DELLA-merging, arXiv:2406.11617 (MAGPRUNE). The chance rises with the rank of the magnitude in the row,
    in equal steps from density - epsilon / 2 to density + epsilon / 2, and what is kept is divided by it. Else as DARE.
    """

    density: float
    epsilon: float
    elect: Election | None
    scale: float
    seed: int

    def __post_init__(self) -> None:
        check_settings(self.scale, self.density)
        half = self.epsilon / 2
        if not (0 <= half < self.density and self.density + half <= 1):
            raise UserError(
                f"merge.epsilon={self.epsilon} with merge.density={self.density}: expected a width from 0 that leaves the "
                f"chances density ± epsilon / 2 above 0 and up to 1; type merge.epsilon="
                f"{min(self.density, 1 - self.density):g}"
            )

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Tensor:
        drawn = lots(updates, seed=self.seed, layer=layer)
        kept = by_lot(dense(updates), drawn, density=self.density, epsilon=self.epsilon)
        return self.scale * (kept.mean(0) if self.elect is None else agreeing_mean(kept, self.elect))


def by_lot(stack: Tensor, lots: Sequence[Generator], *, density: float, epsilon: float) -> Tensor:
    """Keeps each source's entries with a chance and divides them by it, so that the expectation is the source itself.

    The chance is `density`, or from density - epsilon / 2 for the least magnitude of a row to density + epsilon / 2 for the
    greatest, in equal steps. lots: one generator a source.
    """
    if len(stack) == 1 or density == 1:
        return stack
    for source, lot in zip(stack, lots, strict=True):
        width = source.shape[-1] if source.ndim > 1 else source.numel()  # a vector is one row
        for rows in source.view(-1, width).split(max(1, BLOCK // width)):
            chance = _chances(rows, density, epsilon) if epsilon else density
            rows *= torch.rand(rows.shape, generator=lot) < chance
            rows /= chance
    return stack


def _chances(rows: Tensor, density: float, epsilon: float) -> Tensor:
    """(rows, width) by the rank of the magnitude in its row."""
    least, most = (density - epsilon / 2, density + epsilon / 2) if rows.shape[1] > 1 else (density, density)
    steps = torch.linspace(least, most, rows.shape[1])
    return torch.empty(rows.shape).scatter_(1, _by_magnitude(rows), steps.expand_as(rows))


def _by_magnitude(rows: Tensor) -> Tensor:
    """(rows, width) Each row's places by rising magnitude, in single precision; equal ones by place.

    Magnitude and place are sorted as one whole number, for a float's bits rise with it: a tenth of what torch.argsort takes.
    """
    keys = rows.abs().float().numpy().view(np.int32).astype(np.int64) << 32 | np.arange(rows.shape[1])
    keys.sort(axis=1)
    return torch.from_numpy(keys & 0xFFFFFFFF)


def lots(updates: Sequence[Update], *, seed: int, layer: str) -> list[Generator]:
    """Makes a generator for each update, which depends on seed, layer and what the update holds, not on its place."""
    return [generator(seed, layer, _content(update)) for update in updates]


def _content(update: Update) -> str:
    """A digest of the numbers of an update."""
    digest = hashlib.sha256()
    for part in (update.A, update.B) if isinstance(update, LoRAUpdate) else (update,):
        digest.update(part.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    if isinstance(update, LoRAUpdate):
        digest.update(repr(float(update.scale)).encode())
    return digest.hexdigest()
