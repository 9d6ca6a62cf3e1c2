"""Refuses what no training can give."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from hatemtl.batches.sampling import Sampling
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
from hatemtl.objective.stages import Stage
from hatemtl.objective.weighting import Sum
from hatemtl.training.refusals import check_steps

TASKS = {"label": 1.0, "target": 1.0}
COMPARE: list[Any] = [
    *(partial(surgery.pcgrad, of="parameters"), partial(surgery.GradNorm, of="hidden", alpha=1.0), Random, GeometricMean),
    *(partial(Famo, learning_rate=0.025, decay=1e-3), partial(SmoothTchebycheff, mu=0.5)),
]


def checked(
    make: Any,
    sampling: Sampling,
    *,
    accumulate: int = 1,
    of_stage: bool = False,
    corpora: str = "ab",
    by_label: bool = False,
) -> None:
    request: Any = SimpleNamespace(
        trainer=SimpleNamespace(devices=1, nodes=1), optimization=SimpleNamespace(accumulate=accumulate),
        sampling=Sampling() if of_stage else sampling,
        tasks={task: SimpleNamespace(corpus=corpus) for task, corpus in zip(TASKS, corpora, strict=True)},
    )  # fmt: skip
    stages = [Stage(sampling=sampling if of_stage else None)]
    module: Any = SimpleNamespace(weightings=[make(tasks=TASKS)], stages=stages, by_label={"target": []} if by_label else {})
    check_steps(request, module)


def test_gradients_that_tasks_share_are_refused_where_heads_learn_alone() -> None:
    one, another = COMPARE[0](tasks=TASKS), Sum(tasks=TASKS)
    request: Any = SimpleNamespace(
        trainer=SimpleNamespace(devices=1, nodes=1),
        optimization=SimpleNamespace(accumulate=1),
        sampling=Sampling(),
        tasks={},
    )
    module: Any = SimpleNamespace(stages=[Stage(learns="heads"), Stage()], by_label={})
    for weightings in ([one, one], [another, one], [another, another]):
        module.weightings = weightings
        check_steps(request, module)
    module.weightings = [one, another]
    with pytest.raises(UserError, match="only while heads learn alone; type weighting=sum"):
        check_steps(request, module)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("of_stage", [False, True])
def test_steps_of_one_task_are_refused_where_tasks_are_compared(accumulate: int, of_stage: bool) -> None:
    given: dict[str, Any] = {"sampling": Sampling(step="per_task"), "accumulate": accumulate, "of_stage": of_stage}
    for make in COMPARE:
        with pytest.raises(UserError, match="type sampling.step=joint, or weighting=sum"):
            checked(make, **given)
    for make in (Sum, Uncertainty, ImpartialLosses, partial(DynamicAverage, temperature=2.0)):
        checked(make, **given)
    checked(COMPARE[0], **given, by_label=True)  # of whose labels a step has several


def test_batches_of_one_corpus_each_are_refused_where_no_step_has_two_tasks() -> None:
    alternating = Sampling(batch="alternating")
    with pytest.raises(UserError, match="type sampling.batch=mixed, or weighting=sum"):
        checked(COMPARE[0], alternating)
    checked(COMPARE[0], alternating, accumulate=2)
    checked(COMPARE[0], alternating, corpora="aa")
    checked(Uncertainty, alternating)
