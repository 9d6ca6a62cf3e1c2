"""Predicts one label a post."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from hatemtl.heads.base import (
    Figure,
    Pool,
    Pooling,
    check_balance,
    check_label_smoothing,
    check_primary,
    feed_forward,
    label_weights,
    masked_mean,
)
from hatemtl.heads.confusion import Confusion, label_rows, likeliest, matthews
from hatemtl.labels import Kind, LabelSpace


class MulticlassHead(nn.Module):
    """Softmax over C labels, trained by cross-entropy.

    layers: linear layers, GELU between them. label_smoothing: share of the target spread over all labels.
    balance: exponent of the inverse label frequency that weighs the loss: 0 not at all, 1 every label alike.
    primary: the row by which epochs are compared: macro_f1, accuracy, matthews or f1_LABEL.
    """

    kind: ClassVar[Kind] = "multiclass"

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
    ) -> None:
        super().__init__()
        check_label_smoothing(label_smoothing)
        check_balance(balance)
        self.primary = check_primary(primary, ["macro_f1", "accuracy", "matthews", *(f"f1_{name}" for name in space.names)])
        self.space, self.balance, self.label_smoothing = space, balance, label_smoothing
        self.pool = Pool(pooling, hidden_size)
        self.layers = feed_forward(hidden_size, len(space), layers=layers, dropout=dropout)
        self.label_weights: Tensor
        self.register_buffer("label_weights", torch.ones(len(space)), persistent=False)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        return self.layers(self.pool(hidden, attention_mask))

    def observe(self, values: Tensor) -> None:
        self.label_weights.copy_(label_weights(values, len(self.space), self.balance))

    def loss(self, logits: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.label_smoothing)
        return masked_mean(losses, self.label_weights[targets] * has)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1)

    def metric(self) -> Metric:
        return Confusion(len(self.space), likeliest)

    def rows(self, computed: Tensor) -> list[Figure]:
        return [*label_rows(computed, self.space.names), Figure("matthews", None, matthews(computed))]

    def decode(self, scores: Sequence[float], words: Sequence[str]) -> list[str]:
        return [self.space.names[max(range(len(scores)), key=scores.__getitem__)]]
