"""Predicts one label a post."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from hatemtl.errors import UserError
from hatemtl.heads.base import Head, LabelWeights, carried, drawn_loss, grouped, label_weights, masked_mean
from hatemtl.heads.figures import Figure, label_rows
from hatemtl.heads.layers import Pool, Pooling, counting, feed_forward
from hatemtl.heads.losses import ClassBalanced, Loss
from hatemtl.labels import LabelSpace


class MulticlassHead(Head):
    """Softmax over C labels, trained by cross-entropy, or by another `loss`.

    Targets are labels' places (B,), or the shares of annotators that gave each label, (B, C), which sum to 1.
    """

    kind = "multiclass"
    problem = "single_label_classification"
    has_entropy = True

    def __init__(
        self,
        *,
        hidden_size: int,
        space: LabelSpace,
        pooling: Pooling,
        layers: int,
        dropout: float,
        label_smoothing: float,
        balance: float,
        primary: str = "macro_f1",
        loss: Loss | None = None,
        label_weights: LabelWeights | None = None,
        lexicon: str | None = None,
        counts: int = 0,
    ) -> None:
        primaries = ["macro_f1", "accuracy", "matthews", *(f"f1_{name}" for name in space.names)]
        if balance and isinstance(loss, ClassBalanced):
            raise UserError(
                f"head balance={balance}: its loss weighs labels by their frequency as well; type "
                f"tasks.TASK.head.balance=0, or tasks.TASK.head.loss=focal"
            )
        shared: dict[str, Any] = {"label_smoothing": label_smoothing, "balance": balance}
        super().__init__(space, primary, primaries, **shared, loss=loss, label_weights=label_weights)
        self.pool, self.counts = Pool(pooling, hidden_size), counting(lexicon, counts)
        self.layers = feed_forward(hidden_size, len(space), layers=layers, dropout=dropout, counts=counts)

    def observe(self, values: Tensor) -> None:
        self.weights.copy_(label_weights(values, len(self.space), self.balance))
        self.weigh(torch.bincount(values, minlength=len(self.space)))

    def worth(self, targets: Tensor) -> Tensor:
        weights = self.weights * self.label_weights
        return targets @ weights if targets.is_floating_point() else weights[targets]

    def loss(self, logits: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        if targets.is_floating_point():
            weights = self.weights * self.label_weights
            return masked_mean(self.loss_of.smoothed(logits, self.label_smoothing), targets * weights * has[:, None])
        return masked_mean(self.loss_of.of_label(logits, targets, self.label_smoothing), self.worth(targets) * has)

    def losses_by_label(self, logits: Tensor, targets: Tensor, has: Tensor) -> tuple[Tensor, Tensor]:
        shares = targets if targets.is_floating_point() else carried(targets, len(self.space))
        weights = self.weights * self.label_weights
        return grouped(self.loss_of.smoothed(logits, self.label_smoothing), shares * weights * has[:, None])

    def rows(self, computed: Tensor) -> list[Figure]:
        return [*class_rows(computed, self.space.names), Figure("matthews", None, matthews(computed))]

    def surprise(self, logits: Tensor, draw: Generator) -> Tensor:
        return drawn_loss(logits, draw)


def class_rows(matrix: Tensor, names: Sequence[str]) -> list[Figure]:
    """Gives the rows of `label_rows`, with the accuracy."""
    right, posts = matrix.diagonal(), int(matrix.sum())
    counts = torch.stack([right, matrix.sum(dim=0) - right, matrix.sum(dim=1) - right], dim=1)
    return label_rows(counts, names, Figure("accuracy", None, int(right.sum()) / posts if posts else 0.0))


def matthews(matrix: Tensor) -> float:
    """Computes Matthews' correlation of any number of labels (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006, eq. 8).

    0 where only one label was predicted, or only one occurs.
    """
    exact = matrix.double()
    given, true, posts = exact.sum(dim=0), exact.sum(dim=1), exact.sum()
    shared = posts * exact.trace() - given @ true
    scale = ((posts**2 - given @ given) * (posts**2 - true @ true)).sqrt()
    return float(shared / scale) if scale > 0 else 0.0
