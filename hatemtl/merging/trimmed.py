"""Merges that leave out entries, by their magnitude or by lot: magnitude pruning, TIES, breadcrumbs, DARE, DELLA.

`between` and `by_lot` take the sources' updates of one layer as one tensor (sources, *the weight's shape) and change it.
A single source stays whole, so that all of these give λ·ΔW: entries are left out lest sources interfere.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Update, dense
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.seeds import generator

Election = Literal["total", "count"]

BLOCK = 2**15  # entries at a time: what is made of them on the way stays in the processor's cache
ROUNDING = 1e-12  # a sum so small beside what was summed is a tie, and a value so small beside the greatest a zero


@dataclass(frozen=True, kw_only=True)
class Magnitude(Merge):
    """The mean of each source's greatest entries: λ/n·Σ top(ΔWᵢ), the other entries counting as 0.

    Pruning by magnitude is of Han et al. 2015, arXiv:1506.02626; PEFT's `magnitude_prune` with weights 1/n is this.
    """

    density: float
    scale: float

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Tensor:
        return self.scale * between(dense(updates), smallest=1 - self.density, greatest=0).mean(0)


@dataclass(frozen=True, kw_only=True)
class TIES(Merge):
    """λ·(mean of those of each source's greatest entries that have the elected sign): trim, elect sign, merge.

    Yadav et al. 2023, TIES-merging, arXiv:2306.01708; trimmed by layer, as PEFT does, and not over the whole model.

    Other than PEFT's `ties`: of n entries n - round((1 - density)·n) are kept, there int(density·n); where as many sources
    say plus as minus, `count` takes the sign of the sum, there plus; where nothing wins, the result is 0.
    """

    density: float
    elect: Election
    scale: float

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Tensor:
        return self.scale * agreeing_mean(between(dense(updates), smallest=1 - self.density, greatest=0), self.elect)


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(Merge):
    """The mean of each source's entries between two tails: λ/n·Σ mᵢ⊙ΔWᵢ, mᵢ masking outliers and what hardly moved.

    Davari & Belilovsky 2024, Model breadcrumbs, arXiv:2312.06795, whose factor of the sum is λ/n here.
    """

    smallest: float
    greatest: float
    scale: float

    def __post_init__(self) -> None:
        for key, share in (("smallest", self.smallest), ("greatest", self.greatest)):
            if not 0 <= share < 1:
                raise UserError(f"merge.{key}={share}: expected the share of the entries to leave out, from 0 and below 1")
        if self.smallest + self.greatest >= 1:
            raise UserError(
                f"merge.smallest={self.smallest} and merge.greatest={self.greatest} leave nothing; "
                f"type merge.smallest=0.85 merge.greatest=0.01"
            )
        super().__post_init__()

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Tensor:
        return self.scale * between(dense(updates), smallest=self.smallest, greatest=self.greatest).mean(0)


@dataclass(frozen=True, kw_only=True)
class DARE(Merge):
    """λ times the mean, or the TIES merge, of sources of which a share of entries is dropped, the others divided by density.

    Yu et al. 2024, Language models are Super Mario, arXiv:2311.03099. The expectation of the mean is the sources' mean; with
    an elected sign it is too great by up to 1/density, for the mean counts the kept ones alone. Equal sources draw alike.
    """

    density: float
    elect: Election | None
    scale: float
    seed: int

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Tensor:
        return DELLA(epsilon=0, **asdict(self))(updates, layer=layer)


@dataclass(frozen=True, kw_only=True)
class DELLA(Merge):
    """Drop, elect, fuse: as DARE, but the greater an entry among those of its row, the better its chance to be kept.

    Deep et al. 2024, DELLA-merging, arXiv:2406.11617 (MAGPRUNE). The chance rises with the rank of the magnitude in the row,
    in equal steps from density - epsilon / 2 to density + epsilon / 2, and what is kept is divided by it.
    """

    density: float
    epsilon: float
    elect: Election | None
    scale: float
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
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


def between(stack: Tensor, *, smallest: float, greatest: float) -> Tensor:
    """Keeps each source but for the shares of its entries of least and of greatest magnitude, in single precision.

    Entries of equal magnitude stay or go together; at least one stays.
    """
    entries = stack[0].numel()
    above = min(round(greatest * entries), entries - 1)
    below = min(round(smallest * entries), entries - 1 - above)
    if len(stack) == 1 or above == below == 0:
        return stack
    places = [below, entries - 1 - above]  # of the least and the greatest that stay; numpy is ten times as fast as torch
    for source in stack:
        magnitude = source.to(torch.float32, copy=True).abs_()
        least, most = np.partition(magnitude.flatten().numpy(), places)[places].tolist()
        source *= (magnitude >= least) & (magnitude <= most)
    return stack


def agreeing_mean(stack: Tensor, elect: Election) -> Tensor:
    """Averages those values alone that have the elected sign, from (sources, *shape) (Yadav et al. 2023, TIES-merging).

    Sources that tie by `count` take the sign of the sum. Zeros have no vote and no share in the mean. Where no sign wins,
    the result is 0, as the mean would be; so -ΔW of every source gives -ΔW.
    """
    merged = torch.empty_like(stack[0]).flatten()
    least = ROUNDING * max(map(abs, map(float, stack.aminmax())))
    for some, mine in zip(stack.reshape(len(stack), -1).split(BLOCK, dim=1), merged.split(BLOCK), strict=True):
        plus, minus = some.clamp(min=0).sum(0), some.clamp(max=0).sum(0)
        # int16, for sums of booleans in 64 bits are slow
        ups, downs = ((some > least).sum(0, dtype=torch.int16), (some < -least).sum(0, dtype=torch.int16))
        lead = plus + minus
        lead *= lead.abs() > ROUNDING * (plus - minus)
        if elect == "count":
            lead = (ups - downs) + lead.sign() / 2
        sign = lead.sign()  # products with it, for torch.where takes ten times as long
        torch.sub(plus / ups.clamp(min=1) * sign.clamp(min=0), minus / downs.clamp(min=1) * sign.clamp(max=0), out=mine)
    return merged.reshape(stack[0].shape)


def by_lot(stack: Tensor, lots: Sequence[Generator], *, density: float, epsilon: float) -> Tensor:
    """Keeps each source's entries with a chance, as DARE and DELLA, and divides them by it. lots: one generator a source."""
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
    """Gives each entry's chance, (rows, width), by the rank of its magnitude in its row, in single precision, then by place.

    Magnitude and place are sorted as one whole number, for a float's bits rise with it: a tenth of what torch.argsort takes.
    """
    least, most = (density - epsilon / 2, density + epsilon / 2) if rows.shape[1] > 1 else (density, density)
    steps = torch.linspace(least, most, rows.shape[1])
    keys = rows.abs().float().numpy().view(np.int32).astype(np.int64) << 32 | np.arange(rows.shape[1])
    keys.sort(axis=1)
    return torch.empty(rows.shape).scatter_(1, torch.from_numpy(keys & 0xFFFFFFFF), steps.expand_as(rows))


def lots(updates: Sequence[Update], *, seed: int, layer: str) -> list[Generator]:
    """Makes a generator for each update, which depends on seed, layer and what the update holds, not on its place."""
    found = []
    for update in updates:
        digest = hashlib.sha256()
        for part in (update.A, update.B) if isinstance(update, LoRAUpdate) else (update,):
            digest.update(part.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        digest.update(repr(float(update.scale)).encode() if isinstance(update, LoRAUpdate) else b"")
        found.append(generator(seed, layer, digest.hexdigest()))
    return found
