"""Gradients of tasks, gathered and combined."""

from functools import partial
from typing import Any

import pytest
import torch

from hatemtl.objective import surgery
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


def test_of_gradients_of_nothing_all_are_nothing() -> None:
    found, told = Gathered(
        {task: {"encoder.w": torch.zeros(2)} for task in TASKS},
        {task: torch.tensor(0.0) for task in TASKS},
        {task: torch.tensor(True) for task in TASKS},
    ).combined(MAKE[0](tasks=TASKS), 0)
    assert found["encoder.w"].tolist() == [0, 0]
    assert not any(name.startswith("weight_") for name in told)
