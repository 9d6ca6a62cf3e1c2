"""Trains, counts and compares answers of yes or no, for heads of any number of them a post."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def divergence(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Averages the divergences of answers over a post's, (B,), by their weights; all (B, answers).

    KL(p‖q) + KL(q‖p) = (p - q)·(logit p - logit q) for yes and no.
    """
    answers = (first.sigmoid() - second.sigmoid()) * (first - second) / 2
    return (answers * weights).sum(dim=1) / weights.sum(dim=1)


def positive_weights(values: Tensor, balance: float) -> Tensor:
    """Weighs labels' positives in the loss, (C,), by `values` (N, C): (negatives / positives) ** balance."""
    positives = values.sum(dim=0).clamp(min=1)
    return ((len(values) - positives).clamp(min=1) / positives) ** balance


def binary_losses(logits: Tensor, targets: Tensor, positive_weights: Tensor, label_smoothing: float) -> Tensor:
    """Computes each answer's binary cross-entropy, targets y in [0, 1] smoothed to y·(1 - ε) + ε/2; shapes as the logits'.

    That is label smoothing over two classes, yes and no (Szegedy et al. 2016, arXiv:1512.00567, section 7). Positives are
    weighed by what they are, not by what is smoothed into them: of a weight of 99, ε/2 of every no would make a yes.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=positive_weights, reduction="none")
    if not label_smoothing:
        return losses
    # -logits are the log odds of the opposite answer, so this is what the same targets cost if they said the opposite
    opposite = F.binary_cross_entropy_with_logits(-logits, targets, pos_weight=positive_weights, reduction="none")
    return losses.lerp(opposite, label_smoothing / 2)


def agreements(given: Tensor, true: Tensor, counted: Tensor, *, dim: int) -> list[Tensor]:
    """Counts true positives, false positives and false negatives along a dimension, of the answers that are counted."""
    return [(kind & counted).sum(dim=dim) for kind in (given & true, given & ~true, ~given & true)]


def reach(scores: Tensor | Sequence[float], threshold: float) -> Tensor:
    """Tells whether each score is a yes, compared in float32: as a double, a score of .7 lies below a threshold of .7."""
    return torch.as_tensor(scores, dtype=torch.float32) >= threshold
