"""Curves land in the run's own folder, and nobody is asked for an account."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import Logger

from hatemtl.training import loggers

ROOT = Path(__file__).parents[2]


def log(logger: Logger) -> None:
    for step, score in enumerate((0.25, 0.5)):
        logger.log_metrics({"val_score": score}, step=step)
    loggers.close(logger)


def scores(path: Path) -> list[float]:
    with path.open(newline="") as file:
        return [float(row["val_score"]) for row in csv.DictReader(file)]


def test_csv_is_one_table_and_a_resumed_run_adds_another(tmp_path: Path) -> None:
    for _ in range(3):
        log(loggers.csv(folder=tmp_path, run="run"))
    tables = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("metrics.csv"))
    assert tables == ["logs/metrics.csv", "logs/resumed_1/metrics.csv", "logs/resumed_2/metrics.csv"]
    assert all(scores(tmp_path / table) == [0.25, 0.5] for table in tables)
    assert {path.name for path in tmp_path.iterdir()} == {"logs"}


def test_tensorboard_writes_event_files(tmp_path: Path) -> None:
    log(loggers.tensorboard(folder=tmp_path, run="run"))
    events = list(tmp_path.glob("logs/events.out.tfevents.*"))
    assert b"val_score" in b"".join(path.read_bytes() for path in events)
    assert {path.name for path in tmp_path.iterdir()} == {"logs"}


def test_closing_ends_the_wandb_run_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    finished: list[bool] = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(finish=lambda: finished.append(True)))
    loggers.close(None)
    assert finished == [True]
    monkeypatch.delitem(sys.modules, "wandb")
    loggers.close(None)
    assert "wandb" not in sys.modules  # its import takes a second


TWO_RUNS = """
import json, sys
from pathlib import Path
from hatemtl.training import loggers
ids = []
for name in ("a", "b"):
    logger = loggers.wandb(folder=Path(sys.argv[1]) / name, run=name, project="p", entity=None)
    logger.log_metrics({"val_score": 0.5}, step=0)
    ids.append(logger.experiment.id)
    loggers.close(logger)
print("IDS", json.dumps(ids))
"""


@pytest.fixture
def two_wandb_runs(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Two runs in a row in a process of its own: wandb reads its settings once."""

    def call(**settings: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        environment = {**kept, "HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "PYTHONPATH": str(ROOT), **settings}
        command = [sys.executable, "-W", "ignore", "-c", TWO_RUNS, str(tmp_path)]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
        )

    return call


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "offline"])
def test_wandb_stays_offline_where_nobody_is_logged_in(
    mode: str | None, two_wandb_runs: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = two_wandb_runs(**({"WANDB_MODE": mode} if mode else {}))
    assert done.returncode == 0, done.stderr
    ids = json.loads(done.stdout.rpartition("IDS")[2])
    assert len(set(ids)) == 2  # two runs of a multirun are two
    for name, run in zip("ab", ids, strict=True):
        (folder,) = (tmp_path / name / "logs" / "wandb").glob("offline-run-*")
        assert folder.name.endswith(run)


@pytest.mark.slow
def test_wandb_may_be_disabled(two_wandb_runs: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = two_wandb_runs(WANDB_MODE="disabled")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*run-*"))
