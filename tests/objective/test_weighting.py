from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from hatemtl.objective.weighting import Step, Sum


def step(losses: Mapping[str, Tensor], *, absent: str | None = None) -> Step:
    return Step(0, {task: torch.tensor(float(task != absent)) for task in losses})


def test_the_sum_by_hand() -> None:
    losses = {"label": torch.tensor(2.0), "target": torch.tensor(0.5), "rationale": torch.tensor(4.0)}
    total = Sum(tasks={"target": 3.0, "label": 1.0, "rationale": 0.25})(losses, step(losses))
    assert total.shape == ()
    assert total.item() == 2.0 + 1.5 + 1.0


def test_every_task_gets_a_gradient_of_its_weight() -> None:
    losses = {task: torch.tensor(1.0, requires_grad=True) for task in ("label", "target", "off")}
    Sum(tasks={"label": 1.0, "target": 0.1, "off": 0.0})(losses, step(losses)).backward()
    found = {task: loss.grad.item() for task, loss in losses.items() if loss.grad is not None}
    assert found == pytest.approx({"label": 1.0, "target": 0.1, "off": 0.0})


def test_one_task_of_weight_one_is_its_loss() -> None:
    losses = {"label": torch.tensor(0.7)}
    assert Sum(tasks={"label": 1.0})(losses, step(losses)) == torch.tensor(0.7)


def test_a_step_computes_what_it_is_asked_for_and_no_more() -> None:
    losses = {task: torch.tensor(1.0) for task in ("a", "b")}
    given = Step(0, {"a": torch.tensor([False, True]), "b": torch.tensor([False, False])})
    Sum(tasks={"a": 1.0, "b": 0.5})(losses, given)
    assert "present" not in vars(given)
    assert {task: float(there) for task, there in given.present.items()} == {"a": 1, "b": 0}
