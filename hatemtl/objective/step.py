"""Shows a weighting the way from the losses of a batch to the gradients of one optimizer step."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from hatemtl.errors import UserError


@dataclass(frozen=True)
class Step:
    """One batch whose losses are known and whose gradients are not yet.

    epoch: counted from 0. shared: the parameters that tasks share, the encoder side's, trained or not.
    hidden: (S, T, D), the hidden states that all heads read; None where each task has its own.
    has: for each task (B,), whether a post carries its annotation.
    """

    epoch: int
    shared: Iterable[nn.Parameter]
    hidden: Tensor | None
    has: Mapping[str, Tensor]

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """Lists the trained parameters that tasks share."""
        return [parameter for parameter in self.shared if parameter.requires_grad]

    @cached_property
    def present(self) -> dict[str, Tensor]:
        """Gives a number a task, 1 where a post carries its annotation, else 0; no row count leaves the device."""
        return {task: has.any().float() for task, has in self.has.items()}

    def gradients(self, losses: Mapping[str, Tensor], *, of_hidden: bool = False) -> Tensor:
        """Computes each task's gradient, (K, P) float32: of the shared parameters, K backward passes, or of the states.

        Raises UserError where there is nothing shared to take gradients of.
        """
        if of_hidden and self.hidden is None:
            raise UserError("gradients of hidden states: this method computes some for each task; take those of parameters")
        shared = [self.hidden] if of_hidden and self.hidden is not None else [*self.parameters]
        if not any(tensor.requires_grad for tensor in shared):
            raise UserError("this weighting needs gradients of what tasks share, and nothing shared is trained")
        rows = []
        for loss in losses.values():
            found = torch.autograd.grad(loss, shared, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([part.detach().float().flatten() for part in found]))
        return torch.stack(rows)
