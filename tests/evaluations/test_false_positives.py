"""The false positive difference by hand and by a loop over labels."""

import numpy as np
import pytest
from figures import by_metric

from hatemtl.errors import UserError
from hatemtl.evaluations.base import Predicted, Row
from hatemtl.evaluations.false_positives import FalsePositiveDifference
from hatemtl.labels import LabelSpace


def said(scores: np.ndarray, gold: np.ndarray, threshold: float = 0.5) -> Predicted:
    space = LabelSpace("multilabel", tuple("abcdefgh"[: scores.shape[1]]))
    return Predicted("val", space, np.arange(len(scores)), scores.astype(np.float32), gold.astype(np.float32), threshold)


def difference(scores: np.ndarray, gold: np.ndarray, threshold: float = 0.5) -> float:
    judge = FalsePositiveDifference()
    (found,) = [r.value for r in judge.rows({"target": said(scores, gold, threshold)}, {}) if r.name == judge.scalar]
    return found


def test_it_is_the_sum_over_labels_by_hand() -> None:
    """Label a has 1 false alarm in 2 posts, b none in 3, c 2 in 2; all together 3 in 7. d is on every post."""
    gold = np.array([[1, 0, 0, 1], [1, 0, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1]])
    scores = np.array([[0.9, 0.1, 0.8, 0.9], [0.2, 0.4, 0.1, 0.1], [0.5, 0.3, 0.9, 0.9], [0.4, 0.9, 0.6, 0.2]])
    rows = FalsePositiveDifference().rows({"target": said(scores, gold)}, {})
    assert [row.metric for row in rows] == [
        *(f"val_target_false_positive_rate_{label}" for label in "abc"),
        "val_target_false_positive_difference",
    ]
    assert [row.value for row in rows] == pytest.approx([1 / 2, 0, 1, abs(1 / 2 - 3 / 7) + 3 / 7 + abs(1 - 3 / 7)])


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_it_is_what_a_loop_over_labels_counts(threshold: float) -> None:
    draw = np.random.default_rng(0)
    scores, gold = draw.random((200, 5)).astype(np.float32), draw.random((200, 5))
    alarms = [[s[c] >= threshold for s, g in zip(scores, gold, strict=True) if g[c] < 0.5] for c in range(5)]
    overall = sum(map(sum, alarms)) / sum(map(len, alarms))
    expected = sum(abs(overall - sum(of) / len(of)) for of in alarms)
    assert difference(scores, gold, threshold) == pytest.approx(expected)


def test_labels_that_are_treated_alike_have_no_difference() -> None:
    one, true = np.random.default_rng(1).random((50, 1)), np.arange(50)[:, None] % 4 == 0
    for scores, gold in ((one, true), (np.zeros((50, 1)), true), (one, np.ones((50, 1)))):
        assert difference(np.repeat(scores, 3, axis=1), np.repeat(gold, 3, axis=1)) == pytest.approx(0, abs=1e-12)
    assert difference(one[:0], true[:0]) == 0


def test_tasks_of_other_kinds_are_passed_over() -> None:
    draw, judge = np.random.default_rng(2), FalsePositiveDifference()
    label = LabelSpace("multiclass", ("x", "y"))
    whole = {"label": Predicted("test", label, np.arange(9), draw.random((9, 2)), draw.integers(0, 2, 9))}
    for task in ("one", "two"):
        whole[task] = said(draw.random((9, 2)), draw.random((9, 2)))
    rows = judge.rows(whole, {})
    assert [row.task for row in rows if row.name == judge.scalar] == ["one", "two"]
    assert by_metric(rows).keys() == {r.metric for t in ("one", "two") for r in judge.rows({t: whole[t]}, {})}
    judge.check({task: of.space for task, of in whole.items()})
    with pytest.raises(UserError, match=r"expected a multilabel task, .*'label' is multiclass"):
        judge.check({"label": label})


def test_its_scalar_is_one_of_its_rows() -> None:
    judge = FalsePositiveDifference()
    rows = judge.rows({"t": said(np.zeros((2, 2)), np.zeros((2, 2)))}, {})
    assert Row("val", "t", judge.scalar, None, 0.0) in rows
