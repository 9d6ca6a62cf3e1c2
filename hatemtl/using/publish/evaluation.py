"""Gathers what a saved run's test says: figures with intervals, what was measured by group, and how the run was chosen."""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.evaluations.base import Row
from hatemtl.heads.base import Head
from hatemtl.heads.figures import COUNTS
from hatemtl.labels import LabelSpace
from hatemtl.machine.parquet import unpacked
from hatemtl.saved_runs.claiming import differences
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.seeds import derive

Of = tuple[str, str | None, float, float, float]
# How the figures of one group are named, the group behind: of evaluations.bias, and of evaluations.functional.
BY_GROUP = re.compile(
    r"(subgroup_auc|b(?:psn|nsp)_auc_(?:hatexplain|borkan)|subgroup_(?:false_(?:positive|negative)_rate|macro_f1)"
    r"|functional_target_accuracy)_(.+)"
)
ALL_GROUPS = re.compile(r"gmb_(?:subgroup|bpsn|bnsp)_auc\w*")
RESAMPLES, CONFIDENCE = 1000, 0.95


@dataclass(frozen=True)
class Figures:
    """A task's figures on its test posts. rows: (name, label or None, value, low, high). posts: how many they are of."""

    rows: Sequence[Of]
    posts: int
    primary: str

    @property
    def best(self) -> Of:
        """The row that epochs were compared by."""
        return next(row for row in self.rows if self.primary == (row[0] if row[1] is None else f"{row[0]}_{row[1]}"))


def check_tested(run: SavedRun, tasks: Sequence[str]) -> None:
    """Raises UserError where a task has no test, without which a card would say nothing of how good the model is."""
    tested = {row.task for row in run.rows if row.stage == "test"}
    if missing := [task for task in tasks if task not in tested]:
        raise UserError(
            f"{run.folder}: task {missing[0]!r} was never tested, and a model card must say how good it is; type "
            f"action=test load_path={run.folder}, then the same again"
        )
    if not (run.folder / "predictions.parquet").is_file():
        raise UserError(
            f"{run.folder} has no predictions.parquet, of which intervals are computed; type action=test "
            f"load_path={run.folder}, then the same again"
        )


def figures(run: SavedRun, heads: Mapping[str, Head]) -> dict[str, Figures]:
    """Each task's figures, recomputed from the predictions of its test, with percentile intervals of posts drawn anew.

    They are of this one run: how much another seed would differ, posts do not tell. Raises UserError where the file is
    broken, or of other tasks or labels.
    """
    path, found = run.folder / "predictions.parquet", {}
    again = f"remove it, type action=test load_path={run.folder}, then the same again"
    frame = unpacked(path, again, ["task", "scores", "gold"]).to_pandas()
    for task, head in heads.items():
        of_task = frame[frame["task"] == task]
        try:
            scores, targets = _tensors(head.space, of_task["scores"], of_task["gold"])
        except (ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"{path}: expected the scores and the gold of each test post of task {task!r} ({error}), which is "
                f"{head.space.kind}, {', '.join(head.space.names)}; {again}"
            ) from error
        found[task] = _with_intervals(head, scores, targets, derive(0, "card", task))
    return found


def _tensors(space: LabelSpace, scores: Any, gold: Any) -> tuple[Tensor, Tensor]:
    """Scores and targets as the head's metric reads them; a word that makes no token counts nowhere.

    Raises ValueError, TypeError or IndexError where they are none of these labels.
    """
    if space.about != "words":
        said, true = (torch.tensor(np.stack(column.to_numpy()), dtype=torch.float32) for column in (scores, gold))
        scale = (space.about, space.carries) == ("posts", None)
        each = 1 if scale else len(space)
        shapes, right = (said.shape[1:], true.shape[1:]), ((each,), (each if space.carries == "any" else 1,))
        if shapes != right or not (said.isfinite().all() and true.isfinite().all()):
            raise ValueError(f"{[*map(tuple, shapes)]} numbers a post, expected {[*right]} finite ones")
        most = 1 if space.carries == "any" else each - 1
        if not scale and not ((true >= 0) & (true <= most)).all():
            raise ValueError(f"gold from {true.min():g} to {true.max():g}, expected 0 to {most}")
        if space.carries == "any":
            return said, true
        return said, true[:, 0] if scale else true[:, 0].long()
    width = max(map(len, scores))
    read, marked = np.zeros((len(scores), width), np.float32), np.full((len(scores), width), -1, np.float32)
    for row, (score, target) in enumerate(zip(scores, gold, strict=True)):
        here = ~np.isnan(score)
        read[row, : len(score)][here], marked[row, : len(score)][here] = score[here], target[here]
    return torch.from_numpy(read), torch.from_numpy(marked)


def _with_intervals(head: Head, scores: Tensor, targets: Tensor, seed: int) -> Figures:
    def computed(rows: Tensor) -> dict[tuple[str, str | None], float]:
        metric = head.metric()
        metric.update(scores[rows], targets[rows], torch.ones(len(rows), dtype=torch.bool))
        found = head.rows(metric.compute())
        return {(of.name, of.label): of.value for of in found if of.name not in COUNTS and not of.name.endswith("_cut")}

    posts, draw = len(scores), np.random.default_rng(seed)
    seen = computed(torch.arange(posts))
    drawn = [computed(torch.from_numpy(draw.integers(0, posts, posts))) for _ in range(RESAMPLES)]
    tail = (1 - CONFIDENCE) / 2
    ends = {key: _quantiles([of[key] for of in drawn], tail) for key in seen}
    rows: list[Of] = []
    for (name, label), value in seen.items():
        rows.append((name, label, value, *ends[name, label]))
    return Figures(rows, posts, head.primary)


def _quantiles(values: Sequence[float], tail: float) -> tuple[float, float]:
    """Both ends of the draws that have the figure, as those without any post of a label have not; NaN where none has."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan, math.nan
    low, high = np.quantile(known, [tail, 1 - tail]).tolist()
    return low, high


class OfGroup(NamedTuple):
    """A figure of posts about one group, None for all groups, with its interval and the number of posts, where known."""

    metric: str
    figure: str
    group: str | None
    value: float
    behind: Mapping[str, float]


def by_group(rows: Sequence[Row], task: str) -> list[OfGroup]:
    """Gives the figures of a task's test that are by group: those of bias, and of the functional tests' target groups."""
    behind: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.behind is not None:
            behind.setdefault(row.metric.removesuffix(f"__{row.behind}"), {})[row.behind] = row.value
    found = []
    for row in rows:
        if row.stage == "test" and row.task == task and row.behind is None:
            name = row.metric.removeprefix(f"test_{task}_")  # a group is no label of the task, so no row knows it as one
            if of := BY_GROUP.fullmatch(name):
                found.append(OfGroup(row.metric, of[1], of[2], row.value, behind.get(row.metric, {})))
            elif ALL_GROUPS.fullmatch(name):
                found.append(OfGroup(row.metric, name, None, row.value, behind.get(row.metric, {})))
    return found


def siblings(run: SavedRun, metric: str) -> list[float]:
    """The metric of every run beside this one that differs by its seed alone, this one's first."""
    mine, config = run.results[metric], {**run.config, "seed": None}
    values = [mine]
    for folder in sorted(run.folder.resolve().parent.iterdir()):
        if folder == run.folder.resolve() or folder.name.startswith(".") or not (folder / "run.json").is_file():
            continue
        with suppress(UserError, OSError, KeyError):  # what is no run of this kind is no sibling
            other = SavedRun(folder)
            if not differences(config, {**other.config, "seed": None}):
                values.append(other.results[metric])
    return values
