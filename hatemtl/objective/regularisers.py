"""Adds terms to the losses of tasks, which no weighting of theirs sees: what a network should do whatever labels say."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hatemtl.errors import UserError
from hatemtl.heads.base import masked_mean


class Passes(Protocol):
    """A way through the network: `network.forward.Forward`, as a regulariser sees it."""

    encoder: nn.Module
    heads: Any

    def __call__(self, batch: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]: ...
    def encode(self, batch: Any, embeddings: Tensor | None = None) -> Tensor: ...
    def embed(self, batch: Any) -> Tensor: ...
    def read(self, hidden: Tensor, batch: Any, tasks: Iterable[str]) -> dict[str, Tensor]: ...


class Regulariser(Protocol):
    """Terms of a batch beside its losses, each to be weighed by `weight`."""

    weight: float

    def check(self, forward: Passes) -> None:
        """Raises UserError where on this network the terms would say nothing."""

    def terms(self, forward: Passes, batch: Any, hidden: Tensor | None, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gives scalars by name. hidden: (S, T, D), None where each task has its own. logits: by task, as in training."""


@dataclass(frozen=True, kw_only=True)
class RDrop:
    """Draws two passes under dropout together (Liang et al. 2021, arXiv:2106.14448): the mean of both Kullback-Leibler
    divergences between their predictions, over a task's annotated posts, summed over tasks; losses are the first pass's.
    """

    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise UserError(f"regulariser.r_drop.weight={self.weight}: expected a number, 0 or more")

    def check(self, forward: Passes) -> None:
        for task, head in forward.heads.items():
            if head.space.about == "masked tokens":
                raise UserError(f"regulariser=[r_drop]: task {task!r} guesses tokens; leave it out of tasks=[...]")
        drops = [m for part in (forward.encoder, *forward.heads.values()) for m in part.modules()]
        if not any(isinstance(module, nn.Dropout) and module.p > 0 for module in drops):
            raise UserError(
                "regulariser=[r_drop] needs dropout, without which two passes are one; type method.body_dropout=true"
            )

    def terms(self, forward: Passes, batch: Any, hidden: Tensor | None, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        again = forward(batch, [*logits])
        mask = batch.first(batch.attention_mask)
        of_posts = {task: forward.heads[task].divergence(logits[task], again[task], mask) for task in logits}  # (B,)
        terms = [masked_mean(found, batch.has[task].float()) for task, found in of_posts.items()]
        return {"divergence": torch.stack(terms).sum()}
