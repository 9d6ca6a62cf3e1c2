"""Searches for settings: each trial is a run, or one a seed, as any command would train it, in the study's folder."""

import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hatemtl.errors import UserError
from hatemtl.saved_runs.claiming import digest
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.saved_runs.sweep_names import shortened, standing, standing_at, word
from hatemtl.training.launch.base import Ended, Launcher, Run
from hatemtl.training.sweep import WELL, Finished, Planned, ended_before, keep_record
from hatemtl.tuning.settings import Tuning, measured
from hatemtl.tuning.space import Value

WRONG = 10  # trials in a row that fail and do not diverge, after which a search that has no other end than the clock ends
Params = Mapping[str, Value]
Plan = Callable[
    [Params, int, Path | None], Planned
]  # a trial's run: settings, seed, and its save_path, None for the study's


@dataclass(eq=False)
class Job:
    """A trial at work. values: of each seed that is done, each objective's. planned: the run of the next seed."""

    trial: Any
    planned: Planned
    values: list[list[float]] = field(default_factory=list)


class Asker(Iterator[Run]):
    """Gives a launcher the runs of trials, as long as there are some, and tells the study what became of them."""

    def __init__(self, study: Any, tuning: Tuning, objectives: Mapping[str, bool], place: "Place", seeds: list[int]) -> None:
        self.study, self.tuning, self.objectives, self.place, self.seeds = study, tuning, [*objectives], place, seeds
        self.until = time.monotonic() + 60 * (tuning.minutes or float("inf"))
        self.due: deque[Job] = deque()
        self.at_work: dict[str, Job] = {}
        self.stands = Finished()
        self.wrong = 0  # trials that failed since one ended otherwise

    def __next__(self) -> Run:
        while True:
            job = self.due.popleft() if self.due else self._new()
            if job is None:
                raise StopIteration
            name = job.planned.run.name
            if name in self.at_work:  # the very same settings, which a sampler may propose twice
                self.due.append(job)
                raise StopIteration
            if (ended := ended_before(job.planned, self.stands)) is None:
                self.at_work[name] = job
                return job.planned.run
            self._told(job, ended)

    def _new(self) -> Job | None:
        if time.monotonic() > self.until or self.gave_up or (trial := self.study.ask()) is None:
            return None
        return Job(trial, self.place.planned(trial.params, self.seeds[0]))

    @property
    def gave_up(self) -> bool:
        """Tells whether trials would fail for ever, as where the disk is full."""
        return self.wrong >= WRONG and self.tuning.trials is None and self.tuning.sampler != "grid"

    def told(self, run: Run, ended: Ended) -> None:
        """Tells the study how a run ended that was given; the trial's next seed may be due then."""
        self._told(self.at_work.pop(run.name), ended)

    def _told(self, job: Job, ended: Ended) -> None:
        keep_record(job.planned, ended)
        self.wrong = self.wrong + 1 if ended.state == "failed" and not ended.diverged else 0
        if ended.state in WELL and job.planned.save_path is not None:
            job.values.append(measured(SavedRun(job.planned.save_path), self.objectives))
            if not self.study.tell(job.trial, job.values, of=len(self.seeds)):
                job.planned = self.place.planned(job.trial.params, self.seeds[len(job.values)])
                self.due.appendleft(job)
        elif ended.state != "interrupted":  # of which whoever goes on with the study takes care
            self.study.fail(job.trial, ended.told, diverged=ended.diverged or ended.state == "failed before")


class Place:
    """Says where each run of a study lies: under its settings' words, or where one of the very same settings stands."""

    def __init__(self, folder: Path, plan: Plan, *, seeds: int) -> None:
        self.folder, self.plan, self.several = folder, plan, seeds > 1
        self.there = standing(folder)  # the save_path of each run, by the digest of its configuration
        self.paths: dict[str, Path] = {}  # where each that was planned lies, by its settings and seed

    def planned(self, params: Params, seed: int) -> Planned:
        """Plans the run of these settings and this seed."""
        of = repr((sorted(params.items()), seed))
        if of not in self.paths:
            bare, path = self.plan(params, seed, None), self.folder / self.name(params, seed)
            assert bare.config is not None
            if path in (*self.there.values(), *self.paths.values()):  # other settings may read alike
                path = path.with_name(f"{path.name}-{digest(bare.config)}")
            self.paths[of] = standing_at(self.there, bare.config, path)
        return self.plan(params, seed, self.paths[of])

    def name(self, params: Params, seed: int) -> str:
        """Names a run by its settings, numbers to four digits."""
        short = {key: re.sub(r".*?(\w+(\.\d+)?)$", r"\1", key) for key in params}  # of a place in a list its key too
        words = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in params.items()}
        twice = len({*short.values()}) < len(short)
        parts = [f"{key if twice else short[key]}={word(value)}" for key, value in words.items()]
        return shortened(",".join([*parts, *([f"seed={seed}"] if self.several else [])]))


def search(asker: Asker, launcher: Launcher) -> None:
    """Runs trials until there are no more."""
    for run, ended in launcher(asker):
        asker.told(run, ended)


def adopt(study: Any, asker: Asker) -> int:
    """Tells a new study of the finished runs in its folder, whose journal is gone; gives how many trials they make."""
    if study.trials():
        return 0
    found: dict[str, tuple[Params, dict[int, list[float]]]] = {}
    for path in asker.place.folder.glob("*/run.json"):
        try:
            saved = SavedRun(path.parent)
            config, seed = saved.config, saved.record["seed"]
            params: Params = {key: value_at(config, key) for key in asker.tuning.dimensions}
            if digest(config) == digest(asker.place.plan(params, seed, None).config or {}):
                found.setdefault(repr(params), (params, {}))[1][seed] = measured(saved, asker.objectives)
        except (UserError, KeyError, TypeError, IndexError):  # it is of no trial
            continue
    whole = [(params, of) for params, of in found.values() if of.keys() >= {*asker.seeds}]
    for params, of in sorted(whole, key=lambda one: repr(one[0])):
        with suppress(ValueError):  # a value that is not searched now
            study.add(params, [of[seed] for seed in asker.seeds])
    return len(study.trials())


def value_at(config: Mapping[str, Any], key: str) -> Value:
    """Reads what a run has at a key of the space, or which option of a group. Raises KeyError where it has neither."""
    choices = config.get("choices") or {}
    if key in choices:
        return choices[key]
    node: Any = config
    for part in key.split("."):
        node = node[int(part)] if isinstance(node, list) and part.isdecimal() else node[part]
    if isinstance(node, list | Mapping):
        raise KeyError(key)
    return node


def again(asker: Asker, launcher: Launcher, params: Params, number: int) -> list[list[float]]:
    """Trains settings with so many fresh seeds, which had no part in their choice; gives what each is worth."""
    first = max(asker.seeds) + 1
    planned = [asker.place.planned(params, seed) for seed in range(first, first + number)]
    of_run = {one.run.name: one for one in planned}
    due = [one for one in planned if ended_before(one, asker.stands) is None]
    for run, ended in launcher(one.run for one in due):
        keep_record(of_run[run.name], ended)
    done = [one.save_path for one in planned if one.save_path is not None and one.save_path.is_dir()]
    return [measured(SavedRun(path), asker.objectives) for path in done]
