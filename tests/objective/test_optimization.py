import math
from typing import Any

import pytest
import torch
from torch import nn

from hatemtl.errors import UserError
from hatemtl.objective.optimization import Optimization

GIVEN: dict[str, Any] = {
    "encoder_lr": 1e-3,
    "head_lr": 1e-2,
    "weight_decay": 0.1,
    "heads_first": 0,
    "warmup": 0,
    "epochs": 4,
    "schedule": "linear",
    "clip": 1.0,
    "accumulate": 1,
    "patience": None,
}


def made(encoder: nn.Module, heads: nn.Module, total: int, **changed: Any) -> Any:
    """The optimizer of so many steps, as many an epoch, and its schedule."""
    some = Optimization(**(GIVEN | changed))
    ends = [total * (epoch + 1) / some.total_epochs for epoch in range(some.total_epochs)]
    return some.optimizer(some.plan(ends, 6), encoder.named_parameters(), heads.named_parameters())


def rates(total: int, **changed: Any) -> dict[str, list[float]]:
    """The learning rate of both sides at every optimizer step, as the optimizer itself has it, and the one after."""
    optimizer, schedule = made(nn.Linear(3, 3), nn.Linear(3, 3), total, **changed)
    seen: dict[str, list[float]] = {"encoder": [], "heads": []}
    for step in range(total + 1):
        for side in seen:
            of_side = {group["lr"] for group in optimizer.param_groups if group["name"] == side}
            assert len(of_side) == 1  # decayed or not, a side has one rate
            seen[side] += of_side
        if step < total:
            optimizer.step()
            schedule.step()
    return seen


def test_without_warm_up_both_sides_start_at_their_full_rate_and_fall_linearly_to_zero() -> None:
    seen = rates(10)
    assert seen["encoder"] == pytest.approx([1e-3 * (1 - step / 10) for step in range(11)])
    assert seen["heads"] == pytest.approx([1e-2 * (1 - step / 10) for step in range(11)])


def test_a_cosine_falls_from_the_full_rate_to_zero() -> None:
    seen = rates(8, schedule="cosine")["encoder"]
    assert seen == pytest.approx([1e-3 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(9)])
    assert seen[4] == pytest.approx(5e-4)
    assert seen[8] == pytest.approx(0)


def test_a_constant_rate_stays() -> None:
    assert rates(8, schedule="constant") == {"encoder": [1e-3] * 9, "heads": [1e-2] * 9}


def test_warm_up_raises_the_encoder_side_from_zero_while_heads_learn_at_full_rate() -> None:
    # 2 epochs of warm-up before 4 at full rate, 10 steps each
    seen = rates(60, warmup=2, schedule="constant")
    assert seen["encoder"][:20] == pytest.approx([1e-3 * step / 20 for step in range(20)])
    assert seen["encoder"][20:] == pytest.approx([1e-3] * 41)
    assert seen["heads"] == [1e-2] * 61


def test_the_heads_learn_alone_before_the_warm_up() -> None:
    # 1 epoch of the heads, 2 of warm-up, 3 at full rate, 10 steps each
    seen = rates(60, heads_first=1, warmup=2, epochs=3)
    assert seen["encoder"][:10] == [0.0] * 10
    assert seen["encoder"][10:30] == pytest.approx([1e-3 * step / 20 for step in range(20)])
    assert seen["encoder"][30:] == pytest.approx([1e-3 * (1 - step / 30) for step in range(31)])
    assert seen["heads"][:30] == pytest.approx([1e-2] * 30)
    assert seen["heads"][30:] == pytest.approx([1e-2 * (1 - step / 30) for step in range(31)])


def test_heads_that_learn_alone_to_the_end_fall_to_zero_too() -> None:
    seen = rates(20, heads_first=2, epochs=0)
    assert seen["encoder"] == [0.0] * 21
    assert seen["heads"] == pytest.approx([1e-2 * (1 - step / 20) for step in range(21)])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_after_the_warm_up_both_sides_fall_together_to_zero(schedule: str) -> None:
    seen = rates(60, warmup=2, schedule=schedule)
    assert seen["heads"][:21] == pytest.approx([1e-2] * 21)
    assert seen["encoder"][20:] == pytest.approx([rate / 10 for rate in seen["heads"][20:]])
    assert seen["heads"][20:] == pytest.approx(rates(40, schedule=schedule)["heads"])
    assert seen["encoder"][-1] == pytest.approx(0)


@pytest.mark.parametrize(
    ("warmup", "steps"),
    # 4 epochs of 10 steps; a whole epoch of warm-up comes on top, the rest of it is within them
    [(0.5, 5), (0.05, 0.5), (0.99, 9.9), (1.5, 15), (2.25, 22.5)],
)
def test_a_warm_up_may_be_a_fraction_of_an_epoch(warmup: float, steps: float) -> None:
    total = 10 * (4 + int(warmup))
    seen = rates(total, warmup=warmup, schedule="constant")["encoder"]
    assert seen == pytest.approx([1e-3 * min(step / steps, 1) for step in range(total + 1)])
    assert seen[0] == 0


