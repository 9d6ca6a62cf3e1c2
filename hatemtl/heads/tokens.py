"""Predicts one yes or no a word: rationales."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from hatemtl.heads.base import Head, Threshold, masked_mean
from hatemtl.heads.figures import Figure, Tally, count_rows, f1
from hatemtl.heads.layers import feed_forward
from hatemtl.heads.losses import Loss
from hatemtl.heads.multilabel import agreements, kl, positive_weights, reach
from hatemtl.labels import LabelSpace


class TokensHead(Head):
    """A sigmoid for every token, read where a word begins, trained by binary cross-entropy.

    Targets below 0 (special tokens, padding, later pieces of a word) count in no loss and no metric, so that a word
    counts once, however many pieces a tokenizer makes of it. A word that max_length cuts off, whose target stands behind
    the tokens, counts as a no in every metric; `words_cut` says how many those are.
    f1 pools the words of all posts. f1_mean_over_posts is the mean of each post's own F1, over posts in which a word is
    marked or predicted: the token F1 that ERASER (DeYoung et al. 2020, arXiv:1911.03429) and HateXplain (Mathew et al.
    2021, arXiv:2012.10289) report, there over pieces of words. The two differ, and are not to be compared.
    balance, label_smoothing and loss: as in MultilabelHead, over words that count.
    """

    kind = "tokens"
    threshold: Tensor

    def __init__(
        self,
        *,
        hidden_size: int,
        space: LabelSpace,
        layers: int,
        dropout: float,
        threshold: Threshold,
        balance: float,
        label_smoothing: float = 0.0,
        loss: Loss | None = None,
    ) -> None:
        shared: dict[str, Any] = {"label_smoothing": label_smoothing, "balance": balance, "threshold": threshold}
        super().__init__(space, "f1", **shared, loss=loss)
        self.layers = feed_forward(hidden_size, 1, layers=layers, dropout=dropout)

    def forward(self, hidden: Tensor, attention_mask: Tensor, counts: Tensor | None = None) -> Tensor:
        return super().forward(hidden, attention_mask).squeeze(-1)

    def observe(self, values: Tensor) -> None:
        self.weights.copy_(positive_weights(values[:, None], self.balance))

    def loss(self, logits: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        targets = targets[:, : logits.shape[1]]
        counted = (targets >= 0) & has[:, None]
        losses = self.loss_of.of_answers(logits, targets.clamp(min=0), self.weights, self.label_smoothing)
        return masked_mean(losses, counted.to(losses.dtype))

    def answers(self, logits: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        return ((targets[:, : logits.shape[1]] >= 0) & has[:, None]).sum()

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def metric(self) -> Metric:
        return Tally(self.counted)

    def counted(self, scores: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        """Counts what `agreements` does of each post's words, and those cut off, (B, 4); any share above 0 is a yes."""
        read = scores.shape[1]
        here = (targets >= 0) & has[:, None]
        given = F.pad(reach(scores, self.threshold), (0, targets.shape[1] - read))
        return torch.stack([*agreements(given, targets > 0, here, dim=1), here[:, read:].sum(dim=1)], dim=1)

    def rows(self, computed: Tensor) -> list[Figure]:
        tp, fp, fn, cut = computed.sum(dim=0).tolist()
        f1s = [f1(*counts) for *counts, _ in computed.tolist() if any(counts)]
        return [
            Figure("f1", None, f1(tp, fp, fn)),
            Figure("f1_mean_over_posts", None, fmean(f1s) if f1s else 0.0),
            Figure("precision", None, tp / (tp + fp) if tp + fp else 0.0),
            Figure("recall", None, tp / (tp + fn) if tp + fn else 0.0),
            Figure("words_cut", None, float(cut)),
            *count_rows(computed[:, :3].sum(dim=0, keepdim=True), self.space.names),
        ]

    def decode(self, scores: Sequence[float], words: Sequence[str]) -> list[str]:
        return [word for word, yes in zip(words, reach(scores, self.threshold.cpu()).tolist(), strict=True) if yes]

    def kl(self, first: Tensor, second: Tensor, attention_mask: Tensor) -> Tensor:
        return kl(first, second, attention_mask.to(first))
