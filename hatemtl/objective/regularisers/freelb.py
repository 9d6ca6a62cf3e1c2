"""Trains on posts whose embeddings are moved against the network, step by step: FreeLB."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hatemtl.objective.regularisers.base import Passes, Regulariser, check_no_guessing, expect
from hatemtl.objective.regularisers.embeddings import check_embeddings, moved, norms, tokens, unit


@dataclass(frozen=True, kw_only=True)
class FreeLB(Regulariser):
    """The mean over `steps` points of an ascent of Σ weight·loss over tasks at embeddings X + δ (Zhu et al. 2020,
    arXiv:1909.11764, algorithm 1, whose loss is this term alone; here it stands beside that of X).

    δ starts uniform in ±init·‖X‖/√n, n the numbers of a sequence's tokens; each step adds lr·‖X‖ along its gradient, scaled
    to norm 1, and takes δ back to the ball of norm max_norm·‖X‖. ‖X‖: the norm of a sequence's own embeddings. A step gives
    the gradients of δ and of the weights by one backward pass; those of the weights are added up, as there, and reach them
    with the term's own.
    """

    weight: float
    steps: int
    lr: float
    max_norm: float
    init: float

    def __post_init__(self) -> None:
        expect(0 <= self.weight < float("inf"), "freelb.weight", self.weight, "a number, 0 or more")
        expect(self.steps >= 1, "freelb.steps", self.steps, "at least 1 step")
        for key in ("lr", "max_norm"):
            value = getattr(self, key)
            expect(0 < value < float("inf"), f"freelb.{key}", value, "a share of the embeddings' norm above 0, such as 0.05")
        expect(0 <= self.init <= self.max_norm, "freelb.init", self.init, f"a share from 0 to max_norm, {self.max_norm}")

    def check(self, forward: Passes) -> None:
        check_no_guessing(forward, "freelb")
        check_embeddings(forward, "freelb")

    def terms(self, forward: Passes, batch: Any, hidden: Tensor | None, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inside, words = tokens(batch), forward.embed(batch).detach().float()
        size = norms(words * inside)
        numbers = inside.sum(dim=1, keepdim=True) * words.shape[-1]  # (S, 1, 1)
        shift = (2 * torch.rand_like(words) - 1) * inside * self.init * size * numbers.rsqrt()
        parts = [*([forward.encoder] if forward.learns else []), *(forward.heads[task] for task in logits)]
        weights = [weight for part in parts for weight in part.parameters() if weight.requires_grad]
        if not torch.is_grad_enabled():
            weights = []
        value, sums = torch.zeros((), device=words.device), [torch.zeros_like(weight) for weight in weights]
        learns, forward.learns = forward.learns, True  # while the heads learn alone, δ needs its gradient all the same
        try:
            for _ in range(self.steps):
                with torch.enable_grad():
                    shift = shift.detach().requires_grad_()
                    loss = self.loss(forward, batch, [*logits], shift)
                    slope, *found = torch.autograd.grad(loss, [shift, *weights], allow_unused=True)
                value = value + loss.detach() / self.steps
                for total, gradient in zip(sums, found, strict=True):
                    if gradient is not None:
                        total.add_(gradient, alpha=1 / self.steps)
                with torch.no_grad():
                    shift = shift + self.lr * size * unit(slope * inside)
                    shift = shift * (self.max_norm * size / norms(shift).clamp(min=1e-30)).clamp(max=1)
        finally:
            forward.learns = learns
        # of the value of the loss, and of a gradient that is the sum
        terms = [(weight * total).sum() for weight, total in zip(weights, sums, strict=True)]
        linear = torch.stack(terms).sum() if terms else value.new_zeros(())
        return {"loss": value + linear - linear.detach()}

    def loss(self, forward: Passes, batch: Any, tasks: list[str], shift: Tensor) -> Tensor:
        """Computes Σ weight·loss over the tasks at moved embeddings."""
        said = forward(batch, tasks, moved(forward.embed(batch), shift))
        losses = {task: forward.heads[task].loss(said[task], batch.learned(task), batch.has[task]) for task in tasks}
        return torch.stack([forward.weights[task] * loss for task, loss in losses.items()]).sum()
