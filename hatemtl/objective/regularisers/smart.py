"""Keeps predictions smooth around every post: the regulariser of SMART."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hatemtl.objective.regularisers.base import Passes, Regulariser, check_no_guessing, expect, over_posts
from hatemtl.objective.regularisers.embeddings import check_embeddings, moved, norms, steady, tokens


@dataclass(frozen=True, kw_only=True)
class SMART(Regulariser):
    """KL(p‖q) + KL(q‖p) of the predictions at embeddings x and x̃, over a task's annotated posts and unlabelled ones, summed
    over tasks by their weights (Jiang et al. 2020, arXiv:1911.03437, eq. 2; for a number, the square of the difference).

    x̃ starts at x + noise·N(0, 1), climbs one step of lr along the gradient, scaled so that its largest number is 1, and is
    cut to x ± epsilon; all three are shares of the root mean square of a post's embeddings. Both sides get gradients, and
    neither has dropout. The paper's other half, the Bregman proximal point, is `proximal`.
    """

    of_any_post = True
    weight: float
    noise: float
    lr: float
    epsilon: float

    def __post_init__(self) -> None:
        expect(0 <= self.weight < float("inf"), "smart.weight", self.weight, "a number, 0 or more")
        for key in ("noise", "lr", "epsilon"):
            value = getattr(self, key)
            expect(0 < value < float("inf"), f"smart.{key}", value, "a share of the embeddings' size above 0, such as 0.1")

    def check(self, forward: Passes) -> None:
        check_no_guessing(forward, "smart")
        check_embeddings(forward, "smart")

    def terms(self, forward: Passes, batch: Any, hidden: Tensor | None, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with forward.without_dropout():
            clean = steady(forward, batch, hidden, [*logits])
            shift = self.shift(forward, batch, {task: said.detach() for task, said in clean.items()})
            return {"divergence": self.divergence(forward, batch, clean, shift)}

    def shift(self, forward: Passes, batch: Any, clean: Mapping[str, Tensor]) -> Tensor:
        """Finds x̃ - x, (S, T, E), 0 at padding."""
        inside, words = tokens(batch), forward.embed(batch).detach().float()
        size = norms(words * inside) * (inside.sum(dim=1, keepdim=True) * words.shape[-1]).rsqrt()  # (S, 1, 1)
        with forward.gradients():
            start = (self.noise * size * torch.randn_like(words) * inside).requires_grad_()
            (slope,) = torch.autograd.grad(self.divergence(forward, batch, clean, start), start)
        slope = slope * inside
        slope = slope / slope.abs().amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        reach = self.epsilon * size
        return (start.detach() + self.lr * size * slope).clamp(min=-reach, max=reach)

    def divergence(self, forward: Passes, batch: Any, clean: Mapping[str, Tensor], shift: Tensor) -> Tensor:
        """Computes the term at x̃ = x + shift."""
        said = forward(batch, [*clean], moved(forward.embed(batch), shift))
        mask = batch.first(batch.attention_mask)
        both = {task: 2 * forward.heads[task].divergence(clean[task], said[task], mask) for task in clean}  # (B,)
        return over_posts(both, batch, forward.weights)
