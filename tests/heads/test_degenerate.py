"""Figures where little is to be measured, one class, one post, ties, all wrong, beside scikit-learn and torchmetrics."""

import warnings
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from figures import by_key
from scipy.stats import ConstantInputWarning, pearsonr, spearmanr
from sklearn import metrics as theirs
from torchmetrics import functional as tm

from hatemtl.heads.base import Head
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.heads.ordinal import OrdinalHead
from hatemtl.heads.score import ScoreHead
from hatemtl.heads.tokens import TokensHead
from hatemtl.labels import Kind, LabelSpace

NAMES = ("a", "b", "c")
POOLED: dict[str, Any] = {"hidden_size": 8, "pooling": "mean", "layers": 1, "dropout": 0.0}


def draw(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# What is true and what is said of N posts, by the position of their label.
CLASSES = {
    "one post, right": ([1], [1]),
    "one post, wrong": ([1], [2]),
    "two posts, crossed": ([0, 1], [1, 0]),
    "one class, all right": ([2] * 9, [2] * 9),
    "one class, all wrong": ([2] * 9, [0] * 9),
    "one class true, all said": ([1] * 6, [0, 1, 2] * 2),
    "all true, one class said": ([0, 1, 2] * 2, [1] * 6),
    "a class neither true nor said": ([0, 1, 0, 1], [0, 0, 1, 1]),
    "a class said alone": ([0, 0, 1], [0, 2, 1]),
    "a class true alone": ([0, 2, 1], [0, 0, 1]),
    "all right": ([0, 1, 2, 2], [0, 1, 2, 2]),
    "all wrong": ([0, 1, 2, 2], [1, 2, 0, 0]),
    "rare": ([0] * 500 + [1], [0] * 501),
    **{f"drawn {i}": tuple(draw(i).integers(0, 3, (2, int(draw(i).integers(2, 30)))).tolist()) for i in range(6)},
}
# And by rows of yes and no.
ANSWERS = {
    "one post, none": ([[0, 0, 0]], [[0, 0, 0]]),
    "one post, all": ([[1, 1, 1]], [[1, 1, 1]]),
    "none true, all said": ([[0] * 3] * 4, [[1] * 3] * 4),
    "all true, none said": ([[1] * 3] * 4, [[0] * 3] * 4),
    "a label never": ([[1, 0, 0], [0, 1, 0]], [[1, 1, 0], [0, 1, 0]]),
    "a label always": ([[1, 0, 1], [0, 1, 1]], [[0, 0, 1], [1, 1, 1]]),
    "opposite": ([[1, 0, 1], [0, 1, 0]], [[0, 1, 0], [1, 0, 1]]),
    **{f"drawn {i}": tuple((draw(i).random((2, 12, 3)) < 0.1 * (i + 1)).astype(int).tolist()) for i in range(6)},
}
VALUES = {
    "one post": ([2.0], [3.0]),
    "two posts": ([1.0, 2.0], [2.0, 4.0]),
    "two posts, turned": ([1.0, 2.0], [4.0, 2.0]),
    "all true alike": ([3.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]),
    "all said alike": ([1.0, 2.0, 3.0, 4.0, 5.0], [3.0] * 5),
    "all alike": ([3.0] * 5, [3.0] * 5),
    "right": ([0.5, -1.0, 2.0], [0.5, -1.0, 2.0]),
    "ties": ([1.0, 1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 2.0, 2.0, 1.0]),
    "far from zero": ([1e6, 1e6 + 1, 1e6 + 2, 1e6 + 4], [1e6 + 3, 1e6 + 1, 1e6 + 5, 1e6 + 9]),
    "huge and tiny": ([1e-6, 1e6, 0.0, -1e6], [1e-6, 1e5, 1.0, -1e6]),
}


def rows(head: Head, scores: Any, targets: torch.Tensor) -> dict[str, float]:
    """What a head says of posts that come in threes."""
    metric = head.metric()
    for some in torch.arange(len(targets)).split(3):
        metric.update(torch.as_tensor(scores)[some], targets[some], torch.ones(len(some), dtype=torch.bool))
    return by_key(head.rows(metric.compute()))


def finite(value: float) -> float:
    """A coefficient that is not defined is 0 here, NaN there."""
    return value if np.isfinite(value) else 0.0


def quietly(of: Callable[..., Any], *given: Any, **how: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        return of(*given, **how)


@pytest.mark.parametrize("case", CLASSES)
def test_labels_one_a_post(case: str) -> None:
    truth, said = (np.array(side) for side in CLASSES[case])
    head = MulticlassHead(**POOLED, space=LabelSpace("multiclass", NAMES), balance=0.0, label_smoothing=0.0)
    found = rows(head, torch.eye(3)[said], torch.from_numpy(truth))
    each = theirs.f1_score(truth, said, labels=range(3), average=None, zero_division=0)
    assert [found[f"f1_{name}"] for name in NAMES] == pytest.approx(each.tolist())
    given = torch.from_numpy(said), torch.from_numpy(truth)
    assert [found[f"f1_{name}"] for name in NAMES] == pytest.approx(
        tm.f1_score(*given, task="multiclass", num_classes=3, average="none").tolist()
    )
    assert found["macro_f1"] == pytest.approx(each.mean())
    assert found["accuracy"] == pytest.approx(theirs.accuracy_score(truth, said))
    assert found["matthews"] == pytest.approx(quietly(theirs.matthews_corrcoef, truth, said))
    of_tm = quietly(tm.matthews_corrcoef, *given, task="multiclass", num_classes=3)
    if len({*truth}) > 1 and len({*said}) > 1:  # else torchmetrics gives 1 where all is right, where nothing can be wrong
        assert found["matthews"] == pytest.approx(float(of_tm), abs=1e-6)


@pytest.mark.parametrize("case", CLASSES)
def test_levels(case: str) -> None:
    truth, said = (np.array(side) for side in CLASSES[case])
    head = OrdinalHead(**POOLED, space=LabelSpace("ordinal", NAMES), balance=0.0)
    found = rows(head, torch.eye(3)[said], torch.from_numpy(truth))
    assert found["mae"] == pytest.approx(theirs.mean_absolute_error(truth, said))
    assert found["accuracy"] == pytest.approx(theirs.accuracy_score(truth, said))
    f1 = theirs.f1_score(truth, said, labels=range(3), average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(f1)
    kappa = quietly(theirs.cohen_kappa_score, truth, said, weights="quadratic", labels=range(3))
    assert found["quadratic_kappa"] == pytest.approx(finite(kappa))
    spearman = quietly(spearmanr, truth, said).statistic if len(truth) > 1 else 0.0
    assert found["spearman"] == pytest.approx(finite(spearman))


@pytest.mark.parametrize("case", ANSWERS)
def test_labels_any_number_a_post(case: str) -> None:
    truth, said = (np.array(side) for side in ANSWERS[case])
    head = MultilabelHead(**POOLED, space=LabelSpace("multilabel", NAMES), threshold=0.5, balance=0.0)
    found = rows(head, torch.from_numpy(0.2 + 0.6 * said).float(), torch.from_numpy(truth).float())
    each = theirs.f1_score(truth, said, average=None, zero_division=0)
    assert [found[f"f1_{name}"] for name in NAMES] == pytest.approx(each.tolist())
    assert found["macro_f1"] == pytest.approx(each.mean())
    assert found["micro_f1"] == pytest.approx(theirs.f1_score(truth, said, average="micro", zero_division=0))
    given = torch.from_numpy(said), torch.from_numpy(truth)
    for average, key in (("macro", "macro_f1"), ("micro", "micro_f1")):
        f1 = tm.f1_score(*given, task="multilabel", num_labels=3, average=average)
        if average == "micro" or (truth | said).any(axis=0).all():  # its mean leaves out a label that is nowhere
            assert found[key] == pytest.approx(float(f1))


@pytest.mark.parametrize("case", ANSWERS)
def test_marked_words(case: str) -> None:
    truth, said = (np.array(side) for side in ANSWERS[case])
    head = TokensHead(
        hidden_size=8, space=LabelSpace("tokens", ("marked",)), layers=1, dropout=0.0, threshold=0.5, balance=0.0
    )
    found = rows(head, torch.from_numpy(0.2 + 0.6 * said).float(), torch.from_numpy(truth).float())
    precision, recall, f1, _ = theirs.precision_recall_fscore_support(
        truth.ravel(), said.ravel(), average="binary", zero_division=0
    )
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx((precision, recall, f1))
    assert found["f1"] == pytest.approx(float(tm.f1_score(*map(torch.from_numpy, (said, truth)), task="binary")))


@pytest.mark.parametrize("case", VALUES)
def test_numbers(case: str) -> None:
    truth, said = (np.array(side) for side in VALUES[case])
    head = ScoreHead(**POOLED, space=LabelSpace("score", ("x",)), loss="mse")
    found = rows(head, torch.from_numpy(said).float()[:, None], torch.from_numpy(truth).float())
    assert found["mae"] == pytest.approx(theirs.mean_absolute_error(truth, said))
    assert found["rmse"] == pytest.approx(theirs.root_mean_squared_error(truth, said))
    pearson = quietly(pearsonr, truth, said).statistic if len(truth) > 1 else 0.0
    spearman = quietly(spearmanr, truth, said).statistic if len(truth) > 1 else 0.0
    assert found["pearson"] == pytest.approx(finite(pearson), abs=1e-6)
    assert found["spearman"] == pytest.approx(finite(spearman), abs=1e-6)


def test_each_kind_of_labels_is_here() -> None:
    """But for spans, choices and masked tokens, whose figures are worked out by hand in their own files."""
    here: set[Kind] = {"multiclass", "ordinal", "multilabel", "tokens", "score"}
    assert {*get_args(Kind)} - here == {"span", "choice", "masked"}
