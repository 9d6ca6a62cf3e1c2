"""Metrics as formulas over sums of posts: against the heads that made the rows, and against scikit-learn under weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from figures import by_key
from outcomes import Outcome, read_outcome
from pyarrow import parquet
from results import Results, ResultsError, read_predictions, read_results
from sklearn import metrics as reference
from tested_runs import NAMES, classes, save

from hatemtl.answers import worth
from hatemtl.evaluations.base import Predicted
from hatemtl.evaluations.calibration import Calibration
from hatemtl.heads.base import Head
from hatemtl.heads.choice import ChoiceHead
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.heads.ordinal import OrdinalHead
from hatemtl.heads.score import ScoreHead
from hatemtl.heads.tokens import TokensHead
from hatemtl.labels import LabelSpace

POSTS = 40
SHARED: dict[str, Any] = {"hidden_size": 4, "layers": 1, "dropout": 0.0}
HEADS: dict[str, Callable[[LabelSpace], Head]] = {
    "multiclass": lambda space: MulticlassHead(**SHARED, space=space, pooling="cls", label_smoothing=0, balance=0),
    "multilabel": lambda space: MultilabelHead(**SHARED, space=space, pooling="cls", threshold=0.7, balance=0),
    "ordinal": lambda space: OrdinalHead(**SHARED, space=space, pooling="cls", balance=0),
    "choice": lambda space: ChoiceHead(**SHARED, space=space, pooling="cls"),
    "score": lambda space: ScoreHead(**SHARED, space=space, pooling="cls", loss="mse"),
    "tokens": lambda space: TokensHead(**SHARED, space=space, threshold=0.7, balance=0),
}


def drawn(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and targets of POSTS posts; some scores of .7 exactly, which a threshold of .7 takes in."""
    draw = torch.Generator().manual_seed(3)
    width = {"score": 1, "tokens": 6}.get(kind, 3)
    scores = (torch.rand(POSTS, width, generator=draw) * 10).round() / 10
    if kind in ("multilabel", "tokens"):
        return scores, (torch.rand(POSTS, width, generator=draw) > 0.6).float()
    if kind == "score":
        return scores, scores[:, 0] + torch.randn(POSTS, generator=draw)
    scores = torch.rand(POSTS, width, generator=draw) if kind == "choice" else (scores + 0.01).softmax(dim=1)
    return scores, torch.randint(0, 3, (POSTS,), generator=draw)


def outcome(kind: str, scores: torch.Tensor, targets: torch.Tensor, threshold: float = 0.7) -> Outcome:
    gold = targets.double().reshape(len(targets), -1)
    names = NAMES if scores.shape[1] == 3 else ("one",)
    limits = np.full(len(names), threshold, np.float32)
    cells = [side.numpy().astype(np.float32) for side in (gold, scores)]
    if kind == "tokens":
        for i, side in enumerate(cells):
            cells[i] = np.empty(len(side), object)
            cells[i][:] = list(side)
    run = Results(Path("run/results.csv"), {})
    return Outcome(run, "label", kind, names, tuple(map(str, range(POSTS))), *cells, thresholds=limits)


