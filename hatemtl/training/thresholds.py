"""Finds the score from which each label, or a word, is predicted: that of the best F1 on the validation posts."""

import numpy as np
import torch

from hatemtl.evaluations.base import Predicted
from hatemtl.heads.base import Head


def tune(head: Head, said: Predicted) -> None:
    """Gives a head the thresholds of the best F1 of each label on these posts, or of words pooled over them."""
    if said.space.about == "words":  # those that make no token have no score; any share above 0 is a yes, as in the metric
        scores, gold = (np.concatenate([np.zeros(0), *of]).astype(np.float32)[:, None] for of in (said.scores, said.gold))
        there = ~np.isnan(scores[:, 0])
        scores, true = scores[there], gold[there] > 0
    else:
        scores, true = said.scores, said.gold >= 0.5
    assert head.threshold is not None
    head.threshold.copy_(torch.tensor([best(*of) for of in zip(scores.T, true.T, strict=True)]))


def best(scores: np.ndarray, true: np.ndarray) -> float:
    """Finds the threshold t of the best F1 of scores (N,) ≥ t; of several the nearest to 1/2, and 1/2 where none is true.

    scores: float32 in [0, 1]. true: (N,) bool. What is tried: 1/2, and the middle between each score and the next below it
    (Lipton, Elkan & Naryanaswamy 2014, arXiv:1402.1892, on why that is seldom 1/2).
    """
    if not true.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(true[order])
    below = np.append(ranked[1:], np.float32(0))
    last = np.flatnonzero(ranked > below)  # of equal scores all are predicted, or none
    middle = (ranked[last] + below[last]) / np.float32(2)
    middle = np.where(middle > below[last], middle, ranked[last])  # two neighbours of float32 have none between them
    tried = np.append(middle, np.float32(0.5))
    said = np.append(last + 1, (scores >= 0.5).sum())
    f1 = 2 * np.append(hits[last], (true & (scores >= 0.5)).sum()) / (said + true.sum())
    kept = tried[f1 == f1.max()]
    return float(kept[abs(kept - 0.5).argmin()])
