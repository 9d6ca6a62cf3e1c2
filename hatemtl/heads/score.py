"""Predicts a number a post: regression."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from hatemtl.heads.base import Head, masked_mean
from hatemtl.heads.figures import Figure, Tally
from hatemtl.heads.layers import Pool, Pooling, counting, feed_forward
from hatemtl.labels import LabelSpace


class ScoreHead(Head):
    """One output, trained on the scale's numbers less their mean over their standard deviation in training."""

    kind = "score"
    problem = "regression"
    scale: Tensor

    def __init__(
        self,
        *,
        hidden_size: int,
        space: LabelSpace,
        pooling: Pooling,
        layers: int,
        dropout: float,
        loss: Literal["mse", "huber"],
        primary: str = "pearson",
        lexicon: str | None = None,
        counts: int = 0,
    ) -> None:
        super().__init__(space, primary, ["pearson", "spearman"])
        self.distance = F.huber_loss if loss == "huber" else F.mse_loss
        self.pool, self.counts = Pool(pooling, hidden_size), counting(lexicon, counts)
        self.layers = feed_forward(hidden_size, 1, layers=layers, dropout=dropout, counts=counts)
        self.register_buffer("scale", torch.tensor([0.0, 1.0]))  # mean and deviation; its weights mean nothing without

    def observe(self, values: Tensor) -> None:
        if self.scale.tolist() != [0, 1]:
            return  # a loaded head keeps what its weights were trained for
        if len(values):
            deviation = float(values.double().std(correction=0))
            self.scale.copy_(torch.tensor([float(values.double().mean()), deviation or 1.0]))

    def loss(self, logits: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        mean, deviation = self.scale
        losses = self.distance(logits.squeeze(1), (targets - mean) / deviation, reduction="none")
        return masked_mean(losses, has.to(losses.dtype))

    def scores(self, logits: Tensor) -> Tensor:
        mean, deviation = self.scale
        return logits * deviation + mean

    def metric(self) -> Metric:
        return Tally(lambda scores, targets, has: torch.stack([scores.squeeze(1), targets, has], dim=1))  # a rank needs all

    def rows(self, computed: Tensor) -> list[Figure]:
        given, true, has = computed.detach().double().T
        given, true = given[has > 0], true[has > 0]
        if not len(given):
            return [Figure(name, None, 0.0) for name in ("mae", "rmse", "pearson", "spearman")]
        return [
            Figure("mae", None, float((given - true).abs().mean())),
            Figure("rmse", None, float((given - true).square().mean().sqrt())),
            Figure("pearson", None, correlation(given, true)),
            Figure("spearman", None, correlation(ranks(given), ranks(true))),
        ]

    def decode(self, scores: Sequence[float], words: Sequence[str]) -> list[str]:
        return [f"{scores[0]:.4f}"]

    def kl(self, first: Tensor, second: Tensor, attention_mask: Tensor) -> Tensor:
        """Computes half the square of the difference: the divergence of normal distributions of deviation 1."""
        return (first - second).square().sum(dim=1) / 2


def ranks(values: Tensor) -> Tensor:
    """Gives the values' places, (N,), in their order, from 1 on; equal ones share the mean of theirs."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[inverse]


def correlation(x: Tensor, y: Tensor) -> float:
    """Computes Pearson's correlation of (N,) values with others; 0 where either are all the same."""
    x, y = (values.double() - values.double().mean() for values in (x, y))
    scale = x.norm() * y.norm()
    return float(x @ y / scale) if scale > 0 else 0.0
