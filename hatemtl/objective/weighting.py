"""How the losses of several tasks become one, or steps of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hatemtl.errors import UserError, did_you_mean

Step = Literal["joint", "per_task"]


def check_step(step: str) -> None:
    """Raises UserError where losses cannot be stepped so."""
    if step not in get_args(Step):
        raise UserError(f"weighting.step={step}: {did_you_mean(step, get_args(Step))}")


@dataclass(frozen=True, kw_only=True)
class Sum:
    """Σ weight·loss over tasks, with the fixed weight that each task declares.

    step: `joint`, one optimizer step a batch on the sum; `per_task`, one for each task's term alone (see `apart`).
    """

    step: Step = "joint"

    def __post_init__(self) -> None:
        check_step(self.step)

    def __call__(self, losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        """One scalar from a scalar a task."""
        return torch.stack([weights[task] * loss for task, loss in losses.items()]).sum()


def apart(
    batches: Sequence[np.ndarray], has: Mapping[str, np.ndarray], accumulate: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, str]]:
    """Every batch of rows once for each task that annotates posts in it, with these posts alone, in random order.

    has[task]: (N,) whether the post carries the task's annotation. accumulate: how many make an optimizer step: so many of
    one task follow each other. Those left over come last, where a step may hold more than one task's.
    """
    steps = []
    for task, annotated in has.items():
        mine = [(rows[annotated[rows]], task) for rows in batches if annotated[rows].any()]
        steps += [mine[i : i + accumulate] for i in range(0, len(mine), accumulate)]
    whole, rest = ([step for step in steps if (len(step) == accumulate) is full] for full in (True, False))
    return [use for step in (*(whole[i] for i in rng.permutation(len(whole))), *rest) for use in step]
