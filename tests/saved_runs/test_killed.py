"""A command that is killed at any of its writes, renames and removals leaves the old run or the new, and goes on again."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ADAPTER, main
from test_determinism import KEPT, kept
from tiers import tier

from hatemtl.saved_runs.saved_run import SavedRun

# What Python tells of before it is done to a file (https://docs.python.org/3/library/audit_events.html).
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"}
RUN = ["encoder=tiny", "tasks=[label]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=100"]
RUN += ["optimization.epochs=1", "data.cache=AT/cache"]
COMMANDS = {
    "train": [*RUN, "action=[train,test]", "seed=2", "overwrite=true", "save_path=AT/run"],
    "begin": [*RUN, "action=[train,test]", "seed=2", "save_path=AT/new"],
    "test": ["action=test", "load_path=AT/run", "evaluations=[auroc]", "data.cache=AT/cache"],
}
TRAINED = ("heads.safetensors", ADAPTER, "labels.json")
MOST = {"train": 160, "begin": 145, "test": 35}  # so many changes of files are tried; a command makes no more


class Watch:
    """Counts the changes of files under a folder as they come, and kills the process before the given one.

    torn: with what was being written since the change before, by whatever library, written by half.
    """

    def __init__(self, at: Path, number: int, torn: bool) -> None:
        self.at, self.number, self.torn, self.come = str(at), number, torn, 0
        self.sizes = self.written()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or not self.changes(event, arguments):
            return
        if self.come == self.number:
            self.kill()
        self.come, self.sizes = self.come + 1, self.written()

    def changes(self, event: str, arguments: tuple[Any, ...]) -> bool:
        path, *_, last = arguments
        if event == "open" and not (isinstance(last, int) and last & (os.O_WRONLY | os.O_RDWR)):
            return False
        if isinstance(path, int):  # is open
            return False
        path = os.fsdecode(path)
        if not os.path.isabs(path) and event in ("os.remove", "os.rmdir") and last != -1:  # as rmtree names what it removes
            path = os.path.join(os.readlink(f"/proc/self/fd/{last}"), path)
        return os.path.abspath(path).startswith(self.at)

    def written(self) -> dict[int, int]:
        """The size of each file, by what stays when it gets another name."""
        return {status.st_ino: status.st_size for status in (path.lstat() for path in Path(self.at).rglob("*"))}

    def kill(self) -> None:
        self.number = -1  # what follows is no change of the command's
        for path in Path(self.at).rglob("*") if self.torn else ():
            before, now = self.sizes.get(path.lstat().st_ino, 0), path.lstat().st_size
            if path.is_file() and now > before:
                os.truncate(path, (before + now) // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def command(name: str, at: Path, number: int = -1, torn: bool = False) -> tuple[bool, int]:
    """Runs a command in a process of its own; whether it came to its end, and how many changes of files it made."""
    reads, writes = os.pipe()
    if child := os.fork():
        os.close(writes)
        with open(reads, "rb") as pipe:
            come = int.from_bytes(pipe.read(4), "big")
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, name
        return not os.WIFSIGNALED(status), come
    code = 1
    try:
        os.close(reads)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.addaudithook(watch := Watch(at, number, torn))
        code = main(*(word.replace("AT", str(at)) for word in COMMANDS[name]))
        os.write(writes, watch.come.to_bytes(4, "big"))
    finally:
        os._exit(code)


def seen(run: Path) -> dict[str, bytes]:
    """What whoever reads a run finds there; nothing where there is none."""
    return kept(run, [name for name in KEPT if (run / name).exists()])


@dataclass
class Case:
    """A folder before and after a command, and how many changes of files lie between."""

    name: str
    before: Path
    after: Path
    changes: int

    @property
    def run(self) -> str:
        return "new" if self.name == "begin" else "run"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    before, known = tmp_path_factory.mktemp("before"), dict[str, Case]()
    first = [*RUN, "action=[train,test]", "seed=1", "save_path=AT/run"]
    assert main(*(word.replace("AT", str(before)) for word in first)) == 0

    def of(name: str) -> Case:
        if name not in known:
            shutil.copytree(before, after := before.parent / name)
            ended, changes = command(name, after)
            assert ended and MOST[name] // 2 < changes <= MOST[name]
            known[name] = Case(name, before, after, changes)
        return known[name]

    return of


def killings() -> list[Any]:
    every = [(name, number, torn) for name in COMMANDS for number in range(MOST[name]) for torn in (False, True)]
    names = [f"{name} {number}{' torn' * torn}" for name, number, torn in every]
    return [pytest.param(*of, id=name, marks=tier(name, fast=150, slow=25)) for of, name in zip(every, names, strict=True)]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="a removal inside a folder is named by Linux alone")
@pytest.mark.parametrize(("name", "number", "torn"), killings())
def test_it_leaves_the_old_run_or_the_new_and_goes_on(
    case: Callable[[str], Case], tmp_path: Path, name: str, number: int, torn: bool
) -> None:
    of = case(name)
    number = number * of.changes // MOST[name]  # each of them, some twice
    old, new = seen(of.before / of.run), seen(of.after / of.run)
    shutil.copytree(of.before, at := tmp_path / "at")
    ended, _ = command(name, at, number, torn)
    assert not ended
    run = at / of.run
    now = seen(there := run if run.exists() else at / f".{of.run}.replaced")  # the latter between two renames
    assert not there.exists() or SavedRun(there).results.keys() >= {"val_label_macro_f1"}
    # each file is whole, of before or after; results may be the new run's before its test
    untested = b"".join(line for line in new["results.csv"].splitlines(True) if not line.startswith(b"test_"))
    assert [file for file in now if now[file] not in (old.get(file), new[file], untested)] == []
    assert [now.get(file) for file in TRAINED] in [[whole.get(file) for file in TRAINED] for whole in (old, new)]
    command(name, at)
    assert seen(run) == new
    assert {path.name for path in at.iterdir()} == {path.name for path in of.after.iterdir()}
    assert not [*run.rglob(".*")]
