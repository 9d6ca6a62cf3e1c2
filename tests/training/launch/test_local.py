"""Runs side by side: each with its cores and threads, in processes that end with the sweep, however either ends."""

import errno
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from hatemtl.errors import UserError
from hatemtl.machine import startup
from hatemtl.training.launch import local
from hatemtl.training.launch.base import Ended, Run
from hatemtl.training.launch.local import Local, environment

# In the place of main.py: says what it sees, and ends as its word says.
MAIN = """
import json, os, signal, sys, time
sys.path.insert(0, os.environ["ROOT"])
from hatemtl.machine.following import follow
follow()
word, report = sys.argv[1], os.environ["HATEMTL_REPORT"]
cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
print(f"epoch {word} on {cores} with {os.environ['OMP_NUM_THREADS']}\\n\\u2502 a table", flush=True)
if word == "waits":
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("error: interrupted after epoch 1")
        sys.exit(130)
if word == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if word == "wrong":
    print("error: what it was told\\nand how to go on")
    sys.exit(2)
ended = {"state": "finished", "told": word} if word != "diverged" else {"state": "failed", "told": "nan", "diverged": True}
open(report, "w").write(json.dumps(ended))
"""


@pytest.fixture(autouse=True)
def _main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "main.py").write_text(MAIN)
    monkeypatch.setattr(startup, "PROGRAM", (sys.executable, str(tmp_path / "main.py")))
    monkeypatch.setenv("ROOT", str(ROOT))


def runs(*words: str) -> list[Run]:
    config = {"seed": {"of": "a run that trains"}}
    return [Run(f"run {word}", (word,), lambda: Ended("not begun", ""), Path(word), config) for word in words]


def test_each_end_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    launcher = Local(jobs=1, threads=1)
    ends = {run.words[0]: ended for run, ended in launcher(runs("fine", "killed", "wrong", "diverged"))}
    assert ends["fine"] == Ended("finished", "fine")
    assert ends["killed"].state == "failed"
    assert ends["killed"].told.startswith("killed by SIGKILL, as the system does where memory ends; its last line: ")
    assert ends["wrong"] == Ended("failed", "error: what it was told")
    assert ends["diverged"] == Ended("failed", "nan", diverged=True)
    said = capfd.readouterr().out
    assert f"run fine: epoch fine on {local.cores()[:1]} with 1\n" in said
    assert "run wrong: and how to go on\n" in said
    assert "table" not in said


def test_a_terminal_that_is_gone_keeps_no_end_from_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(sys, "stdout", Gone())
    ends: list[Ended] = []
    launcher = Local(jobs=1, threads=1)(runs("fine", "wrong"))
    sweep = threading.Thread(target=lambda: ends.extend(ended for _, ended in launcher), daemon=True)
    sweep.start()
    sweep.join(20)
    assert [ended.state for ended in ends] == ["finished", "failed"]


def test_the_next_run_is_taken_when_there_is_room_for_it() -> None:
    taken: list[str] = []

    def due() -> Iterator[Run]:
        for run in runs("a", "b", "c", "d"):
            taken.append(run.words[0])
            yield run

    ends = Local(jobs=2, threads=1)(due())
    next(ends)
    assert taken == ["a", "b"]
    assert len([*ends]) == 3
    assert taken == ["a", "b", "c", "d"]


def test_cores_are_shared_out_where_there_are_enough() -> None:
    assert Local(jobs=2, threads=None).places([0, 1, 4, 5, 6]) == [[0, 1], [4, 5]]
    assert Local(jobs=2, threads=1).places([3, 4, 5]) == [[3], [4]]
    assert Local(jobs=4, threads=1).places([0, 1]) == [[]] * 4
    with pytest.raises(UserError, match=r"launcher.jobs=0: expected"):
        Local(jobs=0, threads=1)


def test_one_gpu_is_shared_and_of_several_each_run_has_one_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert all("CUDA_VISIBLE_DEVICES" not in environment(slot, 1) for slot in (0, 1)), "as it stands"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [environment(slot, 1)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1, 2)] == ["3", "5", "3"]


def test_what_ends_the_sweep_interrupts_the_runs() -> None:
    ends = Local(jobs=2, threads=1)(runs("waits", "fine"))
    assert next(ends)[1].told == "fine"
    begun = time.monotonic()
    ends.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begun < 30


@pytest.mark.slow
def test_a_run_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    starts = (
        "import sys; from hatemtl.training.launch import local; from hatemtl.machine import startup; "
        "from hatemtl.training.launch.base import Run; startup.PROGRAM = (sys.executable, sys.argv[1]); "
        "kept = local.Worker; local.Worker = lambda *a: (w := kept(*a), print(w.process.pid, flush=True))[0]; "
        "list(local.Local(jobs=1, threads=1)([Run('r', ('waits',), None)]))"
    )
    sweep = subprocess.Popen(
        [sys.executable, "-c", starts, str(tmp_path / "main.py")], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert sweep.stdout is not None
    pid = int(sweep.stdout.readline())
    assert "epoch waits" in sweep.stdout.readline()
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    for _ in range(300):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").exists() and " Z " in Path(f"/proc/{pid}/stat").read_text():
            return  # ended, and whoever has it now has not yet asked how
        time.sleep(0.1)
    pytest.fail("it goes on")


@pytest.mark.slow
def test_a_sweep_from_the_command_line_trains_side_by_side(tmp_path: Path) -> None:
    words = ["encoder=tiny", "tasks=[label]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=200"]
    words += ["-m", "seed=1,2", "optimization.epochs=1", "launcher=local", "launcher.jobs=2", "launcher.threads=1"]
    save_path = f"save_path={tmp_path}/runs/${{seed}}"
    done = subprocess.run([sys.executable, "main.py", *words, save_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir() if path.name[0] != ".") == ["1", "2"]
