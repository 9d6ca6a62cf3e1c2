"""A sweep may be left alone: what fails is kept and stops nothing, and what is done is done once."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Outcome
from tables import told

from hatemtl.saved_runs.failures import record_of
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.training.launch.base import Ended, Run
from hatemtl.training.sweep import Planned, carry

Cli = Callable[..., Outcome]
CONFIG = {"tasks": {"label": {}}, "seed": 1}


def planned(save_path: Path, **options: object) -> Planned:
    run = Run(save_path.name, (), lambda: Ended("not begun", ""), save_path, CONFIG)
    return Planned(run, lambda: pytest.fail("nothing stands there"), **options)  # type: ignore[arg-type]


def test_a_failure_is_kept_until_the_run_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tried: list[str] = []

    def ending(ended: Ended) -> bool:
        def launcher(runs: Iterable[Run]) -> Iterator[tuple[Run, Ended]]:
            for run in runs:
                tried.append(run.name)
                yield run, ended

        return carry([planned(tmp_path / "a")], launcher)

    record = record_of(tmp_path / "a")
    assert not ending(Ended("failed", "the disk is full"))
    assert json.loads(record.read_text())["message"] == "the disk is full"
    assert not ending(Ended("failed", "the loss is nan", diverged=True))  # tried again: the disk may have room now
    assert not ending(Ended("finished", "a"))
    assert len(tried) == 2  # it would diverge again
    assert "failed before" in capsys.readouterr().out
    record.unlink()
    assert ending(Ended("finished", "a")) and not record.exists()


def test_what_stands_there_and_cannot_be_read_ends_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(folder: Path) -> SavedRun:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))

    def launcher(runs: Iterable[Run]) -> Iterator[tuple[Run, Ended]]:
        yield from ((run, Ended("finished", run.name)) for run in runs if not tried.append(run.name))

    tried: list[str] = []
    monkeypatch.setattr("hatemtl.training.sweep.SavedRun", read)
    (tmp_path / "a").mkdir()
    assert carry([planned(tmp_path / name) for name in "ab"], launcher) and tried == ["a", "b"]


def test_what_ends_a_sweep_ends_it_with_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def launcher(runs: Iterable[Run]) -> Iterator[tuple[Run, Ended]]:
        for run in runs:
            if run.name == "b":
                raise KeyboardInterrupt
            yield run, Ended("finished", run.name)

    with pytest.raises(KeyboardInterrupt):
        carry([planned(tmp_path / name) for name in "abc"], launcher)
    rows = [line.split("│")[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    states = [[cell.strip() for cell in row] for row in rows]
    assert [state for state in states if state[0]] == [["a", "finished"], ["b", "interrupted"], ["c", "not begun"]]


def test_runs_of_one_name_in_folders_of_their_own_are_all_carried(tmp_path: Path) -> None:
    """As those of `save_path=a,b seed=1,2`: what a save_path is called sets no run apart."""

    def launcher(runs: Iterable[Run]) -> Iterator[tuple[Run, Ended]]:
        yield from ((run, Ended("finished", str(run.save_path))) for run in runs if not done.append(run.save_path))

    done: list[Path | None] = []
    places = [tmp_path / folder / "seed=1" for folder in "ab"]
    assert carry([planned(place) for place in places], launcher) and done == places


@pytest.mark.slow
def test_a_sweep_that_is_killed_twice_goes_on_and_trains_nothing_twice(tmp_path: Path) -> None:
    """Twelve runs, of which two have a rate at which they diverge; killed with -9 at random, twice."""
    rates = [f"{10**-n}" for n in range(2, 7)]
    command = [
        *(sys.executable, "main.py", "-m", "encoder=tiny", "tasks=[label]", "corpus@tasks.label.corpus=sample"),
        *("tasks.label.corpus.size=150", "optimization.epochs=2", f"save_path={tmp_path}/runs", "seed=1,2"),
        *(f"optimization.encoder_lr={','.join([*rates, '1e38'])}", "logger=csv", f"hydra.sweep.dir={tmp_path}/hydra"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "400"}
    draw, said = random.Random(0), ""
    for at in (draw.randrange(2, 5), draw.randrange(2, 5)):  # finished epochs until it is killed, somewhere in the next
        options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        sweep = subprocess.Popen(command, **options)  # type: ignore[call-overload]
        assert sweep.stdout is not None
        for line in sweep.stdout:
            said += line
            at -= line.startswith("epoch ")
            if not at:
                break
        time.sleep(draw.random() / 10)
        sweep.send_signal(signal.SIGKILL)
        said += sweep.communicate()[0]
    last = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    said += last.stdout
    assert last.returncode == 1, last.stderr
    states = [state for state, _ in told(Outcome(1, last.stdout, "")).values()]
    assert len(states) == 12
    assert sum(state in ("finished", "was finished before") for state in states) == 10
    assert sum(state.startswith("failed") for state in states) == 2
    finished = sorted(path.name for path in (tmp_path / "runs").iterdir() if not path.name.startswith("."))
    assert len(finished) == 10
    for name in finished:
        assert SavedRun(tmp_path / "runs" / name).record["epochs"] == 2
        assert said.count(f"runs/{name}: best of 2 epochs") <= 1  # once, or it was killed after it and before the line
    assert said.count("annotated posts") <= 12 + 2  # each begun once, but for those that were broken off


@pytest.mark.slow
def test_one_sweep_at_a_time_works_in_a_folder_and_none_in_a_studys(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    run = ["encoder=tiny", "corpus@tasks.target.corpus=sample", "tasks.target.corpus.size=100", "optimization.epochs=1"]
    sweep = ["-m", *run, "seed=1,2", f"save_path={folder}"]
    search = [*run, "action=tune", "tune.sampler=grid", "tune.space.optimization.clip=[1.0,2.0]", f"save_path={folder}"]
    code = f"""
import time
from pathlib import Path
from hatemtl.saved_runs.claiming import SWEPT, held
with held(Path({str(folder)!r}), SWEPT):
    print("held", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as other:
        try:
            assert other.stdout is not None and other.stdout.readline()
            for words in (sweep, search):
                refused = cli(*words)
                assert refused.code == 2
                assert f"{folder} is being swept by process {other.pid} on " in refused.err
                assert "wait for its end, or give another save_path" in refused.err
                assert not folder.exists()
        finally:
            other.kill()
    assert cli(*sweep).code == 0  # what was killed holds nothing
    assert {path.name for path in folder.iterdir()} == {"seed=1", "seed=2"}
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}
    (folder / "journal.log").touch()
    refused = cli(*sweep, "optimization.clip=2.0")
    assert (refused.code, f"save_path={folder} holds a study" in refused.err) == (2, True)
