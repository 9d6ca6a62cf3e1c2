"""The mean of LoRA updates: as it is defined, and as factor averaging approximates it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from hatemtl.errors import UserError
from hatemtl.merging.lora import LoRAUpdate, Updates, combine, truncate


class Merge(Protocol):
    """A way to make one set of LoRA updates out of several, layer by layer."""

    def __call__(self, sources: Sequence[Updates]) -> tuple[dict[str, LoRAUpdate], dict[str, float]]:
        """The merged update and the share of its energy ‖ΔW‖² that was cut away, each by layer.

        A layer that a source does not adapt counts as an update of zero.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Exact:
    """The true mean of the updates, (1/n)·Σ sᵢ·Bᵢ·Aᵢ, cut back to the best rank `rank`, or kept whole if None."""

    rank: int | None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise UserError(
                f"merge.rank={self.rank}: expected a whole number from 1, or null for the lossless concatenation"
            )

    def __call__(self, sources: Sequence[Updates]) -> tuple[dict[str, LoRAUpdate], dict[str, float]]:
        merged, lost = {}, {}
        for layer in dict.fromkeys(layer for source in sources for layer in source):
            updates = [source[layer] for source in sources if layer in source]
            whole = combine(updates, [1 / len(sources)] * len(updates))
            if self.rank is None or self.rank >= whole.rank:
                merged[layer], lost[layer] = whole, 0.0
            else:
                merged[layer], lost[layer] = truncate(whole, self.rank)
        return merged, lost


@dataclass(frozen=True, kw_only=True)
class Linear:
    """What AdapterHub's `average_adapter("linear")` does: the mean of the A's and the mean of the B's, apart.

    It is near the mean of the updates only where the sources started from the same A; kept to compare with.
    """

    def __call__(self, sources: Sequence[Updates]) -> tuple[dict[str, LoRAUpdate], dict[str, float]]:
        layers = list(sources[0])
        shapes = {layer: sources[0][layer].A.shape for layer in layers}
        for source in sources[1:]:
            if {layer: update.A.shape for layer, update in source.items()} != shapes:
                raise UserError(
                    "merge=linear needs sources of one rank on the same layers; use merge=exact, which takes any"
                )
        if len({update.scale for source in sources for update in source.values()}) > 1:
            raise UserError("merge=linear needs sources of one scale alpha / rank; use merge=exact, which takes any")
        merged = {
            layer: LoRAUpdate(
                torch.stack([source[layer].A for source in sources]).mean(0),
                torch.stack([source[layer].B for source in sources]).mean(0),
                sources[0][layer].scale,
            )
            for layer in layers
        }
        return merged, dict.fromkeys(layers, 0.0)
