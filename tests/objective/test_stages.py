"""Stages: what learns at which step, and at which rate."""

from typing import Any

import pytest
from torch import nn

from hatemtl.batches.sampling import Sampling
from hatemtl.errors import UserError
from hatemtl.objective.optimization import Optimization
from hatemtl.objective.stages import EMBEDDINGS, Plan, Stage, layer_of

GIVEN: dict[str, Any] = {
    **{"encoder_lr": 1e-3, "head_lr": 1e-2, "weight_decay": 0.0, "heads_first": 0, "warmup": 0, "epochs": 2},
    **{"schedule": "linear", "clip": None, "accumulate": 1, "patience": 3},
}
DEPTH = 6
ALL = {EMBEDDINGS, 0, 1, 2, 3, 4, 5}


def some(*stages: Stage, **changed: Any) -> Optimization:
    return Optimization(**(GIVEN | {"stages": list(stages)} | changed))


def plan(*stages: Stage, ends: tuple[int, ...] = (10, 20, 30), **changed: Any) -> Plan:
    return some(*stages, **changed).plan(ends, DEPTH)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"heads_first": 1}, [Stage(learns="heads", epochs=1), Stage(epochs=2)]),
        ({"warmup": 1, "epochs": 2}, [Stage(epochs=3, warmup=1)]),
        ({"warmup": 0.5, "heads_first": 1}, [Stage(learns="heads", epochs=1), Stage(epochs=2, warmup=0.5)]),
        ({"warmup": 1, "heads_first": 1, "epochs": 1}, [Stage(learns=["heads"], epochs=1), Stage(epochs=2, warmup=1)]),
        ({"heads_first": 3, "epochs": 0}, [Stage(learns="heads", epochs=3)]),
    ],
)
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_heads_first_and_warm_up_are_cases_of_stages(old: dict[str, Any], new: list[Stage], schedule: str) -> None:
    before, after = Optimization(**(GIVEN | old | {"schedule": schedule})), some(*new, schedule=schedule)
    assert before.total_epochs == after.total_epochs == 3
    ends = (7, 15, 22)
    for step in range(25):
        a, b = before.plan(ends, DEPTH), after.plan(ends, DEPTH)
        assert a.learns(step) == b.learns(step)
        assert [a.rate(step, side) for side in ("encoder", "heads")] == [b.rate(step, side) for side in ("encoder", "heads")]


def test_what_learns_when() -> None:
    course = plan(
        Stage(learns="heads", steps=4),
        Stage(learns="encoder", epochs=0.5),
        Stage(learns=["heads", "layers 4-"], epochs=1),
        Stage(learns=["layers 1-2", "layer 5", "embeddings"], epochs=0.5),
        Stage(epochs=1),
    )
    seen = [course.learns(step) for step in range(30)]
    assert seen[:4] == [(True, set())] * 4
    assert seen[4:5] == [(False, ALL)]  # of half an epoch of ten steps, four were taken
    assert seen[5:15] == [(True, {4, 5})] * 10
    assert seen[15:20] == [(False, {1, 2, 5, EMBEDDINGS})] * 5
    assert seen[20:] == [(True, ALL)] * 10
    assert [course.at(step) for step in (0, 3, 4, 5, 14, 15, 20, 29, 99)] == [0, 0, 1, 2, 2, 3, 4, 4, 4]


def test_half_an_epoch_is_half_of_its_own_steps() -> None:
    """Under a token budget an epoch has its own number of steps."""
    course = plan(Stage(learns="heads", epochs=1.5), Stage(epochs=1.5), ends=(10, 30, 35))
    assert [course.at(step) for step in (19, 20)] == [0, 1]
    assert course.stretches[1].end == 35


def test_layers_thaw_from_the_top_down() -> None:
    course = plan(Stage(epochs=3, unfreeze=0.5))
    assert [course.learns(step)[1] for step in (0, 4, 5, 10, 25, 29)] == [
        {5},
        {5},
        {4, 5},
        {3, 4, 5},
        {0, 1, 2, 3, 4, 5},
        ALL - {-1},
    ]
    assert course.rate(4, "encoder", 4) == 0 < course.rate(5, "encoder", 4) == course.rate(5, "encoder", 5)
    whole = Optimization(**(GIVEN | {"epochs": 3, "unfreeze": 0.5})).plan((10, 20, 30), DEPTH)
    assert all(whole.learns(step) == course.learns(step) for step in range(30))


def test_rates_fall_by_layer() -> None:
    course = plan(Stage(epochs=3), layer_decay=0.5, schedule="constant")
    rates = [course.rate(0, "encoder", layer) for layer in (5, 4, 0, EMBEDDINGS)]
    assert rates == [1e-3, 0.5e-3, 0.5**5 * 1e-3, 0.5**6 * 1e-3]
    assert course.rate(0, "heads") == 1e-2


