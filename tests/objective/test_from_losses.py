"""Weightings from losses by TorchJD's and by hand; equal losses, one task and absent tasks change nothing."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torchjd import scalarization

from hatemtl.errors import UserError
from hatemtl.objective.from_losses import (
    DynamicAverage,
    Famo,
    GeometricMean,
    ImpartialLosses,
    Random,
    SmoothTchebycheff,
    Uncertainty,
)
from hatemtl.objective.weighting import Step, Sum, Weighting

TASKS = ("label", "target", "rationale")
MAKE: dict[str, Callable[..., Weighting]] = {
    "sum": Sum,
    "uncertainty": Uncertainty,
    "imtl_l": ImpartialLosses,
    "dwa": lambda tasks: DynamicAverage(tasks=tasks, temperature=2.0),
    "famo": lambda tasks: Famo(tasks=tasks, learning_rate=0.025, decay=1e-3),
    "random": Random,
    "stch": lambda tasks: SmoothTchebycheff(tasks=tasks, mu=0.5),
    "gls": GeometricMean,
}


def made(name: str, tasks: Mapping[str, float] | None = None) -> Weighting:
    return MAKE[name](tasks=tasks or dict.fromkeys(TASKS, 1.0))


def step(losses: Mapping[str, Tensor], *absent: str, epoch: int = 0) -> Step:
    return Step(epoch, {task: torch.tensor(task not in absent) for task in losses})


def leaves(*values: float) -> dict[str, Tensor]:
    return {task: torch.tensor(value, requires_grad=True) for task, value in zip(TASKS, values, strict=False)}


def weights(weighting: Weighting, losses: Mapping[str, Tensor], *absent: str, epoch: int = 0) -> list[float]:
    found = torch.autograd.grad(weighting(losses, step(losses, *absent, epoch=epoch)), [*losses.values()])
    return [gradient.item() for gradient in found]


@pytest.mark.parametrize("name", sorted(MAKE.keys() - {"random"}))
def test_equal_losses_have_the_weights_of_the_sum(name: str) -> None:
    assert weights(made(name), leaves(0.7, 0.7, 0.7)) == pytest.approx([1, 1, 1], rel=1e-5)


@pytest.mark.parametrize("name", MAKE)
def test_one_task_is_trained_as_it_is(name: str) -> None:
    losses = {"label": torch.tensor(0.7, requires_grad=True)}
    assert weights(made(name, {"label": 1.0}), losses) == pytest.approx([1], rel=1e-5)


@pytest.mark.parametrize("name", MAKE)
def test_a_task_without_a_post_drifts_nothing_and_the_others_do_not_see_it(name: str) -> None:
    torch.manual_seed(0)
    absent, alone = made(name), made(name, {"label": 1.0, "target": 1.0})
    losses = leaves(0.3, 2.0, 0.0)
    both = {task: losses[task] for task in ("label", "target")}
    found, expected = weights(absent, losses, "rationale"), weights(alone, both)
    if name != "random":  # whose draws are others
        assert found[:2] == pytest.approx(expected, rel=1e-5)
    assert sum(found[:2]) > 0 and torch.tensor(found).isfinite().all()
    absent(losses, step(losses, "rationale")).backward()
    for key, parameter in absent.named_parameters():
        assert ("rationale" in key) == (parameter.grad == 0)
    nothing = absent(leaves(0.0, 0.0, 0.0), step(losses, *TASKS))
    assert nothing.isfinite() and nothing == 0


@pytest.mark.parametrize("name", ["uncertainty", "imtl_l"])
def test_momentum_moves_nothing_of_a_task_that_is_absent_or_of_weight_0(name: str) -> None:
    weighting = made(name, {"label": 1.0, "target": 1.0, "rationale": 0.0})
    solver, seen = torch.optim.AdamW(weighting.parameters(), lr=0.1), []
    for absent in ((), ("target",)):
        losses = leaves(3.0, 3.0, 3.0)
        solver.zero_grad()
        weighting(losses, given := step(losses, *absent)).backward()
        weighting.rest(given.has)
        solver.step()
        seen.append({key.split(".")[1]: parameter.item() for key, parameter in weighting.named_parameters()})
    first, second = seen
    assert first["rationale"] == second["rationale"] == 0 != first["target"] == second["target"]
    assert first["label"] != second["label"]


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
        weighting(losses, step(losses, "absent")).backward()
        solver.step()
    found = {task: weighting.log_variance[task].item() for task in losses}
    assert found["loud"] == pytest.approx(torch.tensor(16.0).log().item(), abs=1e-2)
    assert found["quiet"] == pytest.approx(torch.tensor(0.25).log().item(), abs=1e-2)
    assert found["absent"] == 0  # a task without a post drifts no weight


def test_imtl_l_is_torchjds() -> None:
    mine, theirs, losses = made("imtl_l"), scalarization.IMTLL(3), leaves(2.0, 0.5, 1.0)
    values = torch.tensor([0.3, -1.0, 0.0])
    with torch.no_grad():
        theirs.log_scale.copy_(values)
        for task, value in zip(TASKS, values, strict=True):
            mine.log_scale[task].fill_(value)  # type: ignore[index,operator]
    expected = theirs(torch.stack([*losses.values()]))
    torch.testing.assert_close(mine(losses, step(losses)), expected)
    mine(losses, step(losses)).backward()
    expected.backward()
    found = [mine.log_scale[task].grad.item() for task in TASKS]  # type: ignore[index,union-attr]
    assert found == pytest.approx(theirs.log_scale.grad.tolist())  # type: ignore[union-attr]


def test_gls_and_stch_are_torchjds_up_to_a_factor() -> None:
    losses = leaves(2.0, 0.5, 1.0)
    values = torch.stack([*losses.values()])
    torch.testing.assert_close(made("gls")(losses, step(losses)), 3 * scalarization.GeometricMean()(values))
    theirs = torch.autograd.grad(9 * scalarization.STCH(mu=0.5 / 3)(values), [*losses.values()])
    assert weights(made("stch"), losses) == pytest.approx([gradient.item() for gradient in theirs])


def test_dwa_is_torchjds_over_four_epochs() -> None:
    mine, theirs = made("dwa"), scalarization.DWA(2.0)
    torch.manual_seed(0)
    for epoch in range(4):
        for draw in torch.rand(3, 3):
            losses = leaves(*draw.tolist())
            expected = torch.autograd.grad(theirs(torch.stack([*losses.values()])), [*losses.values()])
            assert weights(mine, losses, epoch=epoch) == pytest.approx([g.item() for g in expected], rel=1e-5)
        theirs.step()


def test_famo_is_torchjds_over_twenty_steps() -> None:
    mine, theirs = made("famo"), scalarization.FAMO(3, lr=0.025, weight_decay=1e-3)
    torch.manual_seed(0)
    for draw in torch.rand(20, 2, 3) + 0.1:
        losses = leaves(*draw[0].tolist())
        expected = torch.autograd.grad(theirs(torch.stack([*losses.values()])), [*losses.values()])
        assert weights(mine, losses) == pytest.approx([3 * g.item() for g in expected], rel=1e-4)  # theirs add up to 1
        theirs.update(draw[1])
        mine.look_back(dict(zip(TASKS, draw[1], strict=True)), step(losses))
    torch.testing.assert_close(mine.logits, theirs._w.detach(), rtol=1e-4, atol=1e-6)


def test_famo_moves_no_logit_of_an_absent_task() -> None:
    mine, losses = made("famo"), leaves(1.0, 1.0, 0.0)
    weights(mine, losses, "rationale")
    mine.look_back({"label": torch.tensor(0.5), "target": torch.tensor(1.0), "rationale": torch.tensor(0.0)}, step(losses))
    label, target, rationale = mine.logits.tolist()  # type: ignore[operator]
    assert label < 0 < target and rationale == 0  # what fell fast counts less


def test_random_weights_are_drawn_anew_and_add_up_to_the_tasks() -> None:
    torch.manual_seed(0)
    draws = [weights(made("random"), leaves(1.0, 1.0, 1.0)) for _ in range(2000)]
    assert draws[0] != draws[1]
    assert [sum(draw) for draw in draws] == pytest.approx([3.0] * len(draws), rel=1e-4)
    assert torch.tensor(draws).mean(dim=0).tolist() == pytest.approx([1, 1, 1], abs=0.06)


@pytest.mark.parametrize("name", ["dwa", "famo", "uncertainty", "imtl_l"])
def test_what_it_knows_is_in_its_state(name: str) -> None:
    def some(weighting: Weighting, draws: Tensor, first: int) -> Weighting:
        solver = torch.optim.SGD([*weighting.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        for place, draw in enumerate(draws, first):
            losses = leaves(*draw.tolist())
            solver.zero_grad()
            weighting(losses, step(losses, epoch=place // 2)).backward()
            solver.step()
            weighting.look_back({task: loss.detach() * loss.detach() for task, loss in losses.items()}, step(losses))
        return weighting

    torch.manual_seed(0)
    draws, again = torch.rand(8, 3) + 0.1, made(name)
    again.load_state_dict(some(made(name), draws[:5], 0).state_dict())
    last, whole = leaves(0.2, 1.0, 3.0), some(made(name), draws, 0)
    assert weights(some(again, draws[5:], 5), last, epoch=3) == weights(whole, last, epoch=3) != [1, 1, 1]


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: DynamicAverage(tasks={}, temperature=0.0), "temperature=0"),
        (lambda: SmoothTchebycheff(tasks={}, mu=-1.0), "mu=-1"),
        (lambda: Famo(tasks={}, learning_rate=-1.0, decay=0.0), "learning_rate=-1"),
        (lambda: Famo(tasks={}, learning_rate=1.0, decay=float("nan")), "decay=nan"),
    ],
)
def test_a_setting_out_of_range_is_named(make: Any, key: str) -> None:
    with pytest.raises(UserError, match=rf"weighting\.{key}.*expected a number"):
        make()
