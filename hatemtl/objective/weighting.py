"""Weighs the losses of several tasks against one another; called by training alone, for nothing else may move its state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """Tells of what an optimizer step learns from beside its losses.

    epoch: counted from 0. has: for each task of any shape, whether anything answers it, as `Head.answers` counts.
    """

    epoch: int
    has: Mapping[str, Tensor]

    @cached_property
    def present(self) -> dict[str, Tensor]:
        """Gives a number a task, 1 where anything answers it, else 0; no row count leaves the device."""
        return {task: has.any().float() for task, has in self.has.items()}


class Weighting(nn.Module):
    """Gives the scalar that is trained from a scalar loss a task: its derivative by a loss is the weight of that task.

    tasks: the weight that each declares; of 0, none of its posts counts. What it learns of each stands in an
        `nn.ParameterDict` by task, and stays where it is in a step without the task.
    What it draws, it draws from torch's global CPU generator, which training lends it by the seed and the step.
    needs: "losses", each task's for itself; "all losses" of an optimizer step together, over all its batches, whose
        gradients are then taken a task at a time; "gradients" of each task: see `objective.gradients.GradientWeighting`.
    compares: whether it sets the tasks of a step against one another, so that one task alone is trained as under the sum.
    """

    needs: ClassVar[Literal["losses", "all losses", "gradients"]] = "losses"
    compares: ClassVar[bool] = False
    looks_back: ClassVar[bool] = False  # whether it wants the same batches' losses again, after the weights have moved

    def __init__(self, *, tasks: Mapping[str, float]) -> None:
        super().__init__()
        self.tasks = dict(tasks)

    def forward(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        return self.summed(losses)

    def summed(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Computes Σ weight·loss, with the weight that each task declares."""
        return torch.stack([self.tasks[task] * loss for task, loss in losses.items()]).sum()

    def check(self, shared: Sequence[str]) -> None:
        """Raises UserError where nothing can be weighed by these names of the encoder side's trained parameters."""

    def rest(self, has: Mapping[str, Tensor]) -> None:
        """Takes the gradients off what is learned of tasks that a step is without: momentum would move even those of 0.

        has: as in `Step`.
        """
        if learned := [module for module in self.modules() if isinstance(module, nn.ParameterDict)]:
            there = torch.stack([some.any() for some in has.values()]).tolist()  # waits for a GPU, once a step
            present = {task for task, some in zip(has, there, strict=True) if some and self.tasks[task]}
            for module in learned:
                for task, parameter in module.items():
                    if task not in present:
                        parameter.grad = None

    def look_back(self, losses: Mapping[str, Tensor], step: Step) -> None:
        """Sees the losses of the batches that the weights have just been moved by, computed again."""

    def laid_out(self, losses: Mapping[str, Tensor], step: Step) -> tuple[Tensor, Tensor]:
        """Lays weight·loss out in the order of all tasks, (K,), and 1 where a task has a post here and a weight, else 0."""
        zero = next(iter(losses.values())).new_zeros(())
        values = [weight * losses.get(task, zero) for task, weight in self.tasks.items()]
        there = [step.present[task] if task in losses and weight else zero for task, weight in self.tasks.items()]
        return torch.stack(values), torch.stack(there)


class Sum(Weighting):
    """Σ weight·loss over tasks, with the fixed weight that each task declares."""
