"""Weighs the losses of several tasks against one another."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sum:
    """Σ weight·loss over tasks, with the fixed weight that each task declares."""

    def __call__(self, losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        """One scalar from a scalar a task."""
        return torch.stack([weights[task] * loss for task, loss in losses.items()]).sum()
