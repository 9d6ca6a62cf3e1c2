"""Carries a sweep to its end: what is finished is skipped, what fails is recorded, and a table says how each run ended."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatemtl.command import console as report
from hatemtl.command.request import Request
from hatemtl.errors import UserError
from hatemtl.saved_runs.claiming import Inputs, differences, other_inputs
from hatemtl.saved_runs.failures import diverged_before, forget_failure, record_of, write_failure
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.training.inputs import inputs_of, inputs_to_read, sources_of
from hatemtl.training.launch.base import Ended, Launcher, Run

BEGUN, NOT_BEGUN = Ended("interrupted", "the same command goes on with it"), Ended("not begun", "")
WELL = ("finished", "was finished before")
AT_WORK = ("submitted", "running")  # in other hands


@dataclass(frozen=True)
class Planned:
    """A run of a sweep. request: makes its request, of one that trains; else None.

    overwrite: whether what was finished or diverged is tried again.
    """

    run: Run
    request: Callable[[], Request] | None = None
    then_test: bool = False
    overwrite: bool = False

    @property
    def save_path(self) -> Path | None:
        """Tells where it lands, if it trains."""
        return self.run.save_path

    @property
    def config(self) -> Mapping[str, Any] | None:
        """Gives what it is known by, if it trains."""
        return self.run.config


def carry(planned: Iterable[Planned], launcher: Launcher) -> bool:
    """Carries the runs to their ends, whatever becomes of any of them; tells whether all ended well.

    A failure is recorded beside the run's save_path. One that diverged is not tried again, since it would again; another,
    as of a full disk, is. What ends the process is told behind the table of what was done until then.
    """
    of_run = {one.run: one for one in planned}  # whose names may be one, where a save_path tells them apart
    ends = dict.fromkeys(of_run, NOT_BEGUN)
    stands = Finished()

    def due() -> Iterator[Run]:
        for run, one in of_run.items():
            ends[run] = ended_before(one, stands) or BEGUN
            if ends[run] is BEGUN:
                yield run

    try:
        for run, ended in launcher(due()):
            ends[run] = ended
            keep_record(of_run[run], ended)
    except UserError:  # the launcher starts nothing
        ends.update({run: NOT_BEGUN for run, ended in ends.items() if ended is BEGUN})
        raise
    finally:
        report.sweep(report.Console(), [(run.name, ended.state, ended.told) for run, ended in ends.items()])
    return all(ended.state in (*WELL, *AT_WORK) for ended in ends.values())


def ended_before(one: Planned, stands: "Finished") -> Ended | None:
    """Tells how a run ended that need not be begun; None where it must be."""
    if one.save_path is None or one.config is None or one.request is None or one.overwrite:
        return None
    if stands(one.request, one.save_path, one.config, then_test=one.then_test):
        return Ended("was finished before", str(one.save_path))
    if (told := diverged_before(one.save_path, one.config)) is not None:
        return Ended("failed before", f"{told}; remove {record_of(one.save_path)} to try it again")
    return None


def keep_record(one: Planned, ended: Ended) -> None:
    """Keeps beside the save_path how a run failed, or forgets it when one ended well."""
    if one.save_path is None or one.config is None:
        return
    if ended.state == "failed":
        with suppress(OSError):  # the disk may be what failed
            write_failure(one.save_path, one.config, ended.told, diverged=ended.diverged)
    elif ended.state in WELL:
        with suppress(OSError):
            forget_failure(one.save_path)


class Finished:
    """Tells whether a run is finished and would be found so if it were started, which for many takes long.

    What is not sure is not finished: then the run itself says what is wrong with what stands there.
    """

    def __init__(self) -> None:
        self.read: dict[str, Inputs] = {}  # what most runs of a sweep share

    def __call__(
        self, request: Callable[[], Request], save_path: Path, config: Mapping[str, Any], *, then_test: bool
    ) -> bool:
        try:
            if not save_path.is_dir() or differences((saved := SavedRun(save_path)).config, config):
                return False
            asked = request()
            judged_anew = asked.evaluations or asked.folds is not None
            tested = {row.task for row in saved.rows if row.stage == "test"}
            if then_test and (judged_anew or saved.tested_in_int8 or not tested >= asked.tasks.keys()):
                return False
            return not other_inputs(saved.record, inputs_of(sources_of(asked), self._to_read(asked)))
        except Exception:  # of a disk, a file or a setting; nothing here may end the other runs
            return False

    def _to_read(self, request: Request) -> Inputs:
        tasks = request.tasks_knowing(request.heads_from())
        key = repr((tasks, request.folds, request.unlabelled, request.encoder))
        if key not in self.read:
            self.read[key] = inputs_to_read(request, request.datamodule(tasks))
        return self.read[key]
