"""The contract of a launcher: runs go in, how each ended comes out."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args

from hatemtl.errors import Diverged, UserError
from hatemtl.harmless import shown
from hatemtl.machine import json_object
from hatemtl.saved_runs.writing import write_text

State = Literal[
    "finished", "was finished before", "failed", "failed before", "interrupted", "not begun", "submitted", "running"
]
REPORT = "HATEMTL_REPORT"  # the file into which a process that a launcher started writes how its run ended


@dataclass(frozen=True)
class Ended:
    """Tells how a run ended. told: the folder that it left, or what is wrong. diverged: whether it would fail again."""

    state: State
    told: str
    diverged: bool = False


@dataclass(frozen=True, eq=False)  # each is one of its own, and a key of whoever does it
class Run:
    """Holds one run as a launcher sees it, which needs to know no more of it than how to start it.

    name: what tells it from the others. words: what `main.py` takes to do it in a process of its own, on any machine that
    has this folder. here: does it in this process, and lets pass only what ends all. save_path, config: where it lands and
    what it is known by, of one that trains, for a launcher that is asked for it later.
    """

    name: str
    words: Sequence[str]
    here: Callable[[], Ended]
    save_path: Path | None = None
    config: Mapping[str, Any] | None = None


class Launcher(Protocol):
    """Starts runs, and gives each with its end, as they end.

    The next run is taken only when there is room to start it, so whoever gives them may decide by what ended before; where
    there is none, it is asked for again after each end, since that may make one.
    What ends the caller early ends what was started, and leaves it such that it can go on.
    waits: whether it gives ends; one that does not leaves runs in other hands, and tells that they are.
    """

    waits: ClassVar[bool]

    def __call__(self, runs: Iterable[Run]) -> Iterator[tuple[Run, Ended]]: ...


def well(folder: Path, before: bool) -> Ended:
    """Tells of a run that ended well. before: whether an earlier command had finished it."""
    return Ended("was finished before" if before else "finished", str(folder))


def attempt(do: Callable[[], tuple[Path, bool]]) -> Ended:
    """Does a run and tells how it ended; an error is printed, as a command alone prints it, and told.

    do: gives the folder, and whether the run was finished before.
    """
    try:
        folder, before = do()
    except Exception as error:
        if isinstance(error, UserError):
            print(f"error: {shown(str(error), lines=True)}", file=sys.stderr)
        else:  # a bug, to be seen with its stack
            traceback.print_exc()
        return failure(error)
    return well(folder, before)


def failure(error: Exception) -> Ended:
    """Tells an error in one line."""
    said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return Ended("failed", said.split("\n")[0], isinstance(error, Diverged))


def launched() -> bool:
    """Tells whether a launcher started this process, to do the one run of it."""
    return REPORT in os.environ


def reporting(do: Callable[[], tuple[Path, bool]]) -> None:
    """Does the one run of this process; where a launcher started it, that is told how it ended."""
    path, ended = os.environ.pop(REPORT, None), None
    try:
        ended = well(*do())
    except Exception as error:
        ended = failure(error)
        raise
    finally:
        if path and ended:
            write_text(Path(path), json.dumps(asdict(ended)))


def reported(path: Path) -> Ended | None:
    """Reads how the run of another process ended; None where it did not come to tell."""
    if not path.is_file():
        return None
    said = json_object.read(path, "remove it", "state", "told")
    try:
        ended = Ended(**said)
    except TypeError:  # of other keys
        ended = None
    if ended is None or ended.state not in get_args(State) or not isinstance(ended.told, str):
        raise UserError(f"{path}: {said!r:.100}, expected how a run ended; remove it")
    return ended
