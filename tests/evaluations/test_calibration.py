"""Calibration by hand, by scikit-learn, and by what temperature scaling promises."""

from typing import Any

import numpy as np
import pytest
import torch
from figures import by_metric
from scipy.special import expit, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from hatemtl.errors import UserError
from hatemtl.evaluations.base import Beforehand, Predicted
from hatemtl.evaluations.calibration import Calibration, gap
from hatemtl.labels import LabelSpace

LABEL = LabelSpace("multiclass", ("a", "b", "c"))
TARGET = LabelSpace("multilabel", ("x", "y"))


class Validation:
    """As much of a reader as is asked."""

    def __init__(self, **said: Predicted) -> None:
        self.said = said

    def predicted(self, stage: str) -> dict[str, Predicted]:
        assert stage == "val"
        return self.said


def said(space: LabelSpace, scores: Any, gold: Any, stage: Any = "test") -> Predicted:
    scores = np.asarray(scores, np.float32)
    return Predicted(stage, space, np.arange(len(scores)), scores, np.asarray(gold))


def measured(test: Predicted, val: Predicted | None = None, bins: int = 15) -> dict[str, float]:
    reader: Any = Validation(task=test if val is None else val)
    rows = by_metric(Calibration(bins=bins).rows({"task": test}, {}, reader))
    return {name.removeprefix("test_task_"): value for name, value in rows.items()}


def drawn(n: int, sharp: float, *, several: bool = False, seed: int = 0) -> Predicted:
    """Posts whose labels are drawn by their logits, of which the network says `sharp` times as much."""
    draw = np.random.default_rng(seed)
    z = draw.normal(size=(n, 2 if several else 3)) * 1.5
    if several:
        return said(TARGET, expit(z * sharp), (draw.random(z.shape) < expit(z)).astype(np.float32))
    gold = [draw.choice(3, p=p) for p in softmax(z, axis=1)]
    return said(LABEL, softmax(z * sharp, axis=1), gold)


def test_rows_by_hand() -> None:
    """Confidences .8 (right), .6 (wrong), .6 (right) in two bins above and below 1/2: all in the upper one."""
    rows = measured(said(LABEL, [[0.8, 0.1, 0.1], [0.6, 0.4, 0.0], [0.2, 0.2, 0.6]], [0, 1, 2]), bins=2)
    assert list(rows) == [*("ece", "brier", "nll", "ece_scaled", "brier_scaled", "nll_scaled", "temperature")]
    assert rows["ece"] == pytest.approx(abs(2 / 3 - 2 / 3), abs=1e-7)
    assert rows["brier"] == pytest.approx((0.06 + 0.72 + 0.24) / 3, abs=1e-6)
    assert rows["nll"] == pytest.approx(-np.log([0.8, 0.4, 0.6]).mean(), abs=1e-6)
    apart = measured(said(LABEL, [[0.8, 0.1, 0.1], [0.6, 0.4, 0.0], [0.2, 0.2, 0.6]], [0, 1, 2]), bins=10)
    assert apart["ece"] == pytest.approx((abs(1 - 0.8) + 2 * abs(0.5 - 0.6)) / 3, abs=1e-6)
    both = measured(said(TARGET, [[0.9, 0.2], [0.7, 0.4]], [[1, 0], [0, 0.5]]), bins=2)
    assert both["ece"] == pytest.approx((abs(0.5 - 0.8) + abs(0.25 - 0.3)) / 2, abs=1e-6)
    assert both["brier"] == pytest.approx((0.01 + 0.49 + 0.04 + 0.01) / 4, abs=1e-6)
    assert both["nll"] == pytest.approx(-np.log([0.9, 0.3, 0.8, 0.24**0.5]).mean(), abs=1e-6)  # half a yes, half a no


