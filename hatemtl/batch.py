"""What one step sees: posts as padded token ids, and each task's targets."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

IGNORED = -100.0  # a token that counts in no loss and no metric: special, padding, or not the first piece of its word


@dataclass
class Batch:
    """B posts of T token ids with the targets of every task.

    input_ids, attention_mask: (B, T) int64.
    targets[task]: (B,) int64 for multiclass, (B, C) float32 for multilabel, (B, T) float32 for tokens, `IGNORED` where a
        token does not count. A post without that task's annotation holds zeros (`IGNORED` for tokens).
    has[task]: (B,) bool, whether the post carries that task's annotation.
    posts: (B,) int64, where each post stands in the datamodule's pool.
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: dict[str, Tensor]
    has: dict[str, Tensor]
    posts: Tensor

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> "Batch":
        """The same batch on another device; to a GPU without waiting for the copy, unless told otherwise."""
        if non_blocking is None:
            non_blocking = torch.device(device).type == "cuda"

        def move(value: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
            if isinstance(value, dict):
                return {key: item.to(device, non_blocking=non_blocking) for key, item in value.items()}
            return value.to(device, non_blocking=non_blocking)

        return Batch(**{field.name: move(getattr(self, field.name)) for field in fields(self)})  # type: ignore[arg-type]

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, for the DataLoader."""
        pinned = {
            field.name: {k: v.pin_memory() for k, v in value.items()} if isinstance(value, dict) else value.pin_memory()
            for field in fields(self)
            for value in (getattr(self, field.name),)
        }
        return Batch(**pinned)  # type: ignore[arg-type]