def test_a_stage_has_its_own_rates_and_schedule() -> None:
    course = plan(
        Stage(epochs=1, encoder_lr=0.5, head_lr=0.25, schedule="linear"), Stage(epochs=1), Stage(epochs=1, warmup=0.5)
    )
    assert [course.rate(step, "encoder") for step in (0, 5)] == [0.5, 0.25]
    assert [course.rate(step, "heads") for step in (0, 5)] == [0.25, 0.125]
    assert [course.rate(step, "encoder") for step in (10, 19)] == [1e-3, 1e-3]  # only the last falls by itself
    assert [course.rate(step, "encoder") for step in (20, 22, 25, 30)] == pytest.approx([0, 0.4e-3, 1e-3, 0])
    assert [course.rate(step, "heads") for step in (20, 25, 30)] == pytest.approx([1e-2, 1e-2, 0])
    assert course.rate(25, "weighting") == 1e-2


def test_one_optimizer_holds_the_groups_of_all_stages() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings, self.layer = nn.Embedding(3, 2), nn.ModuleList(nn.Linear(2, 2) for _ in range(2))

    course = some(Stage(learns="heads", epochs=1), Stage(learns=["heads", "layer 1"], epochs=1), Stage(epochs=1))
    encoder = Layers()
    optimizer, schedule = course.optimizer(
        course.plan((1, 2, 3), 2), encoder.named_parameters(), nn.Linear(2, 2).named_parameters()
    )
    seen: dict[str, list[float]] = {}
    for _ in range(3):
        for group in optimizer.param_groups:
            seen.setdefault(group["name"], []).append(group["lr"])
        optimizer.step()
        schedule.step()
    weights = {name: rates[::2] if len(rates) == 6 else rates for name, rates in seen.items()}
    assert weights["encoder_embeddings"] == weights["encoder_0"] == [0, 0, 1e-3]
    assert weights["encoder_1"] == [0, 1e-3, 1e-3]
    assert weights["heads"] == [1e-2] * 3


def test_samplings_by_the_epoch_that_they_begin_in() -> None:
    equal, square = Sampling(temperature=float("inf")), Sampling(temperature=2)
    assert some(Stage(epochs=1), Stage(epochs=2)).samplings() == {}
    assert some(Stage(epochs=1), Stage(epochs=2, sampling=equal)).samplings() == {1: equal, 3: None}
    course = some(Stage(epochs=1, sampling=equal), Stage(epochs=1, sampling=square), Stage(epochs=0.5), Stage(epochs=0.5))
    assert course.samplings() == {0: equal, 1: square, 2: None}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.layer.3.attention.self.query.loras.x.lora_A", 3),
        ("layers.0.attn.Wo.weight", 0),
        ("transformer.layer.11.ffn.lin1.weight", 5),  # deeper than said: the top one
        ("embeddings.word_embeddings.weight", EMBEDDINGS),
        ("final_norm.weight", 5),
    ],
)
def test_the_layer_of_a_parameter(name: str, layer: int) -> None:
    assert layer_of(name, DEPTH) == layer


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Stage(learns="heds"), "learns=heds: .*did you mean 'heads'"),
        (lambda: Stage(learns=[]), r"learns=\[\]: a stage in which nothing learns"),
        (lambda: Stage(learns="layers 5-2"), "type 'layers 2-5'"),
        (lambda: Stage(epochs=1, steps=2), "both say how long"),
        (lambda: Stage(epochs=0), "epochs=0: expected a number above 0"),
        (lambda: Stage(encoder_lr=-1), "encoder_lr=-1"),
        (lambda: Stage(epochs=1, warmup=2), "warmup=2: longer than the 1 epochs"),
        (lambda: some(), r"stages=\[\]: expected at least one"),
        (lambda: some(Stage(steps=3)), "the last has 3 steps"),
        (lambda: some(Stage(epochs=0.5)), "they last 0.5 epochs.*make it 1"),
        (lambda: some(Stage(), heads_first=1), "heads_first=1 and optimization.stages both.*learns: heads, epochs: 1"),
        (lambda: some(Stage(), warmup=1), "warmup=1 and optimization.stages both"),
        (lambda: some(Stage(epochs=0.5), Stage(epochs=0.5, sampling=Sampling())), r"stages\[1\].sampling: .*whole epochs"),
        (lambda: some(Stage(steps=5), Stage(epochs=1, sampling=Sampling())), r"stages\[1\].sampling: .*whole epochs"),
        (lambda: some(Stage(), layer_decay=0), "layer_decay=0: expected above 0"),
        (lambda: some(Stage(), evaluate_every=0), "evaluate_every=0: expected at least 1 step"),
        (lambda: plan(Stage(learns="layers 6-"), ends=(9, 18)), r"stages\[0\]: learns=layers 6-: .*layers 0 to 5"),
        (lambda: plan(Stage(steps=18), Stage(epochs=2), ends=(9, 18)), r"stages\[1\] \(everything\) has no step"),
        (lambda: plan(Stage(learns="heads", epochs=0.9), Stage(epochs=0.1), ends=(4,)), r"stages\[1\] .* has no step"),
        (lambda: plan(Stage(epochs=0.1), Stage(epochs=0.1), Stage(epochs=0.8), ends=(4,)), r"stages\[1\] .* has no step"),
        (lambda: plan(Stage(learns="embeddings"), ends=(9, 18)).check([4, 5]), "nothing learns, .*trains layer 4, layer 5;"),
        (lambda: plan(Stage(learns="encoder"), ends=(9, 18)).check([]), "nothing learns, .*trains nothing;"),
    ],
)
def test_what_cannot_be_is_named(make: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()
