"""Says what a search chooses from, by what it chooses, and when it ends."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from hatemtl.command.request import Request
from hatemtl.errors import UserError, did_you_mean
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.tuning.space import Choice, Dimension, grid, read_space

PAIRS = 4  # of seeds, all worse, for a p below Optuna's .1: 2⁻⁴
JOURNAL = "journal.log"  # of a study, in its folder
# Of run.json, what may be an objective beside the rows of results.csv.
FIGURES = ("seconds", "examples_per_second", "peak_memory_bytes", "trained_parameters", "parameters")


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A search for settings.

    space: see `read_space`. by: rows of results.csv or figures of run.json, of which more is better, or less with a minus
    in front; None for the one task's primary metric. trials: of the study, by whomever; None for a whole grid, or until the
    minutes are over. seeds: each trial has a run a seed, one after another, and what is judged is their mean; None for the
    run's own seed alone. pruner: whether a trial ends after a seed that shows it to be worse. again: fresh seeds with which
    the best is trained when the search is over.
    """

    space: Mapping[str, Any] | str | None
    by: str | Sequence[str] | None
    sampler: Literal["grid", "random", "tpe", "cma", "nsga2"]
    pruner: Literal["none", "median", "hyperband", "wilcoxon"]
    trials: int | None
    minutes: float | None
    seeds: Sequence[int] | None
    again: int

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise UserError(f"tune.trials={self.trials}: expected a whole number, 1 or more")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise UserError(f"tune.minutes={self.minutes}: expected a number above 0")
        if self.again < 0:
            raise UserError(f"tune.again={self.again}: expected a number of seeds, 0 for none")
        if self.seeds is not None and (not self.seeds or len({*self.seeds}) < len(self.seeds)):
            raise UserError(f"tune.seeds={[*self.seeds]}: expected whole numbers, each once; type tune.seeds=[0,1,2]")

    @cached_property
    def dimensions(self) -> dict[str, Dimension]:
        """Gives what is searched. Raises UserError where that is nothing, or nothing that the sampler can search."""
        space = read_space(self.space)
        if self.sampler == "grid":
            grid(space)
        elif self.trials is None and self.minutes is None:
            raise UserError(f"tune.sampler={self.sampler} has no end of its own; type tune.trials=20 or tune.minutes=60")
        if self.sampler == "cma" and (named := [key for key, of in space.items() if isinstance(of, Choice)]):
            raise UserError(
                f"tune.sampler=cma searches numbers, and tune.space.{named[0]} is a list; type uniform(low, high), log(low, "
                f"high) or int(low, high), or tune.sampler=tpe"
            )
        return space

    def objectives(self, request: Request) -> dict[str, bool]:
        """Gives each objective, and whether less of it is better. Raises UserError where no task will have it."""
        given = [self.by] if isinstance(self.by, str) else [*self.by] if self.by is not None else [_primary(request)]
        found = {name.lstrip("-"): name.startswith("-") for name in given}
        if not found or len(found) < len(given):
            raise UserError(f"tune.by={given}: expected one objective or several, each once")
        known = known_rows(request)
        for name in found:
            if name.startswith("test_"):
                raise UserError(
                    f"tune.by={name}: what is chosen by the test split is no longer tested by it; type tune.by=val_"
                    f"{name.removeprefix('test_')}"
                )
            if name not in FIGURES and name not in known:
                raise UserError(f"tune.by={name}: no task has this metric; {did_you_mean(name, [*known, *FIGURES])}")
        if self.pruner != "none" and len(found) > 1:
            raise UserError(f"tune.pruner={self.pruner} judges by one objective, and tune.by has {len(found)}; type one")
        if self.pruner != "none" and len(self.seeds or ()) < 2:
            raise UserError(f"tune.pruner={self.pruner} looks after each seed of a trial; type tune.seeds=[0,1,2] as well")
        if self.pruner == "wilcoxon" and len(self.seeds or ()) < PAIRS + 1:
            raise UserError(
                f"tune.pruner=wilcoxon can tell nothing of fewer than {PAIRS} seeds, and looks before a trial's last; type "
                f"tune.seeds={[*range(PAIRS + 1)]}, or tune.pruner=median"
            )
        return found


def known_rows(request: Request) -> list[str]:
    """Lists the rows of validation that a run will have."""
    tasks = request.tasks_knowing(request.heads_from())
    data = request.datamodule(tasks)
    found = []
    for name, task in tasks.items():
        if task.column is None:  # a masked head, which is made with the encoder's words
            found += [f"val_{name}_{figure}" for figure in ("loss", "perplexity", "likelihood", "accuracy")]
            continue
        head = task.head(hidden_size=8, space=data.spaces[name])
        with warnings.catch_warnings(action="ignore"):  # it was never updated, which is all right for names
            found += [f"val_{name}_{figure.key}" for figure in head.rows(head.metric().compute())]
    return found


def _primary(request: Request) -> str:
    names = {name: task.head_settings.get("primary") for name, task in request.tasks.items()}
    if len(names) > 1 or None in names.values():
        raise UserError(f"tune.by is null, and there are the tasks {', '.join(names)}; type one, as tune.by=val_TASK_METRIC")
    return "".join(f"val_{name}_{metric}" for name, metric in names.items())


def measured(run: SavedRun, objectives: Sequence[str]) -> list[float]:
    """Reads what a finished run is worth by each objective. Raises UserError where it does not have one."""
    record, rows = run.record, run.results
    found = []
    for name in objectives:
        value = record.get(name) if name in FIGURES else rows.get(name)
        if not isinstance(value, int | float):
            raise UserError(f"tune.by={name}: {run.folder} has no such row; {did_you_mean(name, [*rows, *FIGURES])}")
        found.append(float(value))
    return found