@pytest.mark.parametrize("kind", HEADS)
def test_metrics_are_those_of_the_head(kind: str) -> None:
    scores, targets = drawn(kind)
    space = LabelSpace(kind, NAMES if scores.shape[1] == 3 else ("one",))  # type: ignore[arg-type]
    metric = HEADS[kind](space).metric()
    metric.update(scores, targets, torch.ones(POSTS, dtype=torch.bool))
    rows = by_key(HEADS[kind](space).rows(metric.compute()))
    found = {name: measure.value() for name, measure in outcome(kind, scores, targets).measures().items()}
    shared = found.keys() & rows.keys()
    assert found.keys() - rows.keys() <= {"micro_f1", "brier", "nll"}  # of classes it is the accuracy; of evaluations
    assert (
        not {name for name in rows if name not in found}
        - {"tp", "fp", "fn", "words_cut", "spearman"}
        - {name for name in rows if name[:3] in ("tp_", "fp_", "fn_")}
    )
    assert {name: found[name] for name in shared} == pytest.approx({name: rows[name] for name in shared}, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "name", "of"),
    [
        ("multiclass", "macro_f1", lambda g, t, w: reference.f1_score(t, g, average="macro", sample_weight=w)),
        ("multiclass", "matthews", lambda g, t, w: reference.matthews_corrcoef(t, g, sample_weight=w)),
        ("multiclass", "accuracy", lambda g, t, w: reference.accuracy_score(t, g, sample_weight=w)),
        ("multiclass", "micro_f1", lambda g, t, w: reference.f1_score(t, g, average="micro", sample_weight=w)),
        (
            "ordinal",
            "quadratic_kappa",
            lambda g, t, w: reference.cohen_kappa_score(t, g, weights="quadratic", sample_weight=w),
        ),
        (
            "multilabel",
            "macro_f1",
            lambda g, t, w: reference.f1_score(t, g, average="macro", sample_weight=w, zero_division=0),
        ),
        (
            "multilabel",
            "micro_f1",
            lambda g, t, w: reference.f1_score(t, g, average="micro", sample_weight=w, zero_division=0),
        ),
        ("multilabel", "f1_other", lambda g, t, w: reference.f1_score(t[:, 1], g[:, 1], sample_weight=w, zero_division=0)),
        ("score", "rmse", lambda g, t, w: reference.root_mean_squared_error(t, g, sample_weight=w)),
        ("score", "pearson", lambda g, t, w: np.corrcoef(np.repeat(g, w), np.repeat(t, w))[0, 1]),
    ],
)
def test_a_draw_of_posts_is_scikit_learns_metric_under_weights(kind: str, name: str, of: Callable[..., float]) -> None:
    scores, targets = drawn(kind)
    given = {
        "multiclass": scores.argmax(dim=1),
        "ordinal": (scores.cumsum(dim=1)[:, :-1] < 0.5).sum(dim=1),
        "multilabel": (scores >= torch.tensor(0.7)).int(),
        "score": scores[:, 0],
    }[kind]
    measure = outcome(kind, scores, targets).measures()[name]
    for seed in range(5):
        weights = np.bincount(np.random.default_rng(seed).integers(0, POSTS, POSTS), minlength=POSTS)
        found = float(measure.of(weights @ measure.indicators))
        assert found == pytest.approx(of(given.numpy(), targets.numpy(), weights), abs=1e-6)


@pytest.mark.parametrize("kind", ["multiclass", "ordinal", "multilabel"])
def test_brier_score_and_nll_are_those_of_the_evaluation(kind: str) -> None:
    scores, targets = drawn(kind)
    scores[0] = scores[0].round()  # probabilities of 0 and 1 too
    space = LabelSpace(kind, NAMES)  # type: ignore[arg-type]
    said = Predicted("test", space, np.arange(POSTS), scores.numpy(), targets.numpy())
    rows = {row.name: row.value for row in Calibration(bins=15).rows({"label": said}, {}, Reads(said))}
    found = outcome(kind, scores, targets).measures()
    for name in ("brier", "nll"):
        assert found[name].value() == pytest.approx(rows[name], rel=1e-9)


class Reads:
    """A reader whose validation posts are these too."""

    def __init__(self, said: Predicted) -> None:
        self.said = said

    def predicted(self, split: str) -> dict[str, Predicted]:
        return {"label": self.said}


def test_groups_are_summed_and_say_the_same() -> None:
    measure = outcome("multiclass", *drawn("multiclass")).measures()["macro_f1"]
    grouped = measure.grouped(np.arange(POSTS) % 7)
    assert len(grouped.indicators) == 7
    assert grouped.value() == measure.value()


