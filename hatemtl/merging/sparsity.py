"""Chooses the entries of each source that take part in a merge: of greatest or middling magnitude, or drawn by lot.

`between` and `by_lot` take the sources' updates of one layer as one tensor (sources, *the weight's shape) and change it: the
other entries become 0. A single source stays whole: entries are left out lest sources interfere, and with one none does.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from hatemtl.errors import UserError
from hatemtl.merging.base import Update
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.seeds import generator

BLOCK = 2**15  # entries at a time: what is made of them on the way stays in the processor's cache


def check_density(density: float) -> None:
    """Raises UserError where no share of the entries is so great."""
    if not 0 < density <= 1:
        raise UserError(
            f"merge.density={density}: expected the share of entries to keep, above 0 and up to 1; type merge.density=0.5"
        )


def check_scale(scale: float) -> None:
    """Raises UserError where a merge cannot be multiplied by it."""
    if not math.isfinite(scale):
        raise UserError(f"merge.scale={scale}: expected a number to multiply the merge by; type merge.scale=1")


def between(stack: Tensor, *, smallest: float, greatest: float) -> Tensor:
    """Keeps each source but for its entries of least and of greatest magnitude, the shares `smallest` and `greatest`.

    Magnitudes are compared in single precision. Entries of equal magnitude stay or go together; at least one stays.
    """
    entries = stack[0].numel()
    above = min(round(greatest * entries), entries - 1)
    below = min(round(smallest * entries), entries - 1 - above)
    if len(stack) == 1 or above == below == 0:
        return stack
    for source in stack:
        magnitude = source.to(torch.float32, copy=True).abs_()
        if below:
            source *= magnitude >= _in_order(magnitude, below)
        if above:
            source *= magnitude <= _in_order(magnitude, entries - 1 - above)
    return stack


def _in_order(values: Tensor, place: int) -> float:
    """The value at this place, from 0, of all in ascending order; numpy finds it ten times as fast as torch."""
    return float(np.partition(values.flatten().numpy(), place)[place])


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
