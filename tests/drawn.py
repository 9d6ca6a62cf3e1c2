"""LoRA sources drawn at random, for tests of merging."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hatemtl.merging.base import Merge, Update, merge_each
from hatemtl.merging.base import merge_factors as factors_and_lost
from hatemtl.merging.lora import LoRAUpdate, Updates

OUT, IN = 24, 17
LAYERS = ("encoder.0.query", "encoder.0.value", "encoder.1.query")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def update(
    rank: int,
    scale: float = 1.0,
    seed: int = 0,
    out: int = OUT,
    into: int = IN,
    dtype: torch.dtype = torch.float32,
) -> LoRAUpdate:
    draw = torch.Generator().manual_seed(seed)
    A, B = torch.randn(rank, into, generator=draw), torch.randn(out, rank, generator=draw)
    return LoRAUpdate(A.to(dtype), B.to(dtype), scale)


def source(
    seed: int,
    *,
    rank: int = 4,
    scale: float = 2.0,
    layers: Sequence[str] = LAYERS,
    dtype: torch.dtype = torch.float32,
) -> dict[str, LoRAUpdate]:
    """A LoRA of one rank and scale on these layers."""
    return {layer: update(rank, scale, 1000 * seed + i, dtype=dtype) for i, layer in enumerate(layers)}


def unlike(seed: int) -> list[dict[str, LoRAUpdate]]:
    """One to five LoRAs, each of a rank, a scale of either sign, a number format and a subset of the layers of its own."""
    draw = torch.Generator().manual_seed(seed)

    def number(high: int) -> int:
        return int(torch.randint(high, (), generator=draw))

    sources = []
    for i in range(1 + number(5)):
        layers = [layer for layer in LAYERS if number(4)] or list(LAYERS)
        scale = float(4 * torch.randn((), generator=draw))
        sources.append(
            source(100 * seed + i, rank=1 + number(8), scale=scale, layers=layers, dtype=DTYPES[number(len(DTYPES))])
        )
    return sources


def mean(sources: Sequence[Updates]) -> dict[str, torch.Tensor]:
    """The mean of the updates as it is defined, over dense matrices."""
    layers = dict.fromkeys(layer for source in sources for layer in source)
    zero = torch.zeros(OUT, IN, dtype=torch.float64)
    return {layer: sum((s[layer].dense() for s in sources if layer in s), zero) / len(sources) for layer in layers}


def cut(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, float]:
    """The truncated SVD of a matrix, and the share of its energy that is lost."""
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank] * S[:rank] @ Vh[:rank], float(S[rank:].square().sum() / S.square().sum())


def whole(update: Update) -> torch.Tensor:
    """An update as the matrix that it is."""
    return update.dense() if isinstance(update, LoRAUpdate) else update


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The relative Frobenius distance of a from b."""
    return float((a - b).norm() / b.norm())


def merge_dense(merge: Merge, sources: Sequence[Mapping[str, Update]]) -> dict[str, Tensor]:
    """All that `merge_each` gives, at once."""
    return dict(merge_each(merge, sources))


class Merged(NamedTuple):
    """What `merge_factors` gives, by name."""

    updates: dict[str, LoRAUpdate]
    lost: dict[str, float]


def merge_factors(merge: Merge, sources: Sequence[Updates], rank: int | None) -> Merged:
    return Merged(*factors_and_lost(merge, sources, rank))
