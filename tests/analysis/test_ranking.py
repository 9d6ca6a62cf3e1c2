"""Rows are settings, best first, seeds pooled; what failed and what to type stand below."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tested_runs import classes, save

Script = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Ranks 4 and 16, the better one with three seeds; the third is worse in the mean of nothing but its own."""
    gold, scores = classes(20, 0.5, np.random.default_rng(0))
    runs = {(4, 1): 0.60, (4, 2): 0.70, (16, 1): 0.70, (16, 2): 0.72, (16, 3): 0.74, (64, 1): 0.50}
    for (rank, seed), f1 in runs.items():
        rows = {"val_label_macro_f1": f1, "val_label_ece": 1 - f1, "test_label_macro_f1": f1 - 0.1}
        words = [f"method.rank={rank}", f"seed={seed}", 'save_path="runs/x"', "tasks=[label]"]
        config = {"method": {"rank": rank}, "launcher": {"jobs": rank}}
        save(tmp_path / "runs" / f"rank={rank},seed={seed}", gold, scores, seed=seed, rows=rows, config=config,
             words=words, seconds=100.0 / rank)  # fmt: skip
    return tmp_path


def table(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if "+" not in line]


def test_settings_are_ranked_by_their_mean_over_seeds(run: Script, sweep: Path) -> None:
    code, out, err = run("runs/*", "--by", "val_label_macro_f1")
    assert (code, table(out)) == (
        0,
        [
            ["rank", "method.rank", "val_label_macro_f1", "runs"],
            ["1", "16", "0.720 ± 0.050", "3"],  # 4.303 · 0.02 / √3
            ["2", "4", "0.650 ± 0.635", "2"],  # 12.706 · 0.0707 / √2
            ["3", "64", "0.500", "1"],
        ],
    )
    assert "uv run main.py method.rank=16 seed=1 'tasks=[label]' save_path=adapters/winner" in err
    assert "high partly because it was chosen" in err
    assert "± reaches beyond what val_label_macro_f1 can be: too few runs to say more" in err  # 0.650 + 0.635
    assert "reaches beyond" not in run("runs/*", "--by", "val_label_macro_f1", "--top", "1")[2]
    code, out, _ = run("runs/rank=16*", "--by", "val_label_macro_f1")
    assert (code, table(out)[1]) == (0, ["1", "any seed", "0.720 ± 0.050", "3"])  # and none by its name


def test_what_the_data_and_the_trainer_do_sets_runs_apart_but_not_where_they_lie(run: Script, tmp_path: Path) -> None:
    """One seed, so that pooling these would tell a spread over seeds of runs that are none."""
    data, gold_and_scores = {"leaks": "warn", "dir": "data", "cache": "~"}, classes(20, 0.5, np.random.default_rng(0))
    for name, config in {
        "warn": {"data": data, "trainer": {"precision": "32", "progress": None}},
        "drop": {"data": {**data, "leaks": "drop", "dir": "elsewhere"}, "trainer": {"precision": "bf16", "progress": True}},
    }.items():
        save(tmp_path / "runs" / name, *gold_and_scores, config=config, seconds=10.0 + 90 * (name == "drop"))
    code, out, _ = run("runs/*", "--by", "seconds")
    assert (code, table(out)) == (
        0,
        [
            ["rank", "data.leaks", "trainer.precision", "seconds", "runs"],
            ["1", "warn", "32", "10.000", "1"],
            ["2", "drop", "bf16", "100.000", "1"],
        ],
    )


def test_less_is_better_of_errors_and_of_costs(run: Script, sweep: Path) -> None:
    for by, order in (("val_label_ece", ["16", "4", "64"]), ("seconds", ["64", "16", "4"])):
        code, out, _ = run("runs/*", "--by", by)
        assert (code, [row[1] for row in table(out)[1:]]) == (0, order)
    assert [row[1] for row in table(run("runs/*", "--by", "seconds", "--top", "1")[1])[1:]] == ["64"]


def test_the_command_keeps_the_test_that_its_evaluations_judge(run: Script, tmp_path: Path) -> None:
    data = classes(20, 0.5, np.random.default_rng(0))
    for name, action in (("a", "action=[train,test]"), ("b", "action=tune")):
        words = [action, "evaluations=[bias]", "tune.trials=3"]
        save(tmp_path / name, *data, rows={"val_label_macro_f1": 0.5}, words=words)
    assert "main.py 'action=[train,test]' 'evaluations=[bias]' save_path=" in run("a", "--by", "val_label_macro_f1")[2]
    assert "main.py 'evaluations=[bias]' save_path=" in run("b", "--by", "val_label_macro_f1")[2]


def test_what_failed_is_told_and_so_is_a_choice_by_the_test(run: Script, sweep: Path) -> None:
    record = {"status": "diverged", "message": "the training loss is nan", "configuration": "0"}
    (sweep / "runs" / ".rank=99.failed.json").write_text(json.dumps(record))
    code, _, err = run("runs/*", "--by", "test_label_macro_f1")
    assert code == 0
    assert "not in the table: rank=99 diverged: the training loss is nan" in err
    assert "no test any more" in err


def test_a_metric_that_no_run_has(run: Script, sweep: Path) -> None:
    code, out, err = run("runs/*", "--by", "val_label_f2")
    assert (code, out) == (2, "")
    assert "known: val_label_ece, val_label_macro_f1, examples_per_second, seconds" in err
