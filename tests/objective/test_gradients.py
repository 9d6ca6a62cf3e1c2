"""Gradients of tasks, gathered and combined."""

from functools import partial
from typing import Any

import pytest
import torch

from hatemtl.objective import surgery
from hatemtl.objective.from_losses import Famo, GeometricMean, SmoothTchebycheff
from hatemtl.objective.gradients import Gathered

TASKS = {"label": 1.0, "target": 0.5, "learned": 1.0}
MAKE: list[Any] = [
    partial(surgery.mgda, of="parameters", epsilon=1e-3, max_iters=100),
    partial(surgery.nash_mtl, of="parameters"),
    partial(surgery.fairgrad, of="parameters", alpha=1.0),
    partial(surgery.GradNorm, of="parameters", alpha=1.0),
]


def gathered(*tasks: str) -> Gathered:
    rows = {"label": torch.tensor([1.0, 0.0]), "target": torch.tensor([1.0, 3.0]), "learned": torch.zeros(2)}
    losses = {"label": torch.tensor(0.7), "target": torch.tensor(0.3), "learned": torch.tensor(0.0)}
    return Gathered(
        {task: {"encoder.w": rows[task]} for task in tasks}, losses, {task: torch.tensor(True) for task in tasks}
    )


@pytest.mark.parametrize("make", MAKE)
def test_a_gradient_of_nothing_has_no_weight(make: Any) -> None:
    found, told = gathered(*TASKS).combined(make(tasks=TASKS), 0)
    expected, weights = gathered("label", "target").combined(make(tasks=TASKS), 0)
    torch.testing.assert_close(found["encoder.w"], expected["encoder.w"])
    assert found["encoder.w"].any()
    assert {name: weight for name, weight in told.items() if name.startswith("weight_")} == pytest.approx(
        {name: weight for name, weight in weights.items() if name.startswith("weight_")}
    )


@pytest.mark.parametrize(
    ("make", "takes_it_back"),
    [
        (partial(surgery.nash_mtl, of="parameters"), True),
        (partial(surgery.fairgrad, of="parameters", alpha=1.0), True),
        (partial(surgery.imtl_g, of="parameters"), True),
        (partial(Famo, learning_rate=0.025, decay=1e-3), True),
        (GeometricMean, True),
        (partial(SmoothTchebycheff, mu=0.5), False),
        (partial(surgery.pcgrad, of="parameters"), False),
        (partial(surgery.upgrad, of="parameters"), False),
        (partial(surgery.GradientVaccine, of="parameters", decay=0.5), False),
    ],
)
def test_whether_a_weight_prefers_a_task(make: Any, takes_it_back: bool) -> None:
    ways = []
    for weight in (1.0, 5.0):
        found, _ = gathered("label", "target").combined(make(tasks={"label": weight, "target": 1.0}), 0)
        ways.append(found["encoder.w"])
    assert (torch.cosine_similarity(*ways, dim=0) > 0.9999) == takes_it_back


def test_of_gradients_of_nothing_all_are_nothing() -> None:
    found, told = Gathered(
        {task: {"encoder.w": torch.zeros(2)} for task in TASKS},
        {task: torch.tensor(0.0) for task in TASKS},
        {task: torch.tensor(True) for task in TASKS},
    ).combined(MAKE[0](tasks=TASKS), 0)
    assert found["encoder.w"].tolist() == [0, 0]
    assert not any(name.startswith("weight_") for name in told)
