"""Thresholds tuned on validation posts: the search by trying all, what a run keeps of them, and who uses them."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Outcome
from sklearn.metrics import f1_score

from hatemtl.errors import UserError
from hatemtl.evaluations.base import Predicted
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.heads.tokens import TokensHead
from hatemtl.labels import LabelSpace
from hatemtl.saved_runs.saved_run import SavedRun, write_config, write_labels, write_record
from hatemtl.training.thresholds import best, tune

Cli = Callable[..., Outcome]
TARGET = LabelSpace("multilabel", ("a", "b", "c"))
HEAD: Any = partial(MultilabelHead, hidden_size=4, space=TARGET, pooling="cls", layers=1, dropout=0.0, balance=0.0)
WORDS: Any = partial(TokensHead, hidden_size=4, space=LabelSpace("tokens", ("marked",)), layers=1, dropout=0.0, balance=0.0)


@pytest.mark.parametrize("decimals", [1, 7])
@pytest.mark.parametrize("seed", range(10))
def test_no_other_threshold_has_a_better_f1(seed: int, decimals: int) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.random(30).round(decimals).astype(np.float32)
    true = draw.random(30) < scores * 0.6
    true[0] = True
    found = np.float32(best(scores, true))
    tried = np.unique(np.concatenate([scores, [np.float32(0.5)], draw.random(50).astype(np.float32)]))
    f1s = [f1_score(true, scores >= t, zero_division=0) for t in tried]
    assert 0 < found <= 1
    assert f1_score(true, scores >= found) == pytest.approx(max(f1s))
    assert f1_score(true, scores >= 0.5, zero_division=0) < max(f1s) - 1e-12 or found == 0.5


@pytest.mark.parametrize(
    ("scores", "true", "expected"),
    [
        ([0.9, 0.6, 0.3, 0.1], [1, 1, 0, 0], 0.5),  # as good as the middle, .45
        ([0.9, 0.3, 0.1], [1, 1, 0], 0.2),
        ([0.9, 0.8, 0.7], [1, 0, 0], 0.85),
        ([0.4, 0.2], [1, 1], 0.1),
        ([0.8, 0.7, 0.2, 0.1], [0, 0, 0, 0], 0.5),  # nothing to be found
        ([0.9, 0.8, 0.8, 0.3], [1, 1, 0, 0], 0.5),  # equal scores are predicted together
        ([0.4, 0.0], [1, 1], 0.2),  # who scores 0 is never predicted
    ],
)
def test_thresholds_by_hand(scores: list[float], true: list[int], expected: float) -> None:
    assert best(np.array(scores, np.float32), np.array(true, bool)) == pytest.approx(expected)


def test_neighbours_and_certainties_are_told_apart() -> None:
    for low in (np.float32(0.3), np.nextafter(np.float32(1), np.float32(0))):
        scores = np.array([np.nextafter(low, np.float32(2)), low])
        found = best(scores, np.array([True, False]))
        assert (scores >= np.float32(found)).tolist() == [True, False]


def test_labels_have_thresholds_of_their_own_that_count_and_decode_alike() -> None:
    draw = np.random.default_rng(0)
    scores = draw.random((200, 3)).astype(np.float32)
    gold = (draw.random((200, 3)) < scores * [0.2, 0.5, 1.0]).astype(np.float32)
    head = HEAD(threshold="tuned")
    assert head.threshold.tolist() == [0.5] * 3
    before = f1_score(gold > 0, scores >= 0.5, average="macro")
    tune(head, Predicted("val", TARGET, np.arange(200), scores, gold))
    cuts = head.threshold.numpy()
    assert cuts.tolist() == [best(scores[:, c], gold[:, c] > 0) for c in range(3)] and len({*cuts.tolist()}) == 3
    metric = head.metric()
    metric.update(torch.from_numpy(scores), torch.from_numpy(gold), torch.ones(200, dtype=torch.bool))
    rows = {figure.key: figure.value for figure in head.rows(metric.compute())}
    assert (
        rows["macro_f1"] == pytest.approx(f1_score(gold > 0, scores >= cuts, average="macro")) and rows["macro_f1"] > before
    )
    for row in scores.tolist()[:50]:
        assert head.decode(row, []) == [n for n, s, t in zip("abc", row, cuts.tolist(), strict=True) if s >= t]
    assert head.decode(cuts.tolist(), []) == ["a", "b", "c"], "a score at its threshold is a yes"
    assert np.array_equal(np.array(head.written_thresholds(), np.float32), cuts)


def test_words_are_pooled_and_those_without_a_token_left_out() -> None:
    head, space = WORDS(threshold="tuned"), LabelSpace("tokens", ("marked",))
    each = ([0.9, np.nan, 0.3], [], [0.2, 0.1])
    marks = ([1, 1, 0.5], [], [0, 0])
    scores, gold = (np.fromiter((np.array(of, np.float32) for of in some), object, 3) for some in (each, marks))
    tune(head, Predicted("val", space, np.arange(3), scores, gold))
    assert head.threshold.tolist() == pytest.approx([0.25])


@pytest.mark.parametrize("make", [HEAD, WORDS])
def test_a_number_is_as_it_was_typed(make: Any) -> None:
    head = make(threshold=0.3)
    assert not head.tunes and head.written_thresholds() == [0.3] * len(head.space)
    assert "threshold" not in head.state_dict()


def test_thresholds_of_a_saved_run(tmp_path: Path) -> None:
    write_config(tmp_path, {"tasks": {}})
    write_record(tmp_path, dict.fromkeys(("method", "library", "encoder", "encoder_source"), ""))
    spaces = {"target": TARGET, "label": LabelSpace("multiclass", ("x", "y"))}
    write_labels(tmp_path, spaces, {"target": [0.25, 0.5, 1.0], "label": None})
    saved = SavedRun(tmp_path)
    assert (saved.labels, saved.thresholds) == (spaces, {"target": [0.25, 0.5, 1.0]})
    assert list(json.loads((tmp_path / "labels.json").read_text())["target"]) == ["kind", "names", "thresholds"]
    for wrong in ([0.5], [0.5, 0.5, 2.0], "half", [0.5, 0.5, None]):
        write_labels(tmp_path, spaces, {"target": wrong})  # type: ignore[dict-item]
        with pytest.raises(
            UserError, match="the thresholds of task 'target' are .* for each of a, b, c; train the run again"
        ):
            _ = saved.thresholds
    write_labels(tmp_path, spaces)
    assert saved.thresholds == {}


@pytest.mark.slow
def test_a_run_tunes_keeps_and_uses_its_thresholds(cli: Cli, sample: list[str], tmp_path: Path) -> None:
    """Of a run that was there before, without training: test, prediction and a reckoning of its predictions agree."""
    plain, run = tmp_path / "plain", tmp_path / "run"
    few = [*sample, "tasks=[target]", "tasks.target.corpus.size=400"]
    assert cli(*few, f"save_path={plain}", "action=[train,test]").code == 0
    assert SavedRun(plain).thresholds == {"target": [0.5] * 11}
    on = [*few, "optimization.epochs=0", "method=ah_load", f"load_path={plain}", "heads.load=true"]
    told = cli(*on, "tasks.target.head.threshold=tuned", f"save_path={run}", "action=[train,test]")
    assert told.code == 0, told.err
    assert "thresholds of target: african 0." in told.out
    saved, names = SavedRun(run), SavedRun(run).labels["target"].names
    cuts = np.array(saved.thresholds["target"], np.float32)
    assert len(cuts) == 11 and (cuts != 0.5).any()
    before, tested = SavedRun(plain).results, saved.results
    assert {k: v for k, v in tested.items() if k.startswith("val_")} == {
        k: v for k, v in before.items() if k.startswith("val_")
    }, "validation rows are of 1/2"

    def reckoned() -> float:
        frame = pd.read_parquet(run / "predictions.parquet")
        scores, gold = (np.stack(list(frame[of])).astype(np.float32) for of in ("scores", "gold"))
        return float(f1_score(gold >= 0.5, scores >= cuts, average="macro", zero_division=0))

    assert tested["test_target_macro_f1"] == pytest.approx(reckoned())
    again = cli("action=test", f"load_path={run}")
    assert again.code == 0, again.err
    assert SavedRun(run).results == pytest.approx(tested)
    # predictions of one's own
    posts = tmp_path / "posts.csv"
    posts.write_text("text\n" + "\n".join(f"a post of mine number {i}" for i in range(20)) + "\n")
    assert cli("action=predict", f"load_path={run}", f"predict.input={posts}").code == 0
    for _, row in pd.read_csv(tmp_path / "posts.scored.csv", keep_default_na=False).iterrows():
        chosen = [name for name, cut in zip(names, cuts, strict=True) if row[f"pred_target_{name}"] >= cut]
        assert [name for name in row["pred_target"].replace("|", " ").replace(",", " ").split() if name] == chosen
    # a number that is typed takes their place; what was never tuned cannot be used as tuned
    number = cli("action=test", f"load_path={run}", "tasks.target.head.threshold=0.5", f"save_path={tmp_path}/half")
    assert number.code == 0 and "tasks.target.head.threshold=tuned, and this run predicts from 0.5" in number.out
    half = pd.read_csv(tmp_path / "half" / "results.csv").set_index("metric")["value"]
    assert half["test_target_macro_f1"] == pytest.approx(before["test_target_macro_f1"])
    never = cli("action=test", f"load_path={plain}", "tasks.target.head.threshold=tuned", f"save_path={tmp_path}/never")
    assert never.code == 2 and "has no tuned thresholds; tune them by action=train" in never.err
    wrong = cli(*few, "tasks.target.head.threshold=tuend", f"save_path={tmp_path}/wrong")
    assert wrong.code == 2 and "expected a number or tuned; did you mean 'tuned'" in wrong.err
