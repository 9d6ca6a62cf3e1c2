"""Weighs the losses of several tasks against one another; called by training alone, for nothing else may move its state."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hatemtl.objective.step import Step


class Weighting(nn.Module):
    """Gives the scalar that is trained from a scalar loss a task. tasks: the weight that each declares."""

    def __init__(self, *, tasks: Mapping[str, float]) -> None:
        super().__init__()
        self.tasks = dict(tasks)

    def forward(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        raise NotImplementedError


class Sum(Weighting):
    """Σ weight·loss over tasks, with the fixed weight that each task declares."""

    def forward(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        return torch.stack([self.tasks[task] * loss for task, loss in losses.items()]).sum()


class Uncertainty(Weighting):
    """Σ exp(-s)·weight·loss + s/2 over tasks, s = log σ² learned (Kendall et al. 2018, arXiv:1705.07115, eq. 10)."""

    def __init__(self, *, tasks: Mapping[str, float]) -> None:
        super().__init__(tasks=tasks)
        self.log_variance = nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in tasks})

    def forward(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        terms = []
        for task, loss in losses.items():
            s = self.log_variance[task]  # which stays where it is if no post of the batch has the task
            terms.append(torch.exp(-s) * self.tasks[task] * loss + step.present[task] * s / 2)
        return torch.stack(terms).sum()
