"""Predicts one label a post."""

from collections.abc import Sequence

from torch import Generator, Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from hatemtl.heads.base import Figure, Head, Pool, Pooling, feed_forward, label_weights, masked_mean
from hatemtl.heads.confusion import class_rows, confusion, divergence, likeliest, matthews, surprise
from hatemtl.labels import LabelSpace


class MulticlassHead(Head):
    """Softmax over C labels, trained by cross-entropy."""

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
    ) -> None:
        primaries = ["macro_f1", "accuracy", "matthews", *(f"f1_{name}" for name in space.names)]
        super().__init__(space, primary, primaries, label_smoothing=label_smoothing, balance=balance)
        self.pool = Pool(pooling, hidden_size)
        self.layers = feed_forward(hidden_size, len(space), layers=layers, dropout=dropout)

    def observe(self, values: Tensor) -> None:
        self.weights.copy_(label_weights(values, len(self.space), self.balance))

    def loss(self, logits: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.label_smoothing)
        return masked_mean(losses, self.weights[targets] * has)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1)

    def metric(self) -> Metric:
        return confusion(len(self.space), likeliest)

    def rows(self, computed: Tensor) -> list[Figure]:
        return [*class_rows(computed, self.space.names), Figure("matthews", None, matthews(computed))]

    def decode(self, scores: Sequence[float], words: Sequence[str]) -> list[str]:
        return [self.space.names[max(range(len(scores)), key=scores.__getitem__)]]

    def surprise(self, logits: Tensor, draw: Generator) -> Tensor:
        return surprise(logits, draw)

    def entropy(self, logits: Tensor) -> Tensor:
        return -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()

    def divergence(self, first: Tensor, second: Tensor, attention_mask: Tensor) -> Tensor:
        return divergence(first, second)
