"""A process that is killed at any of its writes, renames and removals leaves the old run or the new one."""

import os
import signal
import sys
from pathlib import Path

import pytest
from saved_runs.test_claiming import changed
from saved_runs.test_saved_run import names

from hatemtl.evaluations.base import Row
from hatemtl.labels import LabelSpace
from hatemtl.saved_runs.claiming import TESTED, TRAINED, claim, finish, held, start
from hatemtl.saved_runs.saved_run import SavedRun, write_labels, write_record, write_results
from hatemtl.saved_runs.writing import write, write_rows

# What Python tells of before it is done to a file (https://docs.python.org/3/library/audit_events.html).
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree"}
RECORD = {"method": "ah_lora16", "library": "adapterhub", "encoder": "mark", "encoder_source": "someone/encoder"}


def trained(run: Path, seed: int) -> None:
    """Leaves a run as training does: begun, written, and put in the place of whatever was there."""
    config = changed(seed=seed)
    with held(run, TRAINED) as place:
        assert claim(place, config, {}, overwrite=True)
        work = start(place, config, {})
        (work / "adapter").mkdir(exist_ok=True)
        write(work / "adapter" / "adapter.safetensors", lambda path: path.write_bytes(b"%d" % seed * 9))
        write_labels(work, {"target": LabelSpace("multilabel", ("a", "b"))})
        write_results(work, [Row("val", "target", "macro_f1", None, float(seed))])
        write_record(work, {"status": "finished", **RECORD, "seed": seed})
        finish(work, place)


def judged(run: Path, seed: int) -> None:
    """Writes what a test does into a run that stands; seed: the value that it finds."""
    with held(run, TESTED) as place:
        write_rows(place / "errors.csv", [{"task": "target", "word": str(seed)}])
        write_results(place, [Row("test", "target", "macro_f1", None, float(seed))])
        write_record(place, {**SavedRun(place).record, "tested": seed})


def state(run: Path) -> tuple[object, ...]:
    """What there is of a run, as whoever reads it finds it, once the next one that takes it has tidied up."""
    with held(run, TESTED) as place:
        if not place.exists():
            return ()
        saved = SavedRun(place)
        weights = (place / "adapter" / "adapter.safetensors").read_bytes()
        return saved.config["seed"], saved.record["seed"], weights, saved.results["val_target_macro_f1"], [*saved.labels]


def killed(do: object, run: Path, seed: int, number: int) -> bool:
    """Does it in a process of its own, killed before its so-and-so-manieth change of a file; whether it came so far."""
    assert callable(do)
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)
    try:
        left = number

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event not in EVENTS or not str(arguments[0]).startswith(str(run.parent)):
                return
            if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                return
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

        sys.addaudithook(watch)
        do(run, seed)
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.parametrize("before", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_training_leaves_the_old_run_or_the_new(tmp_path: Path, before: bool) -> None:
    states, number = [], 0
    while True:
        run = tmp_path / str(number) / "run"
        if before:
            trained(run, 1)
        else:
            run.parent.mkdir()
        old = state(run)
        came = killed(trained, run, 2, number)
        states.append(now := state(run))
        trained(run, 2)
        new = state(run)
        assert now in (old, new), f"killed before change {number}"
        assert names(run.parent) == {"run"}, f"killed before change {number}"
        if not came:
            break
        number += 1
    assert number > 15  # of so many changes
    assert states[0] == old and states[-1] == new
    assert [one == new for one in states] == sorted(one == new for one in states)  # once new, it stays


def test_testing_leaves_every_row_of_before_and_every_file_whole(tmp_path: Path) -> None:
    number = 0
    while True:
        run = tmp_path / str(number) / "run"
        trained(run, 1)
        judged(run, 3)
        old = state(run)
        came = killed(judged, run, 4, number)
        assert state(run) == old, f"killed before change {number}"
        assert SavedRun(run).results["test_target_macro_f1"] in (3.0, 4.0)
        assert SavedRun(run).record["tested"] in (3, 4)
        judged(run, 4)
        assert (SavedRun(run).results["test_target_macro_f1"], SavedRun(run).record["tested"]) == (4.0, 4)
        assert not [name for name in names(run) if name.startswith(".")], f"killed before change {number}"
        if not came:
            break
        number += 1
    assert number > 5
