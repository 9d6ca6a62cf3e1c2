from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest
import torch
from drawn import LAYERS, apart, mean, merge_factors, source, update, whole

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.merging.mean import Linear, Mean, TaskArithmetic

MEAN = Mean(weights=None)
UNLIKE = [source(0, rank=4, scale=2.0), source(1, rank=1, scale=-0.5), source(2, rank=6, scale=1.0)]


@pytest.mark.parametrize("rank", [None, 4, 16])
@pytest.mark.parametrize("merge", [MEAN, Mean(weights=[3.0]), Linear(), TaskArithmetic(scale=1.0, weights=None)])
def test_the_merge_of_one_source_is_that_source(merge: Merge, rank: int | None) -> None:
    only = source(0)
    merged = merge_factors(merge, [only], rank)
    assert set(merged.lost.values()) == {0.0}
    for layer in LAYERS:
        assert apart(merged.updates[layer].dense(), only[layer].dense()) < 1e-6


@pytest.mark.parametrize("merge", [MEAN, Linear()])
def test_the_mean_of_equals_is_each_of_them_at_the_rank_of_one(merge: Merge) -> None:
    only = source(0)
    merged = merge_factors(merge, [only, only, only], 4)
    for layer in LAYERS:
        assert apart(merged.updates[layer].dense(), only[layer].dense()) < 1e-6
        assert merged.lost[layer] < 1e-10


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("merge", [MEAN, Linear(), TaskArithmetic(scale=0.4, weights=None)])
def test_the_order_of_the_sources_does_not_matter(merge: Merge, rank: int | None) -> None:
    sources = [source(seed) for seed in range(3)]
    first = merge_factors(merge, sources, rank)
    for order in permutations(sources):
        other = merge_factors(merge, order, rank)
        for layer in LAYERS:
            assert apart(other.updates[layer].dense(), first.updates[layer].dense()) < 1e-5
            assert other.lost[layer] == pytest.approx(first.lost[layer], abs=1e-6)


def weighted(weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """Σ wᵢ·ΔWᵢ of UNLIKE, over dense matrices."""
    return {
        layer: torch.stack([w * s[layer].dense() for w, s in zip(weights, UNLIKE, strict=True)]).sum(0) for layer in LAYERS
    }


def test_weights_are_relative_and_go_by_the_sources_order() -> None:
    expected = weighted([0.25, 0.0, 0.75])
    for weights in ([1, 0, 3], [0.1, 0.0, 0.3]):
        merged = merge_factors(Mean(weights=weights), UNLIKE, None).updates
        for layer in LAYERS:
            assert apart(merged[layer].dense(), expected[layer]) < 1e-6


@pytest.mark.parametrize("seed", range(10))
def test_task_arithmetic_is_the_scaled_sum(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scale, *weights = torch.randn(4, generator=draw).tolist()  # of either sign
    merged = merge_factors(TaskArithmetic(scale=scale, weights=weights), UNLIKE, None).updates
    expected = weighted([scale * w for w in weights])
    for layer in LAYERS:
        assert apart(merged[layer].dense(), expected[layer]) < 1e-6


def test_task_arithmetic_of_one_over_n_is_the_mean_and_a_source_less_itself_is_nothing() -> None:
    third = merge_factors(TaskArithmetic(scale=1 / 3, weights=None), UNLIKE, None).updates
    for layer, expected in mean(UNLIKE).items():
        assert apart(third[layer].dense(), expected) < 1e-6
    gone = TaskArithmetic(scale=0.4, weights=[1, -1])([update(3), update(3)], layer="")
    assert isinstance(gone, LoRAUpdate)
    assert gone.dense().abs().max() < 1e-12


@pytest.mark.parametrize("merge", [Mean(weights=[1, 2]), TaskArithmetic(scale=1, weights=[1, 2])])
def test_one_weight_a_source(merge: Merge) -> None:
    with pytest.raises(UserError, match=r"merge.weights holds 2 numbers for 3 sources"):
        merge_factors(merge, UNLIKE, None)


@pytest.mark.parametrize("weights", [[-1, 2], [0, 0], [], [float("nan")], [float("inf")]])
def test_weights_that_are_no_mean_are_refused(weights: Any) -> None:
    with pytest.raises(UserError, match=r"^merge\.weights=.*numbers from 0.*type merge\.weights=\[1,2\]"):
        Mean(weights=weights)


@pytest.mark.parametrize("weights", [[], [float("nan"), 1], [float("inf"), 1]])
def test_a_sum_takes_any_weights_that_are_numbers(weights: Any) -> None:
    with pytest.raises(UserError, match=r"^merge\.weights=.*: expected numbers, one a source, not all 0"):
        TaskArithmetic(scale=1, weights=weights)
    TaskArithmetic(scale=1, weights=[-1, 0.5])


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_is_a_number(scale: float) -> None:
    with pytest.raises(UserError, match=rf"^merge\.scale={scale}:.*type merge\.scale=1$"):
        TaskArithmetic(scale=scale, weights=None)


def test_factor_averaging_is_far_from_the_mean_of_sources_that_started_apart() -> None:
    sources = [source(seed) for seed in range(4)]
    merged = merge_factors(Linear(), sources, None).updates
    for layer, expected in mean(sources).items():
        assert apart(merged[layer].dense(), expected) > 0.5


@pytest.mark.parametrize(("drift", "distance"), [(0.0, 1e-6), (0.05, 0.1)])
def test_factor_averaging_is_near_the_mean_of_sources_that_share_their_start(drift: float, distance: float) -> None:
    start = source(0)
    sources = [
        {layer: LoRAUpdate(start[layer].A + drift * moved.A, moved.B, moved.scale) for layer, moved in source(seed).items()}
        for seed in range(1, 5)
    ]
    merged = merge_factors(Linear(), sources, None).updates
    for layer, expected in mean(sources).items():
        assert apart(merged[layer].dense(), expected) < distance


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (source(1, rank=5), r"one rank.*merge=mean"),
        (source(1, layers=LAYERS[:2]), r"same layers.*merge=mean"),
        (source(1, scale=1.0), r"one scale.*merge=mean"),
    ],
)
def test_factor_averaging_refuses_what_it_cannot_average(other: dict[str, LoRAUpdate], says: str) -> None:
    with pytest.raises(UserError, match=says):
        merge_factors(Linear(), [source(0), other], None)


def test_what_has_no_factors_is_averaged_whole() -> None:
    biases = [torch.arange(4.0), torch.ones(4), torch.zeros(4)]
    torch.testing.assert_close(whole(Linear()(biases, layer="")), torch.stack(biases).double().mean(0))
