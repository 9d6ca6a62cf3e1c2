"""One label a post."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassStatScores

from hatemtl.errors import UserError
from hatemtl.heads.base import Pool, Pooling, check_balance, count_rows, f1, feed_forward, masked_mean
from hatemtl.labels import LabelSpace


class MulticlassHead(nn.Module):
    """Softmax over C labels, trained by cross-entropy.

    layers: linear layers, GELU between them. label_smoothing: share of the target spread over all labels.
    balance: exponent of the inverse label frequency that weighs the loss: 0 not at all, 1 every label alike.
    """

    primary = "macro_f1"

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
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"head label_smoothing={label_smoothing}: expected a share below 1")
        check_balance(balance)
        self.space, self.balance, self.label_smoothing = space, balance, label_smoothing
        self.pool = Pool(pooling, hidden_size)
        self.layers = feed_forward(hidden_size, len(space), layers=layers, dropout=dropout)
        self.label_weights: Tensor
        self.register_buffer("label_weights", torch.ones(len(space)), persistent=False)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        return self.layers(self.pool(hidden, attention_mask))

    def weigh(self, positives: Tensor, total: int) -> None:
        frequency = positives.clamp(min=1) / max(total, 1)
        self.label_weights.copy_((1 / (len(self.space) * frequency)) ** self.balance)

    def loss(self, logits: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.label_smoothing)
        return masked_mean(losses, self.label_weights[targets] * has)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1)

    def metric(self) -> Metric:
        return MulticlassCounts(len(self.space))

    def rows(self, computed: Tensor) -> dict[str, float]:
        counts = {name: tuple(row) for name, row in zip(self.space.names, computed.long().tolist(), strict=True)}
        f1s = {name: f1(*triple) for name, triple in counts.items()}
        tp, fn = (sum(triple[i] for triple in counts.values()) for i in (0, 2))
        return {
            **{f"f1_{name}": value for name, value in f1s.items()},
            "macro_f1": sum(f1s.values()) / len(f1s),
            "accuracy": tp / (tp + fn) if tp + fn else 0.0,
            **count_rows(counts),
        }

    def decode(self, scores: Sequence[float], words: Sequence[str]) -> list[str]:
        return [self.space.names[max(range(len(scores)), key=scores.__getitem__)]]


class MulticlassCounts(Metric):
    """True positives, false positives and false negatives of each label, (C, 3), over the posts that are annotated."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.counts = MulticlassStatScores(labels, average=None, ignore_index=-1, validate_args=False)

    def update(self, scores: Tensor, targets: Tensor, has: Tensor) -> None:
        self.counts.update(scores, targets.where(has, -1))

    def compute(self) -> Tensor:
        return self.counts.compute()[:, [0, 1, 3]]
