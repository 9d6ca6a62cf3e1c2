"""Gathers the numbers of a report's figures from saved runs: by label and group, over epochs and steps, by cost."""

import argparse
import csv
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from compare import measured
from conflicts import STEPS, read_steps, running
from conflicts import drawn as steps_drawn
from conflicts import table_of as steps_table
from cost import Run, behind, describe
from intervals import Scored, interval, mean_interval, within
from outcomes import Outcome
from reliability import Bins, binned, read_answers
from reliability import drawn as bins_drawn
from reliability import table_of as bins_table
from report_figures import Figure, Value, Values, bars, curves, quality_for_cost
from results import Results, ResultsError, is_bound, is_count, note, read_results, sidecar, testing_line
from systems import System
from table import Cell, Table

from hatemtl.harmless import shown

PRIMARY = {  # of tasks whose configuration names none, by kind, as heads/ have it
    "multiclass": "macro_f1",
    "multilabel": "macro_f1",
    "ordinal": "quadratic_kappa",
    "choice": "accuracy",
    "score": "pearson",
    "span": "f1",
    "tokens": "f1",
}
GROUPED = {  # rows of evaluations, one a group: what they are called and say
    "subgroup_auc": ("Subgroup AUC", "how well toxic posts about a group are told from others about it; .5 is chance"),
    "functional_target_accuracy": (
        "HateCheck's accuracy",
        "the share of its cases about a group that are told rightly",
    ),
    "false_positive_rate": ("False positive rate", "of the posts that do not carry a label, the share that it is given to"),
}
MEANS = "Bars are means over seeds, lines their intervals over seeds and posts, cut to what the metric can be."
POINTS = 250  # of a line over steps
WIDE = 2  # diagrams of reliability in a picture


def tasks_of(systems: Sequence[System]) -> dict[str, str]:
    """The kind of each task that all runs were tested on; others are noted. Raises ResultsError where there is none."""
    known: list[tuple[Results, dict[str, str]]] = []
    left_out: dict[str, None] = {}
    for run in (run for system in systems for run in system.each()):
        spaces = sidecar(run, "labels.json") or {}
        tested = {
            task: of["kind"] for task, of in spaces.items() if any(row.startswith(f"test_{task}_") for row in run.rows)
        }
        if not tested:
            raise ResultsError(f"{run.path.parent}: no test rows of any task; test it: {testing_line(run)}")
        known.append((run, {task: kind for task, kind in tested.items() if kind != "masked"}))
    first, tasks = known[0]
    for run, mine in known[1:]:
        kept = {task: kind for task, kind in tasks.items() if mine.get(task) == kind}
        if tasks and not kept:
            raise ResultsError(
                f"{first.path.parent} was tested on {', '.join(tasks)} and {run.path.parent} on {', '.join(mine)}; a report "
                "is of runs of a task that all share: give those of other tasks a report of their own"
            )
        left_out |= dict.fromkeys(task for task in {**tasks, **mine} if task not in kept)
        tasks = kept
    if left_out:
        note(f"{', '.join(left_out)}: not tested in all runs, and left out of the report")
    if not tasks:
        raise ResultsError(f"{first.path.parent}: masked tokens alone were its task, which has no errors to report")
    return tasks


def primary(systems: Sequence[System], tasks: Mapping[str, str]) -> list[str]:
    """The row of each task by which its runs were chosen among epochs, test_label_macro_f1 and the like."""
    config = (sidecar(next(systems[0].each()), "config.yaml") or {}).get("tasks") or {}
    named = {task: ((config.get(task) or {}).get("head") or {}).get("primary") for task in tasks}
    return [f"test_{task}_{named[task] or PRIMARY[kind]}" for task, kind in tasks.items() if named[task] or kind in PRIMARY]


def value_of(scored: Scored, metric: str, alpha: float) -> Value:
    return Value(float(scored.values.mean()), *within(metric, *mean_interval(scored, alpha)))


def table_of(values: Values, names: Sequence[str], corner: str) -> Table:
    """The numbers behind bars: a column a system, means and their intervals."""

    def cell(of: Value | None) -> Cell:
        span = "" if of is None or math.isnan(of.low) else f" ({of.low:.3f} to {of.high:.3f})"
        return None if of is None or math.isnan(of.mean) else f"{of.mean:.3f}{span}"

    rows = {row: [cell(found.get(name)) for name in names] for row, found in values.items()}
    return Table([*names], rows, corner=corner, counts=False)


class Asked(NamedTuple):
    """Runs to be reported. metrics: the main ones. how: what measured() reads. command: that makes this report's figures."""

    systems: Sequence[System]
    tasks: Mapping[str, str]
    metrics: Sequence[str]
    how: argparse.Namespace
    patterns: Sequence[str]
    command: str

    @property
    def names(self) -> list[str]:
        return [system.name for system in self.systems]

    def script(self, name: str, *words: str) -> str:
        return shlex.join(["uv", "run", f"analysis/{name}.py", *words])


