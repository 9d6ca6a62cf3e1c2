"""Counts predicted against true labels, for heads of one label a post."""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from hatemtl.heads.base import Figure, correlation, label_rows, ranks


class Confusion(Metric):
    """Counts posts of label i for which label j was predicted, (C, C) int64, over the posts that are annotated.

    predict: the labels' positions (B,) that scores (B, C) say.
    """

    counts: Tensor

    def __init__(self, labels: int, predict: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.labels, self.predict = labels, predict
        self.add_state("counts", torch.zeros(labels * labels, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, targets: Tensor, has: Tensor) -> None:
        # no bincount and no selection of rows: their sizes would have to come from the device first
        self.counts.index_add_(0, targets * self.labels + self.predict(scores), has.to(self.counts.dtype))

    def compute(self) -> Tensor:
        return self.counts.view(self.labels, self.labels)


def likeliest(scores: Tensor) -> Tensor:
    """Picks the label of the highest score, (B, C) → (B,)."""
    return scores.argmax(dim=1)


def surprise(logits: Tensor, draw: Generator) -> Tensor:
    """Computes -log p(y | post), summed over posts, for a label y of each that is drawn from the softmax of (B, C)."""
    drawn = torch.multinomial(logits.softmax(dim=1).detach(), 1, generator=draw)
    return F.cross_entropy(logits, drawn[:, 0], reduction="sum")


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Computes ½·KL(p‖q) + ½·KL(q‖p), in nats, of the softmax of both (B, C); a choice at -inf says nothing."""
    p, q = first.log_softmax(dim=1), second.log_softmax(dim=1)
    there = torch.isfinite(p) & torch.isfinite(q)
    return torch.where(there, (p.exp() - q.exp()) * (p - q).masked_fill(~there, 0.0), 0.0).sum(dim=1) / 2


def class_rows(matrix: Tensor, names: Sequence[str]) -> list[Figure]:
    """Gives the rows of `label_rows`, with the accuracy."""
    tp, given, true = matrix.diagonal().tolist(), matrix.sum(dim=0).tolist(), matrix.sum(dim=1).tolist()
    counts = {name: (tp[i], given[i] - tp[i], true[i] - tp[i]) for i, name in enumerate(names)}
    return label_rows(counts, Figure("accuracy", None, sum(tp) / sum(true) if sum(true) else 0.0))


def matthews(matrix: Tensor) -> float:
    """Computes Matthews' correlation of any number of labels (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006, eq. 8).

    0 where only one label was predicted, or only one occurs.
    """
    exact = matrix.double()
    given, true, posts = exact.sum(dim=0), exact.sum(dim=1), exact.sum()
    shared = posts * exact.trace() - given @ true
    scale = ((posts**2 - given @ given) * (posts**2 - true @ true)).sqrt()
    return float(shared / scale) if scale > 0 else 0.0


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
    true, given = (m.flatten().repeat_interleave(matrix.flatten()) for m in torch.meshgrid(
        torch.arange(len(matrix)), torch.arange(len(matrix)), indexing="ij"
    ))  # fmt: skip
    return correlation(ranks(true), ranks(given))
