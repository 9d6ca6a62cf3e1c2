"""Areas under ROC curves, against scikit-learn."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torchmetrics.functional import auroc

from hatemtl.errors import UserError
from hatemtl.evaluations.auroc import AUROC
from hatemtl.evaluations.base import Predicted
from hatemtl.labels import LabelSpace

NAMES = ("a", "b", "c")


def said(kind: Any, scores: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    space = LabelSpace(kind, NAMES)
    rows = AUROC().rows({"t": Predicted("test", space, np.arange(len(gold)), scores, gold)}, {})
    return {row.metric: row.value for row in rows}


@pytest.mark.parametrize("seed", range(3))
def test_of_one_label_a_post_it_is_scikit_learns(seed: int) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.dirichlet(np.ones(3), 60).round(1).astype(np.float32) + np.float32(1e-3)  # with ties
    scores /= scores.sum(axis=1, keepdims=True)
    gold = np.concatenate([np.arange(3), draw.integers(3, size=57)])
    found = said("multiclass", scores, gold)
    assert found["test_t_auroc"] == pytest.approx(roc_auc_score(gold, scores, multi_class="ovo", average="macro"))
    for i, name in enumerate(NAMES):
        assert found[f"test_t_auroc_{name}"] == pytest.approx(roc_auc_score(gold == i, scores[:, i]))


def test_of_several_labels_a_post_it_is_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    scores, gold = draw.random((50, 3)).astype(np.float32), (draw.random((50, 3)) < 0.4).astype(np.float32)
    assert said("multilabel", scores, gold)["test_t_auroc"] == pytest.approx(roc_auc_score(gold, scores, average="macro"))


@pytest.mark.parametrize("scores", [[0.5] * 6, [0.1, 0.1, 0.9, 0.9, 0.9, 0.1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
def test_of_ties_and_of_all_right_or_wrong_it_is_torchmetrics(scores: list[float]) -> None:
    gold = np.array([[1, 0, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)
    given = np.stack([scores] * 3, axis=1).astype(np.float32)
    found = said("multilabel", given, gold)
    theirs = auroc(torch.from_numpy(given), torch.from_numpy(gold).int(), task="multilabel", num_labels=3, average="none")
    assert [found[f"test_t_auroc_{name}"] for name in NAMES] == pytest.approx(theirs.tolist(), abs=1e-6)


def test_a_label_that_no_post_carries_is_in_no_mean() -> None:
    scores = np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.6, 0.3, 0.1]])
    assert said("multiclass", scores, np.array([0, 1, 0])) == {"test_t_auroc_a": 1, "test_t_auroc_b": 1, "test_t_auroc": 1}
    assert said("multiclass", scores, np.array([0, 0, 0])) == {}


def test_it_is_for_tasks_of_labels() -> None:
    with pytest.raises(UserError, match="expected a multiclass, ordinal or multilabel task, and 's' is score"):
        AUROC().check({"s": LabelSpace("score", ("s",))})
