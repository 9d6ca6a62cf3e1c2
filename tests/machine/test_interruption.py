"""Ctrl-C at any moment: exit code 130, at most two lines, no stack; and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, Outcome, main
from test_determinism import kept

from hatemtl.machine import interruption
from hatemtl.machine.interruption import Interrupted, interruptible, watch
from hatemtl.run import _told

RUN = ["encoder=tiny", "tasks=[label]", "corpus@tasks.label.corpus=sample", "logger=csv"]
WHOLE = [*RUN, "action=[train,test]", "optimization.epochs=6", "tasks.label.corpus.size=500"]


@pytest.fixture
def watched() -> Iterator[None]:
    kept = signal.getsignal(signal.SIGINT), sys.unraisablehook
    signal.signal(signal.SIGINT, signal.default_int_handler)
    watch()
    yield
    signal.signal(signal.SIGINT, kept[0])
    sys.unraisablehook, interruption._pressed = kept[1], False


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit codes with which the process would have ended."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def test_once_it_is_raised_and_twice_it_ends_the_process(watched: None, left: list[int]) -> None:
    with pytest.raises(Interrupted), interruptible():
        signal.raise_signal(signal.SIGINT)
    assert not left
    signal.raise_signal(signal.SIGINT)
    assert left == [130]


def test_when_all_is_done_it_says_so(watched: None, left: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    signal.raise_signal(signal.SIGINT)
    with interruptible():
        pass
    signal.raise_signal(signal.SIGINT)
    assert left == [130, 130]
    assert capfd.readouterr().err == "interrupted\ninterrupted when all was done\n"


def test_where_a_library_swallows_it_the_next_one_counts(watched: None, left: list[int]) -> None:
    with interruptible():
        with suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert left == [130]


def test_where_python_could_only_print_it_it_comes_again(
    watched: None, left: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted), interruptible():
        Finalized()
        for _ in range(500):  # until it comes
            time.sleep(0.01)
    assert not left
    assert "Exception ignored" not in capsys.readouterr().err


def test_a_forked_process_leaves_it_to_its_parent(watched: None, left: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_watched", os.getpid() + 1)
    with interruptible():
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    assert not left


def test_who_ignores_it_goes_on_ignoring_it() -> None:
    kept = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        watch()
        with interruptible():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, kept)


def test_what_a_library_makes_of_an_interruption_is_none_of_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def writes() -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    request: Any = SimpleNamespace(naming=nullcontext, config={"save_path": "run", "action": "test"})
    monkeypatch.setattr(interruption, "_pressed", True)
    with pytest.raises(Interrupted):
        _told(request, writes)


# Whole commands


def broken_off(
    arguments: list[str], *, after: float = 0.0, line: str | None = None, number: int = signal.SIGINT, times: int = 1
) -> Outcome:
    """How a command of its own process ends that gets the signal so many seconds after its start, or after a line of it."""
    process = subprocess.Popen(
        [sys.executable, "main.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    said = ""
    while line is not None and (read := process.stdout.readline()):
        said += read
        if read.startswith(line):
            break
    time.sleep(after)
    for _ in range(times):
        with suppress(OSError):  # it has ended
            os.killpg(process.pid, number)  # as a terminal does
        time.sleep(0.01)
    out, err = process.communicate(timeout=120)
    return Outcome(process.returncode, said + out, err)


def short(outcome: Outcome) -> bool:
    return outcome.code == 130 and len(outcome.err.splitlines()) <= 2 and "Traceback" not in outcome.err


@pytest.mark.slow
def test_in_an_epoch_it_says_where_the_run_stands_and_the_same_command_goes_on(tmp_path: Path) -> None:
    run = [*RUN, "optimization.epochs=12", "optimization.patience=null", f"save_path={tmp_path}/run"]
    outcome = broken_off(run, line="epoch 2/12")
    assert short(outcome), outcome.err
    done = max(int(line.split()[1].split("/")[0]) for line in outcome.out.splitlines() if line.startswith("epoch"))
    again = f"the same command goes on from there: save_path={tmp_path}/run"
    assert outcome.err in [f"interrupted after epoch {n} of 12; {again}\n" for n in (done - 1, done, done + 1)]
    assert not (tmp_path / "run").exists()
    resumed = broken_off(run, line="epoch")
    assert "an unfinished run goes on" in resumed.out
    assert short(resumed), resumed.err


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.2, 1, 3, 4.5, 6, 7.5])
def test_at_any_moment_it_leaves_a_line_and_no_stack(after: float, tmp_path: Path) -> None:
    outcome = broken_off(
        [*RUN, "optimization.epochs=50", f"save_path={tmp_path}/run", f"data.cache={tmp_path}/c"], after=after
    )
    assert short(outcome), outcome.err
    assert not list(tmp_path.glob("c/.*"))  # nothing half written


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.0, 0.3])
def test_processes_that_make_batches_end_with_it(after: float, tmp_path: Path) -> None:
    run = [*RUN, "optimization.epochs=50", "data.workers=2", f"save_path={tmp_path}/run"]
    outcome = broken_off(run, line="epoch 1/50", after=after)
    assert short(outcome), outcome.err
    assert "the same command" in outcome.err


@pytest.mark.slow
def test_before_the_first_epoch_it_begins_anew(tmp_path: Path) -> None:
    outcome = broken_off([*RUN, f"save_path={tmp_path}/run"], line="loaded, active")
    assert short(outcome), outcome.err
    assert "before the end of its first epoch; the same command begins anew" in outcome.err


@pytest.mark.slow
def test_a_termination_is_counted_as_a_shell_does(tmp_path: Path) -> None:
    run = [*RUN, "optimization.epochs=50", f"save_path={tmp_path}/run"]
    outcome = broken_off(run, line="epoch 1/50", number=signal.SIGTERM)
    assert outcome.code == 143
    assert "Traceback" not in outcome.err


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run leaves that nothing breaks off."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(*WHOLE, f"save_path={run}") == 0
    return kept(run)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "times", "code"), [(signal.SIGINT, 2, 130), (signal.SIGTERM, 1, 143)])
def test_pressed_twice_or_terminated_the_same_command_comes_to_the_same(
    cli: Callable[..., Outcome], whole: dict[str, bytes], tmp_path: Path, number: int, times: int, code: int
) -> None:
    run = [*WHOLE, f"save_path={tmp_path}/run"]
    ended = broken_off(run, line="epoch 2/6", number=number, times=times)
    assert (ended.code, "Traceback" in ended.err, (tmp_path / "run").exists()) == (code, False, False), ended.err
    resumed = cli(*run)
    assert "an unfinished run goes on" in resumed.out and "epoch 1/6" not in resumed.out, resumed.err
    assert kept(tmp_path / "run") == whole


def test_what_ends_after_its_end_is_finished(
    cli: Callable[..., Outcome], sample: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr("hatemtl.training.train.report.results", interrupted)
        outcome = cli(*sample, f"save_path={tmp_path}/run")
    assert (outcome.code, outcome.err) == (130, f"interrupted with the run finished: save_path={tmp_path}/run\n")
    assert "not trained again" in cli(*sample, f"save_path={tmp_path}/run").out