@pytest.mark.parametrize(
    ("epochs", "warmup", "total"), [(4, 0, 4), (4, 0.9, 4), (4, 1, 5), (4, 1.9, 5), (4, 15, 19), (1, 0.5, 1)]
)
def test_whole_epochs_of_warm_up_come_before_those_at_full_rate(epochs: int, warmup: float, total: int) -> None:
    assert Optimization(**(GIVEN | {"epochs": epochs, "warmup": warmup})).total_epochs == total


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 0.3, 3])
@pytest.mark.parametrize("total", [1, 2, 5, 60])
def test_a_rate_is_never_negative_or_above_the_full_one_however_few_the_steps(
    schedule: str, warmup: float, total: int
) -> None:
    for side, full in (("encoder", 1e-3), ("heads", 1e-2)):
        seen = rates(total, warmup=warmup, schedule=schedule)[side]
        assert all(0 <= rate <= full for rate in seen)


def test_steps_beyond_the_last_do_not_raise_the_rate_again() -> None:
    for schedule in ("linear", "cosine"):
        some = Optimization(**(GIVEN | {"schedule": schedule})).plan([2.5, 5, 7.5, 10], 6)
        assert some.rate(15, "encoder") == some.rate(15, "heads") == pytest.approx(0)


def test_only_matrices_decay() -> None:
    encoder = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    head = nn.Linear(4, 2)
    optimizer, _ = made(encoder, head, 10)
    groups = {(group["name"], group["weight_decay"]): group for group in optimizer.param_groups}
    assert set(groups) == {("encoder", 0.1), ("encoder", 0.0), ("heads", 0.1), ("heads", 0.0)}
    assert groups["encoder", 0.1]["params"] == [encoder[0].weight, encoder[2].weight]
    assert groups["encoder", 0.0]["params"] == [encoder[1].weight, encoder[1].bias, encoder[2].bias]
    assert groups["heads", 0.1]["params"] == [head.weight]
    assert groups["heads", 0.0]["params"] == [head.bias]
    assert groups["encoder", 0.1]["lr"] == 1e-3
    assert groups["heads", 0.0]["lr"] == 1e-2


def test_decay_is_adamws() -> None:
    """Without a gradient to follow, a matrix shrinks by lr · weight_decay a step, and a vector stays."""
    head = nn.Linear(4, 2)
    before = {name: value.detach().clone() for name, value in head.named_parameters()}
    optimizer, _ = made(nn.Module(), head, 10)
    for value in head.parameters():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    torch.testing.assert_close(head.weight.detach(), before["weight"] * (1 - 1e-2 * 0.1))
    assert torch.equal(head.bias, before["bias"])


def test_frozen_weights_are_in_no_group() -> None:
    encoder, head = nn.Linear(4, 4), nn.Linear(4, 2)
    encoder.weight.requires_grad_(False)
    optimizer, _ = made(encoder, head, 10)
    mine = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(p) for p in mine} == {id(p) for p in (encoder.bias, head.weight, head.bias)}


def test_a_frozen_encoder_leaves_the_heads_alone_to_train() -> None:
    optimizer, schedule = made(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 2), 10, warmup=1)
    assert {group["name"] for group in optimizer.param_groups} == {"heads"}
    assert set(schedule.get_last_lr()) == {1e-2}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"encoder_lr": -1e-3}, r"encoder_lr=-0\.001.*0 or more"),
        ({"head_lr": -1}, "head_lr=-1"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1"),
        ({"warmup": -1}, "warmup=-1"),
        ({"encoder_lr": float("inf")}, "encoder_lr=inf .method.learning_rate, where.*expected a number"),
        ({"head_lr": float("nan")}, "head_lr=nan: expected a number"),
        ({"clip": float("nan")}, "clip=nan: expected a norm"),
        ({"epochs": -1}, "epochs=-1.*0 or more"),
        ({"heads_first": -1}, "heads_first=-1.*0 or more"),
        ({"accumulate": 0}, "accumulate=0.*1 or more"),
        ({"patience": 0}, "patience=0.*null"),
        ({"clip": 0}, "clip=0.*null"),
        ({"clip": -1}, "clip=-1.*null"),
    ],
)
def test_a_setting_out_of_range_is_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=rf"optimization\..*{says}"):
        Optimization(**(GIVEN | wrong))


def test_no_clipping_and_no_patience_are_allowed() -> None:
    Optimization(**(GIVEN | {"clip": None, "patience": None}))