def by_label(asked: Asked) -> Iterator[Figure]:
    """F1 of each label of each task, with the intervals of the main table."""
    for task, kind in asked.tasks.items():
        if kind not in ("multiclass", "multilabel", "ordinal"):
            continue
        parts = next(iter(asked.systems[0].runs.values()))
        labels = [label for run in parts for label in (sidecar(run, "labels.json") or {})[task]["names"]]
        said: dict[str, dict[str, list[Outcome]]] = {}
        values = {}
        for label in labels:
            metric = f"test_{task}_f1_{label}"
            scored = measured(asked.systems, metric, said, asked.how)
            values[shown(label)] = {name: value_of(scored[name], metric, asked.how.alpha) for name in asked.names}
        table = table_of(values, asked.names, "label")
        draw = partial(bars, asked.names, values, "F1")
        yield Figure(f"labels-{task}", f"F1 of each label, task {task}", MEANS, draw, table, asked.command)


def by_group(asked: Asked) -> Iterator[Figure]:
    """Rows of evaluations that have one for each group of posts, as bias towards communities."""
    for task, name in ((task, name) for task in asked.tasks for name in GROUPED):
        start, values = f"test_{task}_{name}_", dict[str, dict[str, Value]]()
        for system in asked.systems:
            runs = [run.rows for run in system.each()]
            if len(asked.systems) > 1 and any(len(of) > 1 for of in system.runs.values()):
                continue  # a row of parts is not one of the whole
            for row in runs[0]:
                if row.startswith(start) and not is_bound(row) and not is_count(row) and all(row in of for of in runs):
                    ends = within(row, *interval([of[row] for of in runs], 1 - asked.how.alpha))
                    own = (runs[0].get(f"{row}__low", math.nan), runs[0].get(f"{row}__high", math.nan))
                    mean = fmean(of[row] for of in runs)
                    if math.isfinite(mean):
                        group = values.setdefault(shown(row.removeprefix(start)), {})
                        group[system.name] = Value(mean, *(ends if len(runs) > 1 else own))
        if values:
            told, means = GROUPED[name]
            over = "over seeds" if any(len([*of.each()]) > 1 for of in asked.systems) else "as their tests left them"
            text = f"{told}: {means}. Bars are means over seeds, lines their intervals {over}."
            table = table_of(values, asked.names, "group")
            draw = partial(bars, asked.names, values, told)
            yield Figure(f"groups-{task}-{name}", f"{told} by group, task {task}", text, draw, table, asked.command)


def _epochs(run: Results, column: str) -> dict[int, float]:
    """A metric by epoch, but for the last validation, which is of the best epoch once more: nothing was trained there.

    Of a run that was resumed what was added comes after what stood there, in the place of an epoch that began anew.
    """
    logs = run.path.parent / "logs"
    resumed = sorted(logs.glob("resumed_*/metrics.csv"), key=lambda path: (len(path.parent.name), path.parent.name))
    found: dict[int, float] = {}
    for path in (logs / "metrics.csv", *resumed):
        if not path.is_file():
            continue
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = [*csv.DictReader(file)]
            trained = {row["epoch"] for row in rows if row.get("train_loss")}
            known = [row for row in rows if row.get(column) and row["epoch"] in trained]
            found |= {int(row["epoch"]) + 1: float(row[column]) for row in known}
        except (ValueError, KeyError) as error:
            raise ResultsError(f"{path}: expected numbers in epoch and {column} ({error})") from None
    return found


def learning(asked: Asked) -> Iterator[Figure]:
    """Each main metric on the validation posts, by epoch."""
    for metric in asked.metrics:
        column = metric.replace("test_", "val_", 1)
        whole = [of for of in asked.systems if all(len(runs) == 1 for runs in of.runs.values())]
        each = {of.name: [line for run in of.each() if (line := _epochs(run, column))] for of in whole}
        each = {name: lines for name, lines in each.items() if lines}
        if not each:
            continue
        means = {
            name: {epoch: fmean(line[epoch] for line in lines if epoch in line) for epoch in sorted(set().union(*lines))}
            for name, lines in each.items()
        }
        epochs = sorted(set().union(*means.values()))
        rows = {str(epoch): [means[name].get(epoch) for name in each] for epoch in epochs}
        text = "On validation posts. A thick line is the mean of the seeds that got so far, a thin one a seed."
        if len(whole) < len(asked.systems):
            text += " Systems of parts have no line."
        draw = partial(curves, asked.names, each, means, "epoch", shown(column))
        table = Table([*each], rows, corner="epoch", counts=False)
        yield Figure(f"learning-{metric}", f"{column} by epoch", text, draw, table, asked.command)


