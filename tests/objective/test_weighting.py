from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn

from hatemtl.objective.step import Step
from hatemtl.objective.weighting import Sum, Uncertainty


def step(losses: Mapping[str, Tensor], *, absent: str | None = None) -> Step:
    return Step(0, [], None, {task: torch.tensor(float(task != absent)) for task in losses})


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


def test_uncertainty_by_hand() -> None:
    losses = {"label": torch.tensor(2.0), "target": torch.tensor(0.5)}
    weighting = Uncertainty(tasks={"label": 1.0, "target": 4.0})
    assert weighting(losses, step(losses)).item() == pytest.approx(2.0 + 4 * 0.5)
    with torch.no_grad():
        weighting.log_variance["label"].fill_(1.5)
    assert weighting(losses, step(losses)).item() == pytest.approx(2.0 * torch.tensor(-1.5).exp().item() + 0.75 + 2.0)


def test_uncertainty_learns_the_logarithm_of_twice_the_loss() -> None:
    """The minimum over s of exp(-s)·L + s/2 lies where exp(-s)·L = 1/2."""
    losses = {"loud": torch.tensor(8.0), "quiet": torch.tensor(0.125), "absent": torch.tensor(0.0)}
    weighting = Uncertainty(tasks=dict.fromkeys(losses, 1.0))
    solver = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(1000):
        solver.zero_grad()
        weighting(losses, step(losses, absent="absent")).backward()
        solver.step()
    found = {task: weighting.log_variance[task].item() for task in losses}
    assert found["loud"] == pytest.approx(torch.tensor(16.0).log().item(), abs=1e-2)
    assert found["quiet"] == pytest.approx(torch.tensor(0.25).log().item(), abs=1e-2)
    assert found["absent"] == 0  # a task without a post drifts no weight


def test_gradients_of_each_task_are_those_of_its_loss_alone() -> None:
    torch.manual_seed(0)
    shared, x = nn.Linear(4, 3), torch.randn(5, 4)
    hidden = shared(x)
    losses = {"a": hidden[:, 0].square().sum(), "b": hidden[:, 1:].exp().mean()}
    given = Step(0, list(shared.parameters()), hidden, {})
    of_parameters, of_hidden = given.gradients(losses), given.gradients(losses, of_hidden=True)
    assert of_parameters.shape == (2, 15)
    for i, loss in enumerate(losses.values()):
        own = torch.autograd.grad(loss, list(shared.parameters()), retain_graph=True)
        assert torch.equal(of_parameters[i], torch.cat([part.flatten() for part in own]))
    expected = torch.stack([2 * hidden[:, 0], *[torch.zeros(5)] * 2], dim=1)
    torch.testing.assert_close(of_hidden[0].view(5, 3), expected)
    assert all(parameter.grad is None for parameter in shared.parameters())
    losses["a"].backward()  # what is shared can still be gone through


def test_a_step_computes_what_it_is_asked_for_and_no_more() -> None:
    def unasked() -> Iterator[nn.Parameter]:
        raise AssertionError("the shared parameters were listed")
        yield

    losses = {task: torch.tensor(1.0) for task in ("a", "b")}
    given = Step(0, unasked(), None, {"a": torch.tensor([False, True]), "b": torch.tensor([False, False])})
    Sum(tasks={"a": 1.0, "b": 0.5})(losses, given)
    assert "present" not in vars(given)
    assert {task: float(there) for task, there in given.present.items()} == {"a": 1, "b": 0}
    frozen, learning = nn.Parameter(torch.zeros(2), requires_grad=False), nn.Parameter(torch.zeros(2))
    assert [*map(id, Step(0, iter([frozen, learning]), None, {}).parameters)] == [id(learning)]
