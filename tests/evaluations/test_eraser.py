"""ERASER's formulas by hand, by scikit-learn, and by what they must not depend on."""

import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, f1_score, precision_recall_curve

from hatemtl.evaluations.eraser import auprc, highest, iou_f1, singles, spans, spans_found, token_f1


def marks(text: str) -> np.ndarray:
    return np.array([sign == "x" for sign in text])


def test_the_highest_are_chosen_and_of_equal_ones_the_last() -> None:
    scores, all_may = np.array([0.5, 0.1, 0.5, 0.9, 0.5]), np.ones(5, bool)
    assert highest(scores, all_may, 3).tolist() == marks("..xxx").tolist()
    assert highest(scores, marks("xx..."), 1).tolist() == marks("x....").tolist()
    assert highest(scores, marks("xx..."), 5).tolist() == marks("xx...").tolist()
    expected = sorted(range(5), key=lambda i: scores[i])[-3:]  # as HateXplain's programs have it
    assert np.flatnonzero(highest(scores, all_may, 3)).tolist() == sorted(expected)


@pytest.mark.parametrize(
    ("predicted", "true", "found"),
    [
        ("xx...", "xx...", 1),
        ("x....", "xx...", 1),  # one half is enough
        ("x....", "xxx..", 0),
        ("xxxx.", "xx...", 1),
        ("xxxxx", "xx...", 0),
        ("x.x..", "x.x..", 2),
        (".....", "xx...", 0),
        ("xx...", ".....", 0),
    ],
)
def test_a_span_is_found_from_half_its_union_on(predicted: str, true: str, found: int) -> None:
    assert spans_found(spans(marks(predicted)), spans(marks(true))) == found


def test_iou_f1_is_that_of_mean_precision_and_recall_by_hand() -> None:
    """Mean precision 1/2, mean recall 4/9; not the mean of each post's F1."""
    posts = [("xx.x.", "xx..."), ("x....", "...xx"), ("x....", "x.x.x")]
    pairs = [(spans(marks(predicted)), spans(marks(true))) for predicted, true in posts]
    precision, recall = (1 / 2 + 0 + 1) / 3, (1 + 0 + 1 / 3) / 3
    assert iou_f1(pairs) == pytest.approx(2 * precision * recall / (precision + recall))
    assert iou_f1(pairs[1:2]) == 0


def test_two_halves_recall_a_span_twice_as_in_erasers_programs() -> None:
    truth = marks(".xx.")
    assert iou_f1([(singles(truth), spans(truth))]) == pytest.approx(2 * 1 * 2 / 3)
    assert iou_f1([(spans(truth), spans(truth))]) == 1


def test_the_area_is_the_trapezoids_and_no_average_precision_by_hand() -> None:
    """Hits at ranks 1 and 3: points (0, 1), (1/2, 1), (1/2, 1/2), (1, 2/3), (1, 1/2)."""
    scores, truth = np.array([0.9, 0.8, 0.7, 0.1]), marks("x.x.")
    assert auprc(scores, truth) == pytest.approx(1 / 2 + 1 / 2 * (1 / 2 + 2 / 3) / 2)
    assert average_precision_score(truth, scores) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_figures_of_one_post_are_scikit_learns(seed: int) -> None:
    draw = np.random.default_rng(seed)
    scores, truth = draw.integers(0, 6, 30) / 6, draw.random(30) < 0.3  # with ties
    precision, recall, _ = precision_recall_curve(truth, scores)
    assert auprc(scores, truth) == pytest.approx(auc(recall, precision))
    chosen = highest(scores, np.ones(30, bool), 5)
    assert token_f1(chosen, truth) == pytest.approx(f1_score(truth, chosen))


def test_the_best_and_the_worst_explanation() -> None:
    truth = marks("..xxx...x")
    assert auprc(truth.astype(float), truth) == token_f1(truth, truth) == iou_f1([(spans(truth), spans(truth))]) == 1
    assert auprc(np.zeros(9), truth) == pytest.approx((1 + 4 / 9) / 2)  # a line from precision 1 to the share of true tokens
    assert np.isnan(auprc(np.zeros(9), ~truth & truth))
    assert token_f1(~truth, truth) == token_f1(~truth & truth, ~truth & truth) == 0
    rising = np.linspace(0, 1, 9)
    assert auprc(rising**3, truth) == auprc(rising, truth)  # order is all that counts
