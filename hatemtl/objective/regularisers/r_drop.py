"""Draws two passes under dropout together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.heads.base import masked_mean
from hatemtl.objective.regularisers.base import Passes, Regulariser, check_no_guessing, drops, expect


@dataclass(frozen=True, kw_only=True)
class RDrop(Regulariser):
    """Draws two passes under dropout together (Liang et al. 2021, arXiv:2106.14448): the mean of both Kullback-Leibler
    divergences between their predictions, over a task's annotated posts, summed over tasks by their weights; losses are the
    first pass's.
    """

    by_passes = True
    weight: float

    def __post_init__(self) -> None:
        expect(0 <= self.weight < float("inf"), "r_drop.weight", self.weight, "a number, 0 or more")

    def check(self, forward: Passes) -> None:
        check_no_guessing(forward, "r_drop")
        if not drops(forward):
            raise UserError(
                "regulariser=[r_drop] needs dropout in the encoder, without which it says the same in both passes; type "
                "method.body_dropout=true"
            )

    def terms(self, forward: Passes, batch: Any, hidden: Tensor | None, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        again = forward(batch, [*logits])
        mask = batch.first(batch.attention_mask)
        of_posts = {task: forward.heads[task].divergence(logits[task], again[task], mask) for task in logits}  # (B,)
        terms = [forward.weights[task] * masked_mean(of, batch.has[task].float()) for task, of in of_posts.items()]
        return {"divergence": torch.stack(terms).sum()}
