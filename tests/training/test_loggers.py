"""Curves land in the run's own folder, and nobody is asked for an account."""

import csv
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Outcome
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hatemtl.training import loggers

ROOT = Path(__file__).parents[2]


def log(logger: Logger) -> None:
    for step, score in enumerate((0.25, 0.5)):
        logger.log_metrics({"val_score": score}, step=step)
    loggers.close(logger, failed=False)


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


@pytest.mark.parametrize(("failed", "code", "said"), [(False, 0, "success"), (True, 1, "failed")])
def test_closing_ends_the_wandb_run_as_it_went(
    failed: bool, code: int, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    finished: list[int] = []
    ends: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(finish=lambda *, exit_code: finished.append(exit_code)))
    logger = loggers.csv(folder=tmp_path, run="run")
    monkeypatch.setattr(logger, "finalize", ends.append)
    loggers.close(logger, failed=failed)
    assert (finished, ends) == ([code], [said])
    monkeypatch.delitem(sys.modules, "wandb")
    loggers.close(None, failed=failed)
    assert "wandb" not in sys.modules  # its import takes a second


@pytest.mark.slow
@pytest.mark.parametrize("failing", [None, RuntimeError, SIGTERMException])
def test_a_run_whose_training_fails_is_closed_as_failed(
    failing: type[BaseException] | None,
    cli: Callable[..., Outcome],
    sample: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    ends: list[bool] = []
    monkeypatch.setattr(loggers, "close", lambda logger, *, failed: ends.append(failed))

    def fail(*some: Any, **more: Any) -> None:
        assert failing is not None
        raise failing

    if failing is not None:
        monkeypatch.setattr("lightning.Trainer.validate", fail)
    run = [*sample, "tasks.target.corpus.size=100", f"save_path={tmp_path / 'run'}"]
    if failing is RuntimeError:
        with pytest.raises(RuntimeError):
            cli(*run)
    else:
        assert cli(*run).code == (0 if failing is None else 143)
    assert ends == [failing is not None]


TWO_RUNS = """
import json, sys
from pathlib import Path
from hatemtl.training import loggers
ids = []
for name in ("a", "b"):
    logger = loggers.wandb(folder=Path(sys.argv[1]) / name, run=name, project="p", entity=None)
    logger.log_metrics({"val_score": 0.5}, step=0)
    ids.append(logger.experiment.id)
    loggers.close(logger, failed=name == "b")
print("IDS", json.dumps(ids))
"""


def _exit_code(folder: Path) -> int:
    """What an offline run's file says of how it ended: seven bytes, then records, each behind its checksum and length."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    content, place, code = path.read_bytes(), 7, -1
    while place < len(content):
        size, whole = struct.unpack_from("<HB", content, place + 4)
        assert whole == 1 and len(content) < 2**15  # a longer file is cut into blocks
        record = Record.FromString(content[place + 7 : place + 7 + size])
        if record.WhichOneof("record_type") == "exit":
            code = record.exit.exit_code
        place += 7 + size
    return code


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
        assert _exit_code(folder) == (name == "b")  # a failed run stands as one


@pytest.mark.slow
def test_wandb_may_be_disabled(two_wandb_runs: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = two_wandb_runs(WANDB_MODE="disabled")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*run-*"))
