"""Refuses what no training can give."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from hatemtl.errors import UserError
from hatemtl.objective import surgery
from hatemtl.objective.from_losses import (
    DynamicAverage,
    Famo,
    GeometricMean,
    ImpartialLosses,
    Random,
    SmoothTchebycheff,
    Uncertainty,
)
from hatemtl.objective.weighting import Sum
from hatemtl.training.refusals import check_steps

TASKS = {"label": 1.0, "target": 1.0}
COMPARE: list[Any] = [
    *(partial(surgery.pcgrad, of="parameters"), partial(surgery.GradNorm, of="hidden", alpha=1.0), Random, GeometricMean),
    *(partial(Famo, learning_rate=0.025, decay=1e-3), partial(SmoothTchebycheff, mu=0.5)),
]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("of_stage", [False, True])
def test_steps_of_one_task_are_refused_where_tasks_are_compared(accumulate: int, of_stage: bool) -> None:
    joint, per_task = SimpleNamespace(step="joint"), SimpleNamespace(step="per_task")
    request: Any = SimpleNamespace(
        trainer=SimpleNamespace(devices=1, nodes=1), optimization=SimpleNamespace(accumulate=accumulate),
        sampling=joint if of_stage else per_task,
    )  # fmt: skip
    stages = [SimpleNamespace(sampling=per_task if of_stage else None)]

    def check(make: Any) -> None:
        module: Any = SimpleNamespace(weightings=[make(tasks=TASKS)], stages=stages)
        check_steps(request, module)

    for make in COMPARE:
        with pytest.raises(UserError, match="type sampling.step=joint, or weighting=sum"):
            check(make)
    for make in (Sum, Uncertainty, ImpartialLosses, partial(DynamicAverage, temperature=2.0)):
        check(make)
