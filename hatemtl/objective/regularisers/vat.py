"""Keeps predictions steady in the direction in which they change most: virtual adversarial training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hatemtl.objective.regularisers.base import Passes, Regulariser, check_no_guessing, expect
from hatemtl.objective.regularisers.embeddings import check_embeddings, moved, norms, steady, tokens, unit


@dataclass(frozen=True, kw_only=True)
class VAT(Regulariser):
    """KL(p(y | x) ‖ p(y | x + r)), r the direction on the embeddings in which it grows fastest, over all posts of a batch,
    annotated or not, summed over tasks by their weights (Miyato et al. 2019, arXiv:1704.03976; of text, 2017,
    arXiv:1605.07725).

    r = epsilon·‖E‖·d, d of norm 1 for each sequence, ‖E‖ the norm of its embeddings; d ← ∇_r KL at r = xi·‖E‖·d, scaled to
    norm 1, so many times (the power method), from a direction that is drawn. The encoder reads the moved posts without
    dropout, whose noise would drown the difference, and p(y | x) is a constant. Where each task has hidden states of its
    own, d is still the one of all tasks' sum.
    """

    of_any_post = True
    weight: float
    epsilon: float
    xi: float
    iterations: int

    def __post_init__(self) -> None:
        expect(0 <= self.weight < float("inf"), "vat.weight", self.weight, "a number, 0 or more")
        for key in ("epsilon", "xi"):
            value = getattr(self, key)
            expect(0 < value < float("inf"), f"vat.{key}", value, "a share of the embeddings' norm above 0, such as 0.05")
        expect(
            self.iterations >= 0,
            "vat.iterations",
            self.iterations,
            "0 (a random direction) or more steps of the power method",
        )

    def check(self, forward: Passes) -> None:
        check_no_guessing(forward, "vat")
        check_embeddings(forward, "vat")

    def terms(self, forward: Passes, batch: Any, hidden: Tensor | None, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with forward.without_dropout():
            with torch.no_grad():
                clean = steady(forward, batch, hidden, [*logits])
                size = norms(forward.embed(batch) * tokens(batch))
            direction = self.direction(forward, batch, clean, size)
            found = self.divergences(forward, batch, clean, self.epsilon * size * direction)
        return {"divergence": found.mean()}

    def direction(self, forward: Passes, batch: Any, clean: Mapping[str, Tensor], size: Tensor) -> Tensor:
        """Finds (S, T, E) of norm 1 for each sequence, 0 at padding, in which the divergence grows fastest."""
        words = forward.embed(batch)
        found = unit(torch.randn(words.shape, device=words.device) * tokens(batch))
        for _ in range(self.iterations):
            with forward.gradients():
                shift = (self.xi * size * found).requires_grad_()
                (found,) = torch.autograd.grad(self.divergences(forward, batch, clean, shift).sum(), shift)
            found = unit(found * tokens(batch))
        return found

    def divergences(self, forward: Passes, batch: Any, clean: Mapping[str, Tensor], shift: Tensor) -> Tensor:
        """Computes KL(p(y | x) ‖ p(y | x + shift)) of each post, summed over tasks by their weights, (B,)."""
        said = forward(batch, [*clean], moved(forward.embed(batch), shift))
        mask = batch.first(batch.attention_mask)
        each = {task: forward.heads[task].kl(clean[task], said[task], mask) for task in clean}
        return torch.stack([forward.weights[task] * of for task, of in each.items()]).sum(dim=0)