@pytest.mark.parametrize("several", [False, True])
def test_scores_are_scikit_learns(several: bool) -> None:
    some = drawn(300, 2.0, several=several)
    rows, p = measured(some), some.scores.astype(float)
    if several:
        pairs = [*zip(some.gold.T, p.T, strict=True)]
        assert rows["brier"] == pytest.approx(np.mean([brier_score_loss(y, of) for y, of in pairs]))
        assert rows["nll"] == pytest.approx(np.mean([log_loss(y, of) for y, of in pairs]), rel=1e-5)
        return
    y = np.eye(3)[some.gold]
    assert rows["brier"] == pytest.approx(sum(brier_score_loss(y[:, c], p[:, c]) for c in range(3)))
    assert rows["nll"] == pytest.approx(log_loss(some.gold, p / p.sum(axis=1, keepdims=True)), rel=1e-5)
    top, right = p.max(axis=1), p.argmax(axis=1) == some.gold
    share, confidence = calibration_curve(right, top, n_bins=15)
    counts = np.histogram(top, np.linspace(0, 1, 16))[0]
    assert rows["ece"] == pytest.approx((abs(share - confidence) * counts[counts > 0]).sum() / 300)


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_is_that_of_torchmetrics(seed: int) -> None:
    some = drawn(200, 1.5, seed=seed)
    scores, gold = torch.from_numpy(some.scores), torch.from_numpy(some.gold)
    theirs = multiclass_calibration_error(scores, gold, num_classes=3, n_bins=15, norm="l1")
    assert measured(some)["ece"] == pytest.approx(float(theirs), abs=1e-6)


def test_the_ends_of_bins_belong_below() -> None:
    assert gap(np.array([0.5, 0.0, 1.0]), np.array([1.0, 0.0, 1.0]), 2) == pytest.approx((0.5 + 0) / 3)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("sharp", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_was_said_too_sharply(sharp: float, several: bool) -> None:
    rows = measured(drawn(4000, sharp, several=several), drawn(4000, sharp, several=several, seed=1))
    assert rows["temperature"] == pytest.approx(sharp, rel=0.12)
    calm = measured(drawn(4000, 1.0, several=several))
    for name in ("ece", "brier", "nll"):
        assert rows[f"{name}_scaled"] == pytest.approx(calm[name], abs=0.02)
        assert sharp == 1 or rows[f"{name}_scaled"] < rows[name]


def test_the_temperature_is_the_best_of_a_grid_on_the_validation_posts() -> None:
    some = drawn(200, 3.0)
    rows, z = measured(some), np.log(some.scores.astype(float))
    grid = [log_loss(some.gold, softmax(z / t, axis=1)) for t in np.linspace(0.5, 6, 500)]
    assert min(grid) - 1e-4 < rows["nll_scaled"] <= min(grid) + 1e-9
    other = measured(drawn(50, 1.0, seed=5), some)
    assert other["temperature"] == rows["temperature"], "of the test posts it knows nothing"


@pytest.mark.parametrize(("gold", "end"), [([0, 1, 2], 0.01), ([1, 2, 0], 100)], ids=["all right", "all wrong"])
def test_a_temperature_at_an_end_scales_nothing(gold: list[int], end: float) -> None:
    p = np.full((3, 3), 0.25) + 0.5 * np.eye(3)
    rows = measured(said(LABEL, p, gold))
    assert list(rows) == ["ece", "brier", "nll", "temperature"]
    assert rows["temperature"] == end


@pytest.mark.filterwarnings("error")
def test_certainties_are_finite() -> None:
    sure = said(LABEL, np.eye(3), [0, 1, 1])
    assert all(np.isfinite(value) for value in measured(sure).values())
    both = said(TARGET, np.eye(2), np.eye(2, dtype=np.float32))
    rows = measured(both)
    assert (rows["ece"], rows["brier"], rows["nll"]) == pytest.approx((0, 0, 0), abs=1e-6)


def test_ordinal_levels_are_labels_and_other_kinds_are_passed_over() -> None:
    level, score = LabelSpace("ordinal", ("low", "high")), LabelSpace("score", ("scale",))
    whole = {
        "level": said(level, [[0.3, 0.7], [0.6, 0.4]], [1, 1]),
        "number": said(score, [[0.1], [0.2]], [0.0, 1.0]),
    }
    reader: Any = Validation(**whole)
    assert {row.task for row in Calibration(bins=15).rows(whole, {}, reader)} == {"level"}
    Calibration(bins=15).check({"level": level, "number": score})


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="bins=0: expected at least one; type 15"):
        Calibration(bins=0)
    with pytest.raises(UserError, match=r"expected a task whose labels have probabilities .*'number' is score"):
        Calibration(bins=15).check({"number": LabelSpace("score", ("scale",))})
    spaces = {"number": LabelSpace("score", ("scale",)), "label": LABEL, "target": TARGET}
    for annotated, lacking in (({"label": 0, "target": 2}, "label"), ({"label": 2, "target": 0}, "target")):
        with pytest.raises(UserError, match=f"task '{lacking}': no post of the val split is annotated"):
            Calibration(bins=15).check(spaces, Beforehand({}, {}, {"number": 0, **annotated}))
    Calibration(bins=15).check(spaces, Beforehand({}, {}, {"number": 0, "label": 1, "target": 1}))
