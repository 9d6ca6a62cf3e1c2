"""What one step sees: posts as padded token ids, and each task's targets."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

IGNORED = -100.0  # a token that counts in no loss and no metric: special, padding, or not the first piece of its word
PAD_TO = 8  # the matrix units of a GPU take no smaller step


def padded(lengths: np.ndarray) -> np.ndarray:
    """Lengths in tokens as a batch on a GPU pads them, up to the next multiple of `PAD_TO`."""
    return -(-lengths // PAD_TO) * PAD_TO


@dataclass
class Batch:
    """B posts of T token ids with the targets of every task.

    input_ids, attention_mask: (B, T) int64.
    targets[task]: (B,) int64 for multiclass, (B, C) float32 for multilabel, (B, T) float32 for tokens, `IGNORED` where a
        token does not count. A post without that task's annotation holds zeros (`IGNORED` for tokens).
    has[task]: (B,) bool, whether the post carries that task's annotation.
    posts: (B,) int64, where each post stands in the datamodule's pool.
    prefix: (B, T, D), what the encoder's frozen lowest layers make of the posts, where that was computed beforehand.
    tokens: how many of the B times T places hold a token; a plain number, so that counting waits for no GPU.
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: dict[str, Tensor]
    has: dict[str, Tensor]
    posts: Tensor
    prefix: Tensor | None = None
    tokens: int = -1  # counted from the mask if not given

    def __post_init__(self) -> None:
        if self.tokens < 0:
            self.tokens = int(self.attention_mask.sum())

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> "Batch":
        """The same batch on another device; to a GPU without waiting for the copy, unless told otherwise."""
        if non_blocking is None:
            non_blocking = torch.device(device).type == "cuda"
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, for the DataLoader."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        def changed(value: Tensor | dict[str, Tensor] | int | None) -> Tensor | dict[str, Tensor] | int | None:
            if isinstance(value, dict):
                return {key: change(item) for key, item in value.items()}
            return change(value) if isinstance(value, Tensor) else value

        return Batch(**{field.name: changed(getattr(self, field.name)) for field in fields(self)})  # type: ignore[arg-type]
