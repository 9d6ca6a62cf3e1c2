"""Counts predicted against true labels, for heads of one label a post."""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from hatemtl.heads.base import Figure, Tally, correlation, label_rows, ranks


def confusion(labels: int, predict: Callable[[Tensor], Tensor]) -> Tally:
    """Counts posts of label i for which label j was predicted, (C, C) int64, over the posts that are annotated.

    predict: the labels' positions (B,) that scores (B, C) say.
    """

    def count(scores: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        places = targets * labels + predict(scores)  # no bincount, whose size would have to come from the device
        counts = torch.zeros(labels * labels, dtype=torch.int64, device=scores.device).index_add_(0, places, has.long())
        return counts.view(labels, labels)

    return Tally(count, torch.zeros(labels, labels, dtype=torch.int64))


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
    right, posts = matrix.diagonal(), int(matrix.sum())
    counts = torch.stack([right, matrix.sum(dim=0) - right, matrix.sum(dim=1) - right], dim=1)
    return label_rows(counts, names, Figure("accuracy", None, int(right.sum()) / posts if posts else 0.0))


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
    levels = torch.arange(len(matrix))
    true, given = torch.cartesian_prod(levels, levels).repeat_interleave(matrix.flatten(), dim=0).T
    return correlation(ranks(true), ranks(given))