def saved(folder: Path, **options: Any) -> Results:
    gold, scores = classes(30, 0.7, np.random.default_rng(0))
    right = float((scores.argmax(axis=1) == gold[:, 0]).mean())
    return read_results(save(folder, gold, scores, rows={"test_label_accuracy": right}, **options) / "results.csv")


def test_posts_are_read_by_id_and_thresholds_a_label(tmp_path: Path) -> None:
    gold, scores = [[0, 1], [1, 1]], [[0.2, 0.7], [0.4, 0.3]]
    run = read_results(
        save(tmp_path / "a", gold, scores, kind="multilabel", names=["x", "y"], posts=["b", "a"]) / "results.csv"
    )
    read = read_outcome(run, "label")
    assert read.posts == ("a", "b") and read.gold.tolist() == [[1, 1], [0, 1]]
    assert read.measures()["f1_x"].value() == 0
    (tmp_path / "a" / "config.yaml").write_text("tasks: {label: {head: {threshold: 0.2}}}")
    assert read_outcome(run, "label").measures()["f1_x"].value() == pytest.approx(2 / 3)
    (tmp_path / "a" / "labels.json").write_text(
        json.dumps({"label": {"kind": "multilabel", "names": ["x", "y"], "thresholds": [0.4, 0.7]}})
    )
    read = read_outcome(run, "label")
    assert read.measures()["f1_x"].value() == 1
    assert read.measures()["f1_y"].value() == pytest.approx(2 / 3)
    for wrong in ([0.4], [0.4, "tuned"]):
        content = {"label": {"kind": "multilabel", "names": ["x", "y"], "thresholds": wrong}}
        (tmp_path / "a" / "labels.json").write_text(json.dumps(content))
        with pytest.raises(ResultsError, match="expected a number for each of 2 labels"):
            read_outcome(run, "label")


def test_predictions_that_are_small_and_stand_for_what_fills_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved(tmp_path / "a")
    path = tmp_path / "a" / "predictions.parquet"
    monkeypatch.setattr("hatemtl.machine.parquet.UNPACKED", 1 << 20)
    texts = pa.array(["x" * 1000] * 5000)
    columns = {"post_id": texts, "task": texts, "gold": texts, "scores": texts, "text": texts}
    parquet.write_table(pa.table(columns), path, compression="zstd")
    for read in (lambda: read_outcome(run, "label"), lambda: read_predictions(run, "label")):
        with pytest.raises(ResultsError, match=r"predictions.parquet.* unpacks to more than \d MiB"):
            read()
    parquet.write_table(pa.table({"post_id": ["a"]}), path)
    for read in (lambda: read_outcome(run, "label"), lambda: read_predictions(run, "label")):
        with pytest.raises(ResultsError, match=r"predictions.parquet.*has no column task"):
            read()


def test_a_test_that_is_not_the_one_in_results_is_refused(tmp_path: Path) -> None:
    run = saved(tmp_path / "a")
    read_outcome(run, "label").check()
    (tmp_path / "a" / "results.csv").write_text("metric,value\ntest_label_accuracy,0.99\n")
    with pytest.raises(ResultsError, match=r"tested again\?"):
        read_outcome(read_results(tmp_path / "a" / "results.csv"), "label").check()


def test_what_is_missing_or_garbled_is_refused(tmp_path: Path) -> None:
    run = saved(tmp_path / "a")
    with pytest.raises(ResultsError, match="labels.json"):
        read_outcome(run, "target")
    (tmp_path / "a" / "predictions.parquet").write_bytes(b"garbled")
    with pytest.raises(ResultsError, match="cannot be read"):
        read_outcome(run, "label")
    (tmp_path / "a" / "predictions.parquet").unlink()
    with pytest.raises(ResultsError, match="no predictions.parquet"):
        read_outcome(run, "label")
    saved(tmp_path / "a", posts=["same"] * 30)
    with pytest.raises(ResultsError, match="one row a post"):
        read_outcome(run, "label")
    saved(tmp_path / "a", kind="score", names=["one"])
    with pytest.raises(
        ResultsError, match="one row a post of task 'label', with 1 scores, given 30 rows of 30 posts with 3"
    ):
        read_outcome(run, "label")


