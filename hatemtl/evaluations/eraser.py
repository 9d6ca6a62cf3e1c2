"""Compares the tokens that explain a prediction with those that people marked, by the formulas of ERASER.

DeYoung et al. 2020, ERASER: A benchmark to evaluate rationalized NLP models, arXiv:1911.03429, section 4.
"""

from collections.abc import Sequence

import numpy as np

MATCH = 0.5  # the intersection over union from which a span counts as found


def highest(scores: np.ndarray, may: np.ndarray, count: int) -> np.ndarray:
    """Marks, (T,) bool, the `count` highest of those scores (T,) that may be chosen; of equal ones the last.

    So do HateXplain's programs, which sort upwards and take the end.

    >>> highest(np.array([0.3, 0.9, 0.3, 0.1]), np.array([True, False, True, True]), 1).tolist()
    [False, False, True, False]
    """
    places, marked = np.flatnonzero(may), np.zeros(len(may), bool)
    marked[places[np.argsort(scores[places], kind="stable")[max(len(places) - count, 0) :]]] = True
    return marked


def spans(marked: np.ndarray) -> np.ndarray:
    """Finds the runs of marked tokens (T,): (n, 2), where each begins and ends.

    >>> spans(np.array([True, True, False, True])).tolist()
    [[0, 2], [3, 4]]
    """
    steps = np.diff(np.concatenate([[0], marked.astype(np.int8), [0]]))
    return np.stack([np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)], axis=1)


def singles(marked: np.ndarray) -> np.ndarray:
    """Makes a span of each marked token (T,): (n, 2)."""
    return np.flatnonzero(marked)[:, None] + [0, 1]


def spans_found(predicted: np.ndarray, true: np.ndarray) -> int:
    """Counts the predicted spans (n, 2) whose best intersection over union with a true one (m, 2) is `MATCH` or more."""
    begin, end = np.maximum(predicted[:, :1], true[:, 0]), np.minimum(predicted[:, 1:], true[:, 1])
    both = np.maximum(end - begin, 0)
    union = np.diff(predicted) + np.diff(true).T - both
    return int(((both / union).max(axis=1, initial=0) >= MATCH).sum())


def iou_f1(posts: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The F1 of mean precision and mean recall over posts, each with its predicted and its true spans.

    Both are counted in predicted spans, as in ERASER's programs: two halves of one true span recall it twice.
    """
    found = [(spans_found(predicted, true), len(predicted), len(true)) for predicted, true in posts]
    precision = float(np.mean([hits / max(predicted, 1) for hits, predicted, _ in found]))
    recall = float(np.mean([hits / max(true, 1) for hits, _, true in found]))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def token_f1(marked: np.ndarray, truth: np.ndarray) -> float:
    """The F1 of marked tokens (T,) against the true ones (T,) of one post; 0 where there are none of either."""
    both = int(marked.sum() + truth.sum())
    return 2 * int((marked & truth).sum()) / both if both else 0.0


def auprc(scores: np.ndarray, truth: np.ndarray) -> float:
    """The area under one post's precision-recall curve by the trapezoid rule, of scores (T,) against true tokens (T,).

    Straight lines join the points of all thresholds, the first (recall 0, precision 1): no average precision, whose steps
    lie lower or higher. NaN where no token is true.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores stand above a threshold together
    hits, taken = truth[order].cumsum()[last], np.flatnonzero(last) + 1
    if not hits[-1]:
        return float("nan")
    return float(np.trapezoid(np.append(1.0, hits / taken), np.append(0.0, hits / hits[-1])))
