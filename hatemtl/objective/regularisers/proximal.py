"""Keeps predictions near those of the average of the weights that training came through: Bregman proximal point steps."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hatemtl.objective.regularisers.base import Passes, Regulariser, Run, check_no_guessing, expect, over_posts
from hatemtl.objective.regularisers.ema import exchanged, trained
from hatemtl.objective.regularisers.embeddings import steady


@dataclass(frozen=True, kw_only=True)
class Proximal(Regulariser):
    """KL(p‖q) + KL(q‖p) of the predictions p of the weights and q of their average, over a task's annotated posts and
    unlabelled ones, summed over tasks by their weights: the other half of SMART (Jiang et al. 2020, arXiv:1911.03437, eq. 4
    and 5; for a number, the square of the difference).

    The average starts at the weights from before the first step and is decay·average + (1 - decay)·weights after each, with
    no correction of its start: early steps shall be small. Neither side has dropout, and q is a constant.
    """

    of_any_post = True
    weight: float
    decay: float

    def __post_init__(self) -> None:
        expect(0 <= self.weight < float("inf"), "proximal.weight", self.weight, "a number, 0 or more")
        expect(0 <= self.decay < 1, "proximal.decay", self.decay, "a number from 0 to below 1, such as 0.99")

    def check(self, forward: Passes) -> None:
        check_no_guessing(forward, "proximal")

    def begin(self, forward: Passes, run: Run) -> "Anchor":
        return Anchor(self, forward)


class Anchor(nn.Module, Regulariser):
    """The average of the trained weights in float32, in their order, and the term that holds predictions to its own."""

    of_any_post = True

    def __init__(self, settings: Proximal, forward: Passes) -> None:
        super().__init__()
        self.weight, self.decay = settings.weight, settings.decay
        self.weights = trained(forward)
        for number, weight in enumerate(self.weights):
            self.register_buffer(str(number), weight.detach().float().clone())

    @property
    def state(self) -> nn.Module:
        return self

    @torch.no_grad()
    def after_update(self, forward: Passes) -> None:
        torch._foreach_lerp_([*self.buffers()], [weight.detach().float() for weight in self.weights], 1 - self.decay)

    def terms(self, forward: Passes, batch: Any, hidden: Tensor | None, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mask = batch.first(batch.attention_mask)
        with forward.without_dropout():
            said = steady(forward, batch, hidden, [*logits])
            with torch.no_grad(), self.in_place():
                before = forward(batch, [*logits])
        far = {task: 2 * forward.heads[task].divergence(said[task], before[task], mask) for task in said}  # (B,)
        return {"divergence": over_posts(far, batch, forward.weights)}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Lets the network compute, inside, with the average.

        Autocast must not answer with its copies of the weights, which training has it keep.
        """
        device = self.weights[0].device.type
        half = torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,
        )
        with exchanged(self.weights, [*self.buffers()]), half:
            yield
