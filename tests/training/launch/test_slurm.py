"""A sweep is left in a cluster's hands: each run is submitted once, goes on when requeued, and tells where it stands."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Outcome
from tables import told

from hatemtl.errors import UserError
from hatemtl.saved_runs.failures import diverged_before
from hatemtl.saved_runs.saved_run import SavedRun, write_config
from hatemtl.training.collect import collect, status
from hatemtl.training.launch.base import Ended, Run
from hatemtl.training.launch.slurm import Job, Slurm
from hatemtl.training.launch.submission import PLACE, report_of
from hatemtl.training.sweep import Planned

Cli = Callable[..., Outcome]
# In the place of main.py: ends as its word says.
MAIN = """
import json, os, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
word = sys.argv[1]
for name in ("SIGUSR2", "SIGTERM"):
    os.kill(os.getpid(), getattr(signal, name))  # as a cluster sends it to all processes of a job
if word == "waits":
    open(sys.argv[0] + ".begun", "w").close()
    time.sleep(60)
if word == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if word == "wrong":
    sys.exit(2)
ended = {"state": "finished", "told": word} if word == "fine" else {"state": "failed", "told": "nan", "diverged": True}
open(os.environ["HATEMTL_REPORT"], "w").write(json.dumps(ended))
"""


def slurm(**other: Any) -> Slurm:
    keys: dict[str, Any] = {"cluster": "slurm", "partition": "long", "time": 30, "cpus": 2, "gpus": 1, "memory": 4}
    keys |= {"parallel": 3, "requeues": 3, "setup": ["module load cuda"], "options": {"account": "mine"}}
    return Slurm(**{**keys, **other})


def runs(folder: Path, *names: str, **config: Any) -> list[Run]:
    """Runs that train, a folder each."""
    values = [{"seed": name.partition("=")[2], **config} for name in names]
    return [
        Run(name, (name, "tasks=[label]"), lambda: Ended("not begun", ""), folder / name, value)
        for name, value in zip(names, values, strict=True)
    ]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster of scripts: what was submitted is kept in a file, and what another file holds is said of the jobs."""
    commands = {"sbatch": "cp $1 HERE/script; echo Submitted batch job 7", "srun": "", "sacct": "cat HERE/states"}
    (tmp_path / "bin").mkdir()
    (tmp_path / "states").write_text("JobID|State|NodeList\n7_0|RUNNING|n1\n7_1|PENDING|\n")
    for name, does in commands.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{does.replace('HERE', str(tmp_path))}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def test_a_sweep_is_submitted_as_an_array_once(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = cluster / "ranks"
    both = runs(folder, "seed=1", "seed=2")
    assert [(run.name, ended.state, ended.told) for run, ended in slurm()(both)] == [
        ("seed=1", "submitted", "job 7_0"),
        ("seed=2", "submitted", "job 7_1"),
    ]
    script = (cluster / "script").read_text()
    asked = {"partition=long", "time=30", "cpus-per-task=2", "gpus-per-node=1", "mem=4GB", "array=0-1%2", "account=mine"}
    assert asked | {"signal=USR2@90"} <= {line.removeprefix("#SBATCH --") for line in script.splitlines()}
    assert script.index("module load cuda") < script.index("\nsrun ")
    (cluster / "script").unlink()
    assert [ended.told for _, ended in slurm()(both)] == ["job 7_0: RUNNING", "job 7_1: PENDING"]
    assert not (cluster / "script").exists()  # none twice
    report_of(folder, "seed=1").write_text('{"state": "running", "told": ""}')
    assert status(folder)
    assert told(Outcome(0, capsys.readouterr().out, "")) == {
        "seed=1": ["running", "job 7_0: RUNNING"],
        "seed=2": ["submitted", "job 7_1: PENDING"],
    }
    (cluster / "states").write_text("JobID|State|NodeList\n7_0|FAILED|n1\n7_1|CANCELLED by 1000|n1\n")
    kind = pytest.importorskip("submitit").SlurmJob
    kind.watcher.clear()
    report_of(folder, "seed=1").write_text('{"state": "failed", "told": "the disk is full"}')
    assert not status(folder)
    table = told(Outcome(0, capsys.readouterr().out, ""))
    assert table["seed=1"] == ["failed", "the disk is full"]
    assert table["seed=2"][0] == "interrupted"
    again = [(run.name, ended.state) for run, ended in slurm()(both)]
    assert again == [("seed=1", "submitted"), ("seed=2", "submitted")]
    assert (cluster / "script").exists() and not report_of(folder, "seed=1").exists()
    kind.watcher.clear()


def test_a_cluster_without_accounts_is_asked_for_its_queue(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else a job that was killed would count as at work for ever, and never be submitted again."""
    watcher, states = pytest.importorskip("submitit").SlurmJob.watcher, {}
    [*slurm()(runs(cluster / "ranks", "seed=1", "seed=2"))]
    (cluster / "states").write_text("JobID|State|NodeList\n")
    queue = cluster / "bin/squeue"
    queue.write_text("#!/bin/sh\necho 7_1\n")
    queue.chmod(0o755)
    for there in (True, False):
        if not there:
            queue.unlink()
        watcher.clear()
        capsys.readouterr()
        status(cluster / "ranks")
        out = capsys.readouterr().out
        states[there] = {run: state for run, (state, _) in told(Outcome(0, out, "")).items()}
        assert ("note: neither sacct nor squeue tells" in out) != there
    assert states[True] == {"seed=1": "interrupted", "seed=2": "submitted"}
    assert states[False] == {"seed=1": "submitted", "seed=2": "submitted"}
    watcher.clear()


def test_what_the_cluster_refuses_leaves_nothing(cluster: Path) -> None:
    (cluster / "bin/sbatch").write_text("#!/bin/sh\necho sbatch: error: invalid partition: logn >&2\nexit 1\n")
    with pytest.raises(UserError, match="sbatch refused .*invalid partition"):
        [*slurm()(runs(cluster / "ranks", "seed=1", "seed=2"))]
    assert not (cluster / "ranks").exists()


def test_another_sweep_is_refused(cluster: Path) -> None:
    folder = cluster / "ranks"
    assert len([*slurm()(runs(folder, "seed=1"))]) == 1
    (cluster / "script").unlink()
    for other, said in (
        (runs(folder, "seed=1", rank=8), "seed=1: rank: saved None, given 8"),
        (runs(folder, "rank=4"), "that went over seed, and this one goes over rank"),
        (runs(folder, "seed=2") + runs(cluster, "seed=3"), "give one save_path=FOLDER that holds all"),
        ([Run("a", (), lambda: Ended("not begun", ""))], "submits runs that train"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            [*slurm()(other)]
    assert not (cluster / "script").exists()
    assert len([*slurm()(runs(folder, "seed=2"))]) == 1  # which the same sweep may well go over too


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    for key, value in (("cluster", "ray"), ("time", 0), ("cpus", 0), ("gpus", -1), ("parallel", 0), ("memory", 0.0)):
        with pytest.raises(UserError, match=f"launcher.{key}={value}: expected"):
            slurm(**{key: value})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no sbatch here"):
        [*slurm()(runs(tmp_path, "seed=1"))]
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="needs submitit; type uv sync --extra cluster"):
        [*slurm()(runs(tmp_path, "seed=1"))]
    assert not [*tmp_path.iterdir()]
    for words, said in (
        (["action=status"], "needs the folder of the sweep"),
        (["action=collect", f"save_path={tmp_path}/none"], "there is no such folder"),
        (["action=status", f"save_path={tmp_path}"], "no sweep was submitted there"),
        (["launcher=slurm", "encoder=tiny"], "type main.py -m"),
    ):
        outcome = cli(*words)
        assert outcome.code == 2 and said in outcome.err


def test_what_is_finished_is_looked_up_where_there_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """As on a login node: else all that is finished would be submitted again."""

    def carry(planned: Iterable[Planned], _: Any) -> bool:
        asked.extend(one.request().trainer.device.type for one in planned if one.request)
        return True

    asked: list[str] = []
    monkeypatch.setattr("hatemtl.run.carry", carry)
    words = ["encoder=tiny", "seed=1,2", f"save_path={tmp_path}/s", f"hydra.sweep.dir={tmp_path}/h", "launcher=slurm"]
    outcome = cli("-m", *words, "launcher.gpus=2", "trainer.devices=2", "trainer.accelerator=gpu")
    assert (outcome.code, asked) == (0, ["cpu", "cpu"]), outcome.err


def test_a_job_that_asks_for_the_launcher_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """An experiment may ask for it, and is typed in the job too."""
    monkeypatch.setenv("HATEMTL_REPORT", str(report_of(tmp_path, "a")))
    monkeypatch.setattr("hatemtl.run._do", lambda cfg: (tmp_path, False))
    assert cli("launcher=slurm", "encoder=tiny").code == 0
    assert json.loads(report_of(tmp_path, "a").read_text())["state"] == "finished"


@pytest.mark.parametrize(
    ("word", "ended"),
    [
        ("fine", Ended("finished", "fine")),
        ("wrong", Ended("failed", "its process ended with exit code 2")),
        ("killed", Ended("failed", "its process was killed by SIGKILL")),
        ("diverged", Ended("failed", "nan", diverged=True)),
    ],
)
def test_a_job_tells_how_its_run_ended(tmp_path: Path, word: str, ended: Ended) -> None:
    job(tmp_path, word)()
    said = json.loads(report_of(tmp_path, "a").read_text())
    assert said["state"] == ended.state and said["told"].startswith(ended.told)
    assert diverged_before(tmp_path / "a", {"seed": 1}) == ("nan" if ended.diverged else None)


def test_a_job_that_is_requeued_interrupts_its_run_and_does_it_again(tmp_path: Path) -> None:
    one, again = job(tmp_path, "waits"), []

    def requeue(*_: object) -> None:  # as submitit does
        if not (tmp_path / "main.py.begun").exists():  # it does not hear yet
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        again.append(one.checkpoint())
        sys.exit(144)

    before = signal.signal(signal.SIGALRM, requeue)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        with pytest.raises(SystemExit):
            one()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert one.child is not None and one.child.returncode == 130
    assert again[0].function.command == one.command and again[0].function.child is None
    assert json.loads(report_of(tmp_path, "a").read_text())["state"] == "running"


def job(tmp_path: Path, word: str) -> Job:
    (tmp_path / "main.py").write_text(MAIN)
    command = (sys.executable, str(tmp_path / "main.py"), word)
    return Job(command, tmp_path / "a", {"seed": 1}, report_of(tmp_path, "a"), 1, 1)


def test_finished_runs_are_collected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = [
        {"name": name, "folder": name, "config": {"tasks": {}, "seed": seed}, "cluster": "local", "job": "0"}
        for seed, name in enumerate(("seed=0", "seed=1"))
    ]
    (tmp_path / "s" / PLACE).mkdir(parents=True)
    (tmp_path / "s" / PLACE / "runs.json").write_text(json.dumps({"runs": listed}))
    saved = tmp_path / "s" / "seed=0"
    saved.mkdir()
    write_config(saved, {"tasks": {}, "seed": 0})
    for name, text in (("run.json", "{}"), ("labels.json", "{}"), ("results.csv", "metric,value\nval_label_f1,0.5\n")):
        (saved / name).write_text(text)
    assert not collect(tmp_path / "s")  # one never came to its end
    assert "1 of 2 runs are not at their end" in capsys.readouterr().out
    lines = (tmp_path / "s.collected.csv").read_text().splitlines()
    assert lines[:2] == ["run,state,told,val_label_f1", f"seed=0,finished,{saved},0.5"]
    assert lines[2].startswith("seed=1,interrupted,")
    (saved / "results.csv").write_text("metric,value\nval_label_f1,high\n")
    assert not collect(tmp_path / "s")
    lines = (tmp_path / "s.collected.csv").read_text().splitlines()
    assert lines[1].startswith("seed=0,failed,") and lines[2].startswith("seed=1,interrupted,")


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Path]:
    """A sweep of three runs, one of them wrong, submitted to this machine by a command that has ended."""
    words = ["encoder=tiny", "corpus@tasks.target.corpus=sample", "tasks.target.corpus.size=300", "optimization.epochs=4"]
    words += ["method.rank=0,4,8", f"save_path={tmp_path}/study", "launcher=slurm", "launcher.cluster=local"]
    words += ["launcher.parallel=1", "launcher.cpus=1"]
    command = [sys.executable, str(ROOT / "main.py"), "-m", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {state for state, _ in told(Outcome(0, done.stdout, "")).values()} == {"submitted"}
    yield tmp_path / "study"
    for run in json.loads((tmp_path / "study" / PLACE / "runs.json").read_text())["runs"]:
        subprocess.run(["kill", run["job"]], capture_output=True)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the job's process as Linux shows it")
def test_a_sweep_is_left_preempted_asked_for_and_collected(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(left)  # nothing has failed yet
    rank4, until = left / ".rank=4.unfinished" / "last.ckpt", time.monotonic() + 240
    while not rank4.exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    jobs = {run["name"]: run["job"] for run in json.loads((left / PLACE / "runs.json").read_text())["runs"]}
    controllers = Path(f"/proc/{jobs['rank=4']}/task/{jobs['rank=4']}/children").read_text().split()
    [task] = [c for pid in controllers for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    os.kill(int(task), signal.SIGUSR2)  # as SLURM sends it before it takes the node away
    while not all((left / f"rank={rank}" / "results.csv").exists() for rank in (4, 8)):
        assert time.monotonic() < until
        time.sleep(0.5)
    time.sleep(3)  # the jobs end a moment after their runs
    capsys.readouterr()
    assert not collect(left)
    # a long path goes on in a row of its own
    states = {run: state for run, (state, _) in told(Outcome(0, capsys.readouterr().out, "")).items() if run}
    assert states == {"rank=0": "failed", "rank=4": "finished", "rank=8": "finished"}
    log = (left / PLACE / "jobs" / f"{jobs['rank=4']}_0_log.out").read_text()
    assert "interrupted after epoch" in log + (left / PLACE / "jobs" / f"{jobs['rank=4']}_0_log.err").read_text()
    assert log.count("Starting with JobEnvironment") == 2
    assert SavedRun(left / "rank=4").config["method"]["rank"] == 4
    assert not [*left.glob(".*.unfinished")]
