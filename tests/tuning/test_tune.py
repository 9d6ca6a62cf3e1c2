"""Whole searches from the command line: nine trials of three by three, and two processes at one study."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, Outcome

from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.tuning.search import value_at

Cli = Callable[..., Outcome]
RUN = ["encoder=tiny", "tasks=[label]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=150",
       "optimization.epochs=1", "action=tune"]  # fmt: skip
GRID = ["tune.sampler=grid", "tune.space.method.rank=[2,4,8]", "tune.space.optimization.encoder_lr=[1e-3,1e-2,1e-1]"]


def trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return [*csv.DictReader(file)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "tune.space is empty"),
        (["tune.space.method.rnak=[2,4]", "tune.trials=2"], "did you mean 'method.rank'"),
        (["tune.space.encoder=[tiny,tinny]", "tune.trials=2"], "did you mean 'tiny'"),
        (["tune.space.method.rank=[2,0]", "tune.trials=2"], "method.rank=0: expected"),
        (["tune.space.method.rank=[2,4]"], "type tune.trials=20 or tune.minutes=60"),
        ([*GRID, "tune.by=val_label_macro_f2"], "no task has this metric; did you mean 'val_label_macro_f1'"),
        ([*GRID, "tune.by=test_label_macro_f1"], "type tune.by=val_label_macro_f1"),
        ([*GRID, "tune.by=[val_label_macro_f1,-seconds]", "tune.pruner=median"], "judges by one objective"),
        ([*GRID, "tune.pruner=median"], "type tune.seeds=[0,1,2] as well"),
        ([*GRID, "tune.pruner=wilcoxon", "tune.seeds=[0,1,2]"], "type tune.seeds=[0, 1, 2, 3, 4], or tune.pruner=median"),
        (["tune.space.seed=[1,2,3]", "tune.trials=3"], "tune.space.seed: each trial has its own; for a run a seed"),
        ([*GRID, "overwrite=true"], "give another save_path"),
        ([*GRID, "tune.sampler=gird"], "tune.sampler=gird: expected"),
    ],
)
@pytest.mark.slow
def test_wrong_searches_are_named_and_nothing_is_written(cli: Cli, tmp_path: Path, words: list[str], said: str) -> None:
    outcome = cli(*RUN, *words, f"save_path={tmp_path}/study")
    assert outcome.code == 2, outcome.err
    assert said in outcome.err
    assert "Traceback" not in outcome.err
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_three_by_three_are_nine(cli: Cli, tmp_path: Path) -> None:
    study = tmp_path / "study"
    outcome = cli(*RUN, *GRID, f"save_path={study}", "tune.again=1")
    assert outcome.code == 0, outcome.err
    rows = trials(study)
    assert len(rows) == 9 and {row["state"] for row in rows} == {"complete"}
    runs = sorted(path.parent for path in study.glob("*/run.json"))
    assert len(runs) == 9 + 1
    best = rows[0]
    names = {(row["method.rank"], row["optimization.encoder_lr"]): row["val_label_macro_f1"] for row in rows}
    for run in map(SavedRun, runs):
        rank, rate = run.config["method"]["rank"], run.config["optimization"]["encoder_lr"]
        assert run.record["seed"] == 1 or run.results["val_label_macro_f1"] == float(names[str(rank), str(rate)])
    assert {path.name for path in study.glob("*.svg")} == {"history.svg", "importance.svg", "slices.svg"}
    assert "had no part in the choice" in outcome.out
    again = cli(*RUN, *GRID, f"save_path={study}", "tune.again=1")
    assert "epoch 1/1" not in again.out and trials(study) == rows  # nothing is trained anew
    (study / "journal.log").unlink()
    told = cli(*RUN, *GRID, f"save_path={study}", "tune.again=1")
    assert "holds the finished runs of 9 trials" in told.out and "epoch 1/1" not in told.out
    found = yaml.safe_load((study / "experiment" / "best.yaml").read_text())
    assert found["method"]["rank"] == int(best["method.rank"])
    assert found["optimization"]["encoder_lr"] == float(best["optimization.encoder_lr"])
    assert found["action"] == "train"  # whatever an experiment says that it is made from
    shown = cli("--config-dir", str(study), "experiment=best", "--cfg", "job").out
    cfg = yaml.safe_load(shown)
    assert (cfg["method"]["rank"], cfg["tasks"]["label"]["corpus"]["size"]) == (found["method"]["rank"], 150)
    other = cli(*RUN, *GRID, f"save_path={study}", "optimization.epochs=2")
    assert (other.code, "holds another study" in other.err) == (2, True)


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path: Path) -> None:
    """Six trials in all, each trained by one of them."""
    words = ["tune.space.optimization.encoder_lr=log(1e-4, 1e-1)", "tune.sampler=random", "tune.trials=6"]
    command = [sys.executable, "main.py", *RUN, *words, f"save_path={tmp_path}/study"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **options) for _ in range(2)]  # type: ignore[call-overload]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    rows = trials(tmp_path / "study")
    assert len(rows) == 6
    assert len({row["optimization.encoder_lr"] for row in rows}) == 6
    assert sum(out.count("epoch 1/1") for out, _ in said) == 6
    runs = [*(tmp_path / "study").glob("*/run.json")]
    assert len(runs) == 6 and all(json.loads(run.read_text())["status"] == "finished" for run in runs)


@pytest.mark.slow
def test_merges_and_thresholds_are_searched_without_a_step(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = ["encoder=tiny", "corpus@tasks.target.corpus=sample", "tasks.target.corpus.size=150"]
    for part in (1, 2):
        outcome = cli(
            *task, "optimization.epochs=1", f"tasks.target.mask_pattern='{part} 2'", f"save_path={tmp_path}/p{part}"
        )
        assert outcome.code == 0, outcome.err

    def stepped(*_: object, **__: object) -> None:
        raise AssertionError("an optimizer was stepped")

    for optimizer in (torch.optim.AdamW, torch.optim.SGD):
        monkeypatch.setattr(optimizer, "step", stepped)
    tune = [*task, "action=tune", "optimization.epochs=0", "tune.sampler=random", "tune.trials=2"]
    merge = ["method=ah_merge16", "heads.merge=concat", f"method.sources='{tmp_path}/p*'"]
    weights = [f"tune.space.merge.weights.{place}=uniform(0,1)" for place in (0, 1)]
    outcome = cli(*tune, *merge, *weights, f"save_path={tmp_path}/merges")
    assert outcome.code == 0, outcome.err
    load = ["method=ah_load", "heads.load=true", f"load_path={tmp_path}/p1", "tasks.target.mask_pattern='1 2'"]
    cut = "tune.space.tasks.target.head.threshold=uniform(0.1,0.4)"
    outcome = cli(*tune, *load, cut, f"save_path={tmp_path}/cuts")
    assert outcome.code == 0, outcome.err
    for study, keys in (("merges", ["merge.weights.0", "merge.weights.1"]), ("cuts", ["tasks.target.head.threshold"])):
        runs = [SavedRun(path.parent) for path in (tmp_path / study).glob("*/run.json")]
        rows = trials(tmp_path / study)
        assert len(runs) == len(rows) == 2 and all(run.record["steps"] == 0 for run in runs)
        asked = {tuple(float(row[key]) for key in keys): float(row["val_target_macro_f1"]) for row in rows}
        assert asked == {
            tuple(value_at(run.config, key) for key in keys): run.results["val_target_macro_f1"] for run in runs
        }
    found = yaml.safe_load((tmp_path / "merges/experiment/best.yaml").read_text())["merge"]["weights"]
    assert tuple(found) == tuple(float(trials(tmp_path / "merges")[0][f"merge.weights.{place}"]) for place in (0, 1))
