"""Teaches a network what saved runs predict: knowledge distillation."""

from collections.abc import Mapping
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.heads.base import masked_mean
from hatemtl.objective.regularisers.base import Passes, Regulariser, Run, check_no_guessing, expect
from hatemtl.saved_runs.saved_run import SavedRun


@dataclass(frozen=True, kw_only=True)
class Distil(Regulariser):
    """Adds T²·KL(teacher ‖ student), of predictions whose logits are divided by the temperature T, over a task's annotated
    posts, to the loss of each task that a teacher knows (Hinton et al. 2015, arXiv:1503.02531); of a number, half the
    squared difference. The sum is weighed as the task's loss.

    weight: of the divergence. teachers: a glob of saved runs, each of other tasks of this run, or one of all. anneal: the
    target goes from the teacher's prediction to the annotation while p, how far training is, goes from 0 to 1, as in
    born-again multi-task networks (Clark et al. 2019, arXiv:1907.04829): the sum is p·loss + (1 - p)·weight·T²·KL.
    """

    by_passes = True
    weight: float
    teachers: str | None
    temperature: float
    anneal: bool

    def __post_init__(self) -> None:
        expect(0 <= self.weight < float("inf"), "distil.weight", self.weight, "a number, 0 or more")
        expect(0 < self.temperature < float("inf"), "distil.temperature", self.temperature, "a number above 0, such as 2")

    def saved_runs(self) -> list[SavedRun]:
        if not self.teachers:
            raise UserError(
                "regulariser=[distil] needs the saved runs that teach; type "
                "regulariser.distil.teachers=\"'adapters/teacher_*'\""
            )
        found = [SavedRun(folder) for folder in sorted(glob(self.teachers)) if Path(folder).is_dir()]
        if not found:
            raise UserError(
                f"regulariser.distil.teachers={self.teachers!r} matches no saved run (from {Path.cwd()}); train one, and "
                f"type regulariser.distil.teachers=FOLDER"
            )
        return found

    def check(self, forward: Passes) -> None:
        check_no_guessing(forward, "distil")
        known: dict[str, SavedRun] = {}
        for run in self.saved_runs():
            labels = run.labels
            if not labels.keys() & forward.heads.keys():
                raise UserError(
                    f"regulariser.distil.teachers: {run.folder} knows {', '.join(labels)}, and this run trains "
                    f"{', '.join(forward.heads)}; leave it out"
                )
            for task in [task for task in labels if task in forward.heads]:
                if labels[task] != forward.heads[task].space:
                    raise UserError(
                        f"regulariser.distil.teachers: {run.folder} was taught other labels of task {task!r} "
                        f"({', '.join(labels[task].names)}) than this run's ({', '.join(forward.heads[task].space.names)}); "
                        f"leave it out, or give the task the corpus and mask_pattern that it was trained with"
                    )
                if task in known:
                    raise UserError(
                        f"regulariser.distil.teachers: {known[task].folder} and {run.folder} both teach task {task!r}; "
                        f"leave one out"
                    )
                known[task] = run

    def begin(self, forward: Passes, run: Run) -> "Lesson":
        return Lesson(self, [run.teacher(saved) for saved in self.saved_runs()])


class Lesson(Regulariser):
    """The teachers at work."""

    def __init__(self, settings: Distil, teachers: list[Passes]) -> None:
        self.settings, self.teachers, self.weight = settings, teachers, settings.weight

    def mixed(self, forward: Passes, batch: Any, logits: Mapping[str, Tensor]) -> dict[str, tuple[float, Tensor]]:
        mask, T = batch.first(batch.attention_mask), self.settings.temperature
        stays, taught = (forward.progress, 1 - forward.progress) if self.settings.anneal else (1.0, 1.0)
        found: dict[str, tuple[float, Tensor]] = {}
        for teacher in self.teachers:
            tasks = [task for task in logits if task in teacher.heads]
            with torch.no_grad():
                said = teacher(batch, tasks) if tasks else {}
            for task in tasks:
                head = forward.heads[task]
                target = _as(head, teacher.heads[task], said[task])
                kl = T**2 * head.kl(target / T, logits[task] / T, mask)
                found[task] = stays, taught * self.weight * masked_mean(kl, batch.has[task].float())
        return found


def _as(head: Any, teacher: Any, logits: Tensor) -> Tensor:
    """A teacher's logits as the student's: of a number, which each standardises by its own posts, of the student's scale."""
    if head.space.about != "posts" or head.space.carries is not None:  # labels
        return logits
    mean, deviation = head.scale
    return (teacher.scores(logits) - mean) / deviation