def test_answers_are_judged_as_the_network_was(tmp_path: Path) -> None:
    said = ["The choir", "«soup»", "a", "in 1961", ""]
    right = [["choir", "the big choir"], ["soup"], ["the"], ["1961", "April of 1961"], ["cake"]]
    em, f1 = (sum(of) / len(said) for of in zip(*map(worth, said, right), strict=True))
    rows = {"test_label_em": em, "test_label_f1": f1}
    run = read_results(save(tmp_path / "a", [[0]] * 5, [[0]] * 5, kind="span", names=["answer"], rows=rows) / "results.csv")
    with pytest.raises(ResultsError, match="cannot be read"):
        read_outcome(run, "label")
    frame = pd.read_parquet(tmp_path / "a" / "predictions.parquet")
    frame.assign(answer=said, right_answers=right).to_parquet(tmp_path / "a" / "predictions.parquet")
    read = read_outcome(run, "label")
    read.check()
    found = read.measures()
    assert (found["em"].value(), found["f1"].value()) == pytest.approx((em, f1))
    assert float(found["em"].of(np.array([0, 0, 2, 0, 0]) @ found["em"].indicators)) == 1


@pytest.mark.parametrize("kind", HEADS)
def test_many_draws_at_once_are_each_draw_alone_whatever_their_weight(kind: str) -> None:
    """Also draws of no post, of one, and of posts that are all of one label."""
    scores, targets = drawn(kind)
    draw = np.random.default_rng(0)
    weights = np.stack([draw.multinomial(POSTS, np.full(POSTS, 1 / POSTS)) for _ in range(6)]).astype(float)
    same = np.ones(POSTS) if targets.ndim > 1 else (targets == targets[0]).numpy().astype(float)
    weights = np.concatenate([weights, np.zeros((1, POSTS)), np.eye(POSTS)[:2], same[None]])
    for name, measure in outcome(kind, scores, targets).measures().items():
        sums = weights @ measure.indicators
        alone = np.array([float(measure.of(one)) for one in sums])
        assert np.isfinite(alone).all(), name
        np.testing.assert_allclose(measure.of(sums), alone, atol=1e-12, err_msg=name)
        stacked = measure.of(sums.reshape(2, 5, -1))
        np.testing.assert_allclose(stacked, alone.reshape(2, 5), atol=1e-12, err_msg=name)
        np.testing.assert_allclose(measure.of(sums / 64), alone, atol=1e-9, err_msg=name)  # of shares of posts


def test_agreement_of_posts_of_one_level_is_none_beyond_chance() -> None:
    one = torch.tensor([[1.0, 0.0, 0.0]]).repeat(POSTS, 1)
    found = outcome("ordinal", one, torch.zeros(POSTS, dtype=torch.int64)).measures()
    assert found["quadratic_kappa"].value() == found["spearman"].value() == 0
    assert found["accuracy"].value() == 1 and found["mae"].value() == 0


def test_where_levels_share_all_the_probability_alike_the_lower_is_the_median_as_in_the_head() -> None:
    scores, targets = torch.tensor([[0.5, 0.5, 0.0]]).repeat(POSTS, 1), torch.zeros(POSTS, dtype=torch.int64)
    metric = HEADS["ordinal"](LabelSpace("ordinal", NAMES)).metric()
    metric.update(scores, targets, torch.ones(POSTS, dtype=torch.bool))
    rows = by_key(HEADS["ordinal"](LabelSpace("ordinal", NAMES)).rows(metric.compute()))
    found = outcome("ordinal", scores, targets).measures()
    assert found["accuracy"].value() == rows["accuracy"] == 1 and found["mae"].value() == rows["mae"] == 0
