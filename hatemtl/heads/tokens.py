"""Predicts one yes or no a word: rationales."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import BinaryStatScores

from hatemtl.errors import UserError
from hatemtl.heads.base import (
    Figure,
    binary_losses,
    check_balance,
    check_label_smoothing,
    count_rows,
    f1,
    feed_forward,
    masked_mean,
    positive_weights,
    reach,
)
from hatemtl.labels import Kind, LabelSpace


class TokensHead(nn.Module):
    """A sigmoid for every token, read where a word begins, trained by binary cross-entropy.

    Targets below 0 (special tokens, padding, later pieces of a word) count in no loss and no metric, so that a word
    counts once, however many pieces a tokenizer makes of it.
    threshold: the score from which a word is predicted. balance: as in MultilabelHead, over words.
    label_smoothing: as in MultilabelHead, of the words that count.
    """

    kind: ClassVar[Kind] = "tokens"
    primary = "f1"

    def __init__(
        self,
        *,
        hidden_size: int,
        space: LabelSpace,
        layers: int,
        dropout: float,
        threshold: float,
        balance: float,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < threshold < 1:
            raise UserError(f"head threshold={threshold}: expected a probability between 0 and 1")
        check_balance(balance)
        check_label_smoothing(label_smoothing)
        self.space, self.balance, self.threshold = space, balance, threshold
        self.label_smoothing = label_smoothing
        self.layers = feed_forward(hidden_size, 1, layers=layers, dropout=dropout)
        self.positive_weights: Tensor
        self.register_buffer("positive_weights", torch.ones(1), persistent=False)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        return self.layers(hidden).squeeze(-1)

    def observe(self, values: Tensor) -> None:
        self.positive_weights.copy_(positive_weights(values[:, None], self.balance))

    def loss(self, logits: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        counted = (targets >= 0) & has[:, None]
        losses = binary_losses(logits, targets.clamp(min=0), self.positive_weights, self.label_smoothing)
        return masked_mean(losses, counted.to(losses.dtype))

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def metric(self) -> Metric:
        return TokenCounts(self.threshold)

    def rows(self, computed: Tensor) -> list[Figure]:
        tp, fp, fn = computed.long().tolist()
        return [
            Figure("f1", None, f1(tp, fp, fn)),
            Figure("precision", None, tp / (tp + fp) if tp + fp else 0.0),
            Figure("recall", None, tp / (tp + fn) if tp + fn else 0.0),
            *count_rows({self.space.names[0]: (tp, fp, fn)}),
        ]

    def decode(self, scores: Sequence[float], words: Sequence[str]) -> list[str]:
        # a post cut at max_length has fewer scores than words
        return [word for word, yes in zip(words, reach(scores, self.threshold).tolist(), strict=False) if yes]


class TokenCounts(Metric):
    """True positives, false positives and false negatives over words, (3,); any share of annotators above 0 is a yes."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.counts = BinaryStatScores(ignore_index=-1, validate_args=False)

    def update(self, scores: Tensor, targets: Tensor, has: Tensor) -> None:
        counted = (targets >= 0) & has[:, None]
        truth = (targets > 0).long().where(counted, -1)
        self.counts.update(reach(scores, self.threshold).long(), truth)

    def compute(self) -> Tensor:
        return self.counts.compute()[[0, 1, 3]]
