"""A sweep is left in the hands of a Ray cluster of one machine, and tells where it stands."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, Outcome
from tables import told

from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.training.launch import ray as launch
from hatemtl.training.launch.ray import Ray
from hatemtl.training.launch.submission import PLACE, Submitted

Cli = Callable[..., Outcome]
# A cluster that is there for as long as its standard input is open.
CLUSTER = """
import sys
import ray
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
print("at", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"cpus": 0}, "launcher.cpus=0: expected a number, 1 or more"),
        ({"restarts": -2}, "launcher.restarts=-2"),
        ({"memory": 0.0}, "launcher.memory=0.0: expected GiB"),
        ({"gpus": 1.5}, "launcher.gpus=1.5: expected a share of one GPU"),
        ({"resources": {"GPU": 1}}, "launcher.resources.GPU=1: type launcher.gpus=1"),
        ({"resources": {"fast": -1}}, "launcher.resources.fast=-1: expected a number above 0"),
    ],
)
def test_what_no_cluster_can_give_is_named(wrong: dict[str, Any], says: str) -> None:
    keys: dict[str, Any] = {"address": None, "cpus": 1, "gpus": 0, "memory": None, "resources": {}, "restarts": 3}
    with pytest.raises(UserError, match=says):
        Ray(**{**keys, **wrong})


def test_ray_that_is_not_installed_is_asked_for(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    words = ["encoder=tiny", "corpus@tasks.target.corpus=sample", f"save_path={tmp_path}/study", "launcher=ray"]
    outcome = cli("-m", *words, "seed=1,2")
    assert (outcome.code, "launcher=ray needs ray; type uv sync --extra ray" in outcome.err) == (2, True)
    alone = cli(*words)
    assert (alone.code, "launcher=ray submits the runs of a sweep" in alone.err) == (2, True)
    assert not [*tmp_path.iterdir()]


def test_no_cluster_is_asked_because_a_folder_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    @contextmanager
    def connected(address: str) -> Iterator[tuple[Any, str]]:
        asked.append(address)
        yield SimpleNamespace(util=SimpleNamespace(list_named_actors=lambda: ["a-1"])), "mine:1"

    monkeypatch.setattr(launch, "connected", connected)
    runs = [Submitted("seed=1", "seed=1", {}, f"ray {at}", "a-1") for at in ("mine:1", "theirs:1")]
    assert launch.states(tmp_path, runs[:1]) == {"seed=1": "in the cluster"}
    assert launch.states(tmp_path, runs[1:]) == {"seed=1": None}
    assert asked == ["auto", "auto"]
    assert "type RAY_ADDRESS=theirs:1 before the command" in capsys.readouterr().out


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("ray")
    given = {"AUTH_MODE": "token", "AUTH_TOKEN": "of this test alone " * 2, "ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    for name, value in {**given, "USAGE_STATS_ENABLED": "0"}.items():
        monkeypatch.setenv(f"RAY_{name}", value)
    how: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", CLUSTER], cwd=tmp_path, **how) as head:
        assert head.stdout is not None and head.stdin is not None
        said = next(line for line in head.stdout if line.startswith("at "))
        try:
            yield said.split()[1]
        finally:
            head.stdin.close()
            head.wait(60)


@pytest.mark.slow
def test_a_sweep_is_left_lost_restarted_asked_for_and_collected(cluster: str, tmp_path: Path) -> None:
    def hatemtl(*words: str) -> Outcome:
        command = [sys.executable, str(ROOT / "main.py"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path)
        return Outcome(done.returncode, done.stdout, done.stderr)

    study = tmp_path / "study"
    words = ["encoder=tiny", "corpus@tasks.target.corpus=sample", "tasks.target.corpus.size=300", "optimization.epochs=6"]
    sweep = ["-m", *words, "method.rank=0,4", "save_path=study", "launcher=ray", f"launcher.address={cluster}"]
    left = hatemtl(*sweep)
    assert left.code == 0, left.err
    assert {state for state, _ in told(left).values()} == {"submitted"}
    checkpoint, until = study / ".rank=4.unfinished" / "last.ckpt", time.monotonic() + 240
    while not checkpoint.exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    lock = json.loads((study / ".rank=4.lock").read_text())
    worker = next(
        line.split()[1] for line in Path(f"/proc/{lock['pid']}/status").read_text().splitlines() if line.startswith("PPid")
    )
    os.kill(int(worker), 9)  # as where its machine is lost
    asked = hatemtl("action=status", "save_path=study")
    assert told(asked)["rank=4"][0] in ("running", "finished"), asked
    while not (study / "rank=4" / "results.csv").exists():
        assert time.monotonic() < until
        time.sleep(0.5)
    time.sleep(2)
    collected = hatemtl("action=collect", "save_path=study")
    assert collected.code == 1  # one is wrong
    assert {run: state for run, (state, _) in told(collected).items() if run} == {"rank=0": "failed", "rank=4": "finished"}
    assert "an unfinished run goes on after its last whole epoch" in (study / "rank=4" / "console.txt").read_text()
    assert (study / PLACE / "jobs" / "rank=4_log.out").read_text().count("loaded, active and trained") == 2
    assert SavedRun(study / "rank=4").config["method"]["rank"] == 4
    again = hatemtl(*sweep)
    assert told(again)["rank=4"][0] == "was finished before"
