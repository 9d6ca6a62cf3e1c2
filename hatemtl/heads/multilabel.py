"""Predicts any number of labels a post; trains, counts and compares answers of yes or no, for other heads too."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from hatemtl.heads.base import Head, LabelWeights, Threshold, masked_mean
from hatemtl.heads.figures import Figure, Tally, f1, label_rows
from hatemtl.heads.layers import Pool, Pooling, counting, feed_forward
from hatemtl.heads.losses import Loss
from hatemtl.labels import LabelSpace


class MultilabelHead(Head):
    """A sigmoid for each of C labels, trained by binary cross-entropy or another `loss`; soft targets are taken as they are.

    balance: as in `positive_weights`. label_smoothing: as in `losses.binary_losses`.
    """

    kind = "multilabel"
    problem = "multi_label_classification"
    has_entropy = True
    threshold: Tensor

    def __init__(
        self,
        *,
        hidden_size: int,
        space: LabelSpace,
        pooling: Pooling,
        layers: int,
        dropout: float,
        threshold: Threshold,
        balance: float,
        primary: str = "macro_f1",
        label_smoothing: float = 0.0,
        loss: Loss | None = None,
        label_weights: LabelWeights | None = None,
        lexicon: str | None = None,
        counts: int = 0,
    ) -> None:
        primaries = ["macro_f1", "micro_f1", *(f"f1_{name}" for name in space.names)]
        shared: dict[str, Any] = {"label_smoothing": label_smoothing, "balance": balance, "threshold": threshold}
        super().__init__(space, primary, primaries, **shared, loss=loss, label_weights=label_weights)
        self.pool, self.counts = Pool(pooling, hidden_size), counting(lexicon, counts)
        self.layers = feed_forward(hidden_size, len(space), layers=layers, dropout=dropout, counts=counts)

    def observe(self, values: Tensor) -> None:
        self.weights.copy_(positive_weights(values, self.balance))
        self.weigh(values.sum(dim=0))

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Computes what each answer costs, (B, C), of posts with the annotation and without."""
        return self.loss_of.of_answers(logits, targets, self.weights, self.label_smoothing)

    def loss(self, logits: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        losses = self.losses(logits, targets) * self.label_weights
        return masked_mean(losses.mean(dim=1), has.to(losses.dtype))

    def losses_by_label(self, logits: Tensor, targets: Tensor, has: Tensor) -> tuple[Tensor, Tensor]:
        losses = self.losses(logits, targets)
        each = (losses * has[:, None]).sum(dim=0) / has.sum().clamp(min=1)
        return each, self.label_weights / len(self.space) * has.any()

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def metric(self) -> Metric:
        return Tally(self.counted, torch.zeros(len(self.space), 3, dtype=torch.int64))

    def counted(self, scores: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        """Counts what `agreements` does of each label, (C, 3); a soft target counts from a half."""
        return torch.stack(agreements(reach(scores, self.threshold), targets >= 0.5, has[:, None], dim=0), dim=1)

    def rows(self, computed: Tensor) -> list[Figure]:
        return label_rows(computed, self.space.names, Figure("micro_f1", None, f1(*computed.sum(dim=0).tolist())))

    def decode(self, scores: Sequence[float], words: Sequence[str]) -> list[str]:
        chosen = reach(scores, self.threshold.cpu()).tolist()
        return [name for name, yes in zip(self.space.names, chosen, strict=True) if yes]

    def surprise(self, logits: Tensor, draw: Generator) -> Tensor:
        drawn = torch.bernoulli(logits.sigmoid().detach(), generator=draw)
        return F.binary_cross_entropy_with_logits(logits, drawn, reduction="sum")

    def entropy(self, logits: Tensor) -> Tensor:
        p = logits.sigmoid()
        return -(p * F.logsigmoid(logits) + (1 - p) * F.logsigmoid(-logits)).mean()

    def kl(self, first: Tensor, second: Tensor, attention_mask: Tensor) -> Tensor:
        return kl(first, second, torch.ones_like(first))


def kl(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Averages KL(p‖q) of answers of yes or no over a post's, (B,), by their weights; all (B, answers), p, q as logits.

    Of the logits x and y it is σ(x)·(x - y) - log(1 + eˣ) + log(1 + eʸ).
    """
    answers = first.sigmoid() * (first - second) - F.softplus(first) + F.softplus(second)
    return (answers * weights).sum(dim=1) / weights.sum(dim=1)


def positive_weights(values: Tensor, balance: float) -> Tensor:
    """Weighs labels' positives in the loss, (C,), by `values` (N, C): (negatives / positives) ** balance."""
    positives = values.sum(dim=0).clamp(min=1)
    return ((len(values) - positives).clamp(min=1) / positives) ** balance


def agreements(given: Tensor, true: Tensor, counted: Tensor, *, dim: int) -> list[Tensor]:
    """Counts true positives, false positives and false negatives along a dimension, of the answers that are counted."""
    return [(kind & counted).sum(dim=dim) for kind in (given & true, given & ~true, ~given & true)]


def reach(scores: Tensor | Sequence[float], threshold: Tensor) -> Tensor:
    """Tells whether each score is a yes, compared in float32: as a double, a score of .7 lies below a threshold of .7.

    threshold: (C,) or (1,), on the scores' device.
    """
    return torch.as_tensor(scores, dtype=torch.float32) >= threshold