def minutes_of(run: Results, known: dict[Path, Run | None]) -> tuple[float | None, float | None, float | None]:
    """Minutes, those with the runs that it started from, and the price, each None where it is not known."""
    record = sidecar(run, "run.json") or {}
    if not record.get("ledger"):
        minutes = record["seconds"] / 60 if "seconds" in record else None
        files = [Path(folder) / "results.csv" for folder in record.get("sources") or {}]
        before = [minutes_of(read_results(file), known)[1] if file.is_file() else None for file in files]
        return minutes, None if None in (minutes, *before) else sum(filter(None, (minutes, *before))), None
    if (own := describe(run)) is None:
        return None, None, None
    minutes, sources = sum(own.seconds.values()) / 60, behind(own, known)
    return minutes, None if sources is None else minutes + sum(sum(of.seconds.values()) for of in sources) / 60, own.price


def cost(asked: Asked, quality: Mapping[str, Mapping[str, Value]]) -> Iterator[Figure]:
    """What a run of each system took, against its main metrics."""
    known: dict[Path, Run | None] = {}
    spent: dict[str, list[float | None]] = {}
    for system in asked.systems:
        found = [[minutes_of(run, known) for run in runs] for runs in system.runs.values()]
        seeds = [[None if None in of else sum(of) for of in zip(*runs, strict=True)] for runs in found]
        spent[system.name] = [None if None in of else fmean(of) for of in zip(*seeds, strict=True)]
    for metric, of in quality.items():
        points = {name: (paid[1], of[name]) for name, paid in spent.items() if paid[1]}
        if points:
            rows = {
                name: [*paid, *(None if math.isnan(part) else part for part in of[name])] for name, paid in spent.items()
            }
            table = Table(["minutes", "minutes in all", "price", "mean", "low", "high"], rows, corner="system", counts=False)
            text = "Means over seeds; further left is cheaper, further up is more."
            if lacking := [name for name in asked.names if name not in points]:
                text += f" Not known are the minutes of {', '.join(lacking)}."
            draw = partial(quality_for_cost, asked.names, points, shown(metric))
            command = asked.script("cost", *asked.patterns)
            yield Figure(f"cost-{metric}", f"Cost against {metric}", text, draw, table, command)


def conflicts(asked: Asked) -> Iterator[Figure]:
    """Cosines of tasks' gradients and their weights, of each system's first seed where it measured those or moved these."""
    for number, system in enumerate(asked.systems):
        folder = next(system.each()).path.parent
        if not (folder / STEPS).is_file():
            continue
        steps, found = read_steps(folder)
        if not any(name.startswith("cosine_") or len({*values[~np.isnan(values)]}) > 1 for name, values in found.items()):
            continue
        smooth = max(20, len(steps) // 50)
        smoothed = {name: running(values, smooth) for name, values in found.items()}
        some = slice(None, None, -(-len(steps) // POINTS))
        draw = partial(steps_drawn, steps[some], {name: values[some] for name, values in smoothed.items()}, 1)
        text = f"The first seed, a running mean of {smooth} steps. Where a cosine is below 0 two tasks conflict."
        title = f"Task weights and conflicts, {system.name}"
        command = asked.script("conflicts", str(folder))
        yield Figure(f"conflicts-{number}", title, text, draw, steps_table(found, 4, None), command)


def reliability(asked: Asked) -> Iterator[Figure]:
    """Whether each system is as sure as it is right; its seeds pooled."""
    for task in asked.tasks:
        known = [run.rows for system in asked.systems for run in system.each()]
        if not all(f"test_{task}_accuracy" in rows or f"test_{task}_micro_f1" in rows for rows in known):
            continue
        found = {}
        for system in asked.systems:
            answers = [read_answers(run, task, None) for run in system.each()]
            p, true = (np.concatenate(side) for side in zip(*answers, strict=True))
            if np.isfinite(p).all() and p.min() >= 0 and p.max() <= 1 + 1e-6:
                found[system.name] = binned(p, true, 15)
        text = "How often answers are right, by how sure the system was; on the dashed line it is as right as it is sure."
        command = asked.script("reliability", *asked.patterns, "--task", task)
        for start in range(0, len(found), WIDE):
            some = dict([*found.items()][start : start + WIDE])
            draw = partial(_reliable, {shown(name): bins for name, bins in some.items()})
            title = f"Reliability, task {task}" + (f", {' and '.join(some)}" if len(found) > WIDE else "")
            yield Figure(f"reliability-{task}-{start}", title, text, draw, bins_table(some, None), command)


def _reliable(found: Mapping[str, Bins], format: str) -> bytes:
    return bins_drawn(found, format=format)
