"""Predicts one of ordered levels a post."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from hatemtl.errors import UserError
from hatemtl.heads.base import Head, carried, grouped, label_weights, masked_mean
from hatemtl.heads.figures import Figure, confusion
from hatemtl.heads.layers import Pool, Pooling, counting, feed_forward
from hatemtl.heads.multiclass import class_rows
from hatemtl.heads.multilabel import kl
from hatemtl.heads.score import correlation, ranks
from hatemtl.labels import LabelSpace


class OrdinalHead(Head):
    """The proportional-odds model over C levels: P(y > k) = σ(s - θₖ), one s a post, thresholds θ₁ < θ₂ < … learned.

    Trained by the likelihood of the level, P(y > k - 1) - P(y > k) (McCullagh 1980, J. R. Stat. Soc. B 42, eq. 2.2). The
    predicted level is the median, which makes the mean absolute error least: as many levels up as P(y > k) > 1/2.
    """

    kind = "ordinal"

    def __init__(
        self,
        *,
        hidden_size: int,
        space: LabelSpace,
        pooling: Pooling,
        layers: int,
        dropout: float,
        balance: float,
        primary: str = "quadratic_kappa",
        lexicon: str | None = None,
        counts: int = 0,
    ) -> None:
        if len(space) < 2:
            raise UserError(f"an ordinal head needs two levels or more, given {', '.join(space.names)}")
        super().__init__(space, primary, ["quadratic_kappa", "accuracy", "macro_f1", "spearman"], balance=balance)
        self.pool, self.counts = Pool(pooling, hidden_size), counting(lexicon, counts)
        self.layers = feed_forward(hidden_size, 1, layers=layers, dropout=dropout, counts=counts)
        # at the start every level is as likely as another where s = 0
        even = [math.log(k / (len(space) - k)) for k in range(1, len(space))]
        gaps = [math.log(math.expm1(above - below)) for below, above in pairwise(even)]
        self.first_and_gaps = nn.Parameter(torch.tensor([even[0], *gaps]))

    @property
    def thresholds(self) -> Tensor:
        """Gives θ, (C - 1,), each above the one before it."""
        first, gaps = self.first_and_gaps.split([1, len(self.space) - 2])
        return torch.cat([first, F.softplus(gaps) + 1e-4]).cumsum(0)

    def forward(self, hidden: Tensor, attention_mask: Tensor, counts: Tensor | None = None) -> Tensor:
        return super().forward(hidden, attention_mask, counts) - self.thresholds

    def observe(self, values: Tensor) -> None:
        self.weights.copy_(label_weights(values, len(self.space), self.balance))

    def worth(self, targets: Tensor) -> Tensor:
        return self.weights[targets]

    def loss(self, logits: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        losses = F.nll_loss(log_probabilities(logits), targets, reduction="none")
        return masked_mean(losses, self.worth(targets) * has)

    def losses_by_label(self, logits: Tensor, targets: Tensor, has: Tensor) -> tuple[Tensor, Tensor]:
        levels = carried(targets, len(self.space)) * self.weights * has[:, None]
        return grouped(-log_probabilities(logits), levels)

    def scores(self, logits: Tensor) -> Tensor:
        return log_probabilities(logits).exp()

    def metric(self) -> Metric:
        return confusion(len(self.space), median)

    def rows(self, computed: Tensor) -> list[Figure]:
        levels = torch.arange(len(computed), device=computed.device)
        missed, posts = (computed * (levels[:, None] - levels).abs()).sum(), computed.sum()
        return [
            Figure("mae", None, float(missed / posts.clamp(min=1))),
            Figure("quadratic_kappa", None, quadratic_kappa(computed)),
            Figure("spearman", None, spearman(computed)),
            *class_rows(computed, self.space.names),
        ]

    def decode(self, scores: Sequence[float], words: Sequence[str]) -> list[str]:
        return [self.space.names[int(median(torch.tensor([scores])))]]

    def kl(self, first: Tensor, second: Tensor, attention_mask: Tensor) -> Tensor:
        return kl(first, second, torch.ones_like(first))


def log_probabilities(logits: Tensor) -> Tensor:
    """Computes (B, C) log P(y = k) from the log odds (B, C - 1) of P(y > k), which fall with k.

    σ(a) - σ(b) = σ(a)·σ(-b)·(1 - exp(b - a)), which neither underflows nor cancels.
    """
    between = torch.log(-torch.expm1((logits[:, 1:] - logits[:, :-1]).clamp(max=-1e-6)))
    above, below = F.logsigmoid(logits), F.logsigmoid(-logits)
    return torch.cat([below[:, :1], above[:, :-1] + below[:, 1:] + between, above[:, -1:]], dim=1)


def median(scores: Tensor) -> Tensor:
    """Finds the lowest level that at least half of the probability (B, C) is not above, (B,)."""
    return (scores.cumsum(dim=1)[:, :-1] < 0.5).sum(dim=1)


def quadratic_kappa(matrix: Tensor) -> float:
    """Measures agreement beyond chance, a miss counting by the square of its levels (Cohen 1968, doi:10.1037/h0026256).

    0 where one level alone occurs and is predicted.
    """
    exact, levels = matrix.double(), torch.arange(len(matrix), dtype=torch.float64, device=matrix.device)
    weights = (levels[:, None] - levels) ** 2
    chance = exact.sum(dim=1)[:, None] * exact.sum(dim=0) / exact.sum().clamp(min=1)
    missed, by_chance = (weights * exact).sum(), (weights * chance).sum()
    return float(1 - missed / by_chance) if by_chance > 0 else 0.0


def spearman(matrix: Tensor) -> float:
    """Computes the rank correlation of true and predicted levels."""
    levels = torch.arange(len(matrix))
    true, given = torch.cartesian_prod(levels, levels).repeat_interleave(matrix.flatten(), dim=0).T
    return correlation(ranks(true), ranks(given))
