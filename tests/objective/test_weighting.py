import pytest
import torch

from hatemtl.objective.weighting import Sum


def test_the_sum_by_hand() -> None:
    losses = {"label": torch.tensor(2.0), "target": torch.tensor(0.5), "rationale": torch.tensor(4.0)}
    total = Sum()(losses, {"target": 3.0, "label": 1.0, "rationale": 0.25})
    assert total.shape == ()
    assert total.item() == 2.0 + 1.5 + 1.0


def test_every_task_gets_a_gradient_of_its_weight() -> None:
    losses = {task: torch.tensor(1.0, requires_grad=True) for task in ("label", "target", "off")}
    Sum()(losses, {"label": 1.0, "target": 0.1, "off": 0.0}).backward()
    assert {task: loss.grad.item() for task, loss in losses.items()} == pytest.approx(
        {"label": 1.0, "target": 0.1, "off": 0.0}
    )


def test_one_task_of_weight_one_is_its_loss() -> None:
    assert Sum()({"label": torch.tensor(0.7)}, {"label": 1.0}) == torch.tensor(0.7)
