"""Predicts any number of labels a post."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MultilabelStatScores

from hatemtl.errors import UserError
from hatemtl.heads.base import (
    Figure,
    Pool,
    Pooling,
    binary_losses,
    check_balance,
    check_label_smoothing,
    check_primary,
    count_rows,
    f1,
    feed_forward,
    masked_mean,
    positive_weights,
    reach,
)
from hatemtl.labels import Kind, LabelSpace


class MultilabelHead(nn.Module):
    """A sigmoid for each of C labels, trained by binary cross-entropy; soft targets in [0, 1] are taken as they are.

    threshold: the score from which a label is predicted. layers: linear layers, GELU between them.
    balance: exponent of the ratio of negatives to positives that weighs a label's positives: 0 not at all, 1 fully.
    label_smoothing: the share ε of each target that is spread over yes and no: y·(1 - ε) + ε/2, as in `binary_losses`.
    primary: the row by which epochs are compared: macro_f1, micro_f1 or f1_LABEL.
    """

    kind: ClassVar[Kind] = "multilabel"

    def __init__(
        self,
        *,
        hidden_size: int,
        space: LabelSpace,
        pooling: Pooling,
        layers: int,
        dropout: float,
        threshold: float,
        balance: float,
        primary: str = "macro_f1",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < threshold < 1:
            raise UserError(f"head threshold={threshold}: expected a probability between 0 and 1")
        check_balance(balance)
        check_label_smoothing(label_smoothing)
        self.primary = check_primary(primary, ["macro_f1", "micro_f1", *(f"f1_{name}" for name in space.names)])
        self.space, self.balance, self.threshold = space, balance, threshold
        self.label_smoothing = label_smoothing
        self.pool = Pool(pooling, hidden_size)
        self.layers = feed_forward(hidden_size, len(space), layers=layers, dropout=dropout)
        self.positive_weights: Tensor
        self.register_buffer("positive_weights", torch.ones(len(space)), persistent=False)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        return self.layers(self.pool(hidden, attention_mask))

    def observe(self, values: Tensor) -> None:
        self.positive_weights.copy_(positive_weights(values, self.balance))

    def loss(self, logits: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        losses = binary_losses(logits, targets, self.positive_weights, self.label_smoothing)
        return masked_mean(losses.mean(dim=1), has.to(losses.dtype))

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def metric(self) -> Metric:
        return MultilabelCounts(len(self.space), self.threshold)

    def rows(self, computed: Tensor) -> list[Figure]:
        counts = {name: tuple(row) for name, row in zip(self.space.names, computed.long().tolist(), strict=True)}
        f1s = {name: f1(*triple) for name, triple in counts.items()}
        return [
            *(Figure("f1", name, value) for name, value in f1s.items()),
            Figure("macro_f1", None, sum(f1s.values()) / len(f1s)),
            Figure("micro_f1", None, f1(*(sum(triple[i] for triple in counts.values()) for i in range(3)))),
            *count_rows(counts),
        ]

    def decode(self, scores: Sequence[float], words: Sequence[str]) -> list[str]:
        chosen = reach(scores, self.threshold).tolist()
        return [name for name, yes in zip(self.space.names, chosen, strict=True) if yes]


class MultilabelCounts(Metric):
    """True positives, false positives and false negatives of each label, (C, 3); a soft target counts from a half."""

    def __init__(self, labels: int, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.counts = MultilabelStatScores(labels, average=None, ignore_index=-1, validate_args=False)

    def update(self, scores: Tensor, targets: Tensor, has: Tensor) -> None:
        truth = (targets >= 0.5).long().where(has[:, None], -1)
        self.counts.update(reach(scores, self.threshold).long(), truth)

    def compute(self) -> Tensor:
        return self.counts.compute().reshape(-1, 5)[:, [0, 1, 3]]
