"""What every merge in conf/merge promises, so that one added later is tested by being there."""

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import DTYPES, IN, OUT, apart, update, whole
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hatemtl.merging.base import Merge, NeedsStatistics, Update, merge_factors
from hatemtl.merging.lora import LoRAUpdate

FILES = sorted((Path(__file__).parents[2] / "conf" / "merge").glob("*.yaml"))

# What one source gives where it is not that source: a factor of it, or None where it is no multiple.
ALONE: dict[str, tuple[float | None, str]] = {
    "task_arithmetic": (0.4, "λ = 0.4: it is a scaled sum, not a mean"),
    "iso_c": (None, "the spectrum is made flat: same directions, same sum of singular values"),
    "iso_cts": (None, "the spectrum is made flat: same directions, same sum of singular values"),
}
# What needs LoRAs of one rank and scale, or factors at all.
ONE_SHAPE = {"linear": "it averages the A's and the B's"}
FACTORS = {"linear": "it averages the A's and the B's", "lego": "it takes LoRAs apart"}


def built(path: Path) -> Any:
    return instantiate(OmegaConf.load(path), _convert_="all")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def merge(request: pytest.FixtureRequest) -> Merge:
    made = built(request.param)
    if isinstance(made, NeedsStatistics):
        pytest.skip("it needs statistics of the sources' posts")
    return made


@pytest.fixture
def name(request: pytest.FixtureRequest, merge: Merge) -> str:
    return str(request.node.callspec.params["merge"].stem)


def alike(n: int = 3, dtype: torch.dtype = torch.float32) -> list[Update]:
    """LoRAs of one rank and scale."""
    return [update(4, 2.0, seed=i, dtype=dtype) for i in range(n)]


def unlike() -> list[Update]:
    """LoRAs that differ in rank, scale, its sign and number format; one does not adapt the layer."""
    some = [update(2 + i, (2.0, -0.5, 1.0)[i], seed=i, dtype=DTYPES[i]) for i in range(3)]
    return [*some, some[0].nothing()]


def sources_for(name: str) -> list[Update]:
    return alike() if name in ONE_SHAPE else unlike()


def numbers(updates: list[Update]) -> list[torch.Tensor]:
    """Copies of all that updates hold."""
    return [part.clone() for u in updates for part in ((u.A, u.B) if isinstance(u, LoRAUpdate) else (u,))]


def proper(merged: Update, shape: tuple[int, ...]) -> torch.Tensor:
    """The merge as a matrix, once it is sound: its shape, a number format of 32 bits or more, no NaN."""
    assert tuple(merged.shape) == shape
    for part in numbers([merged]):
        assert part.dtype in (torch.float32, torch.float64)
        assert torch.isfinite(part).all()
    return whole(merged)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("scale", [2.0, -0.5])
def test_one_source_comes_back(merge: Merge, name: str, rank: int, scale: float) -> None:
    only = update(rank, scale)
    merged = proper(merge([only], layer="layer"), only.shape)
    factor, _ = ALONE.get(name, (1.0, ""))
    if factor is not None:
        assert apart(merged, factor * only.dense()) < 1e-6
    else:
        assert apart(merged / merged.norm(), only.dense() / only.dense().norm()) < 1


def test_exceptions_are_of_merges_that_are_there() -> None:
    assert {*ALONE, *ONE_SHAPE, *FACTORS} <= {path.stem for path in FILES}


def test_the_order_of_the_sources_does_not_matter(merge: Merge, name: str) -> None:
    sources = sources_for(name)
    first = whole(merge(sources, layer="layer"))
    for order in permutations(sources):
        assert apart(whole(merge(list(order), layer="layer")), first) < 1e-5


def test_a_merge_is_sound_and_the_same_each_time_and_touches_neither_sources_nor_chance(merge: Merge, name: str) -> None:
    sources = sources_for(name)
    before, chance = numbers(sources), torch.get_rng_state()
    first = merge(sources, layer="layer")
    proper(first, (OUT, IN))
    torch.rand(3)
    again = merge(sources, layer="layer")
    for a, b in zip(numbers([first]), numbers([again]), strict=True):
        assert torch.equal(a, b)
    torch.set_rng_state(chance)
    merge(sources, layer="layer")
    assert torch.equal(torch.get_rng_state(), chance)
    for a, b in zip(numbers(sources), before, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_format_is_merged(merge: Merge, dtype: torch.dtype) -> None:
    given = alike(dtype=dtype)
    exact = [LoRAUpdate(u.A.double(), u.B.double(), u.scale) for u in given if isinstance(u, LoRAUpdate)]
    merged = whole(merge(given, layer="layer"))
    assert merged.norm() > 0
    if not hasattr(merge, "seed"):  # lots belong to the numbers as they are written
        assert apart(merged, whole(merge(exact, layer="layer"))) < (1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_sources_that_learned_nothing_give_nothing(merge: Merge, count: int) -> None:
    fresh: list[Update] = [LoRAUpdate(update(4, seed=i).A, torch.zeros(OUT, 4), 2.0) for i in range(count)]
    assert proper(merge(fresh, layer="layer"), (OUT, IN)).abs().max() < 1e-12


def test_a_source_that_does_not_adapt_the_layer_counts_as_zero(merge: Merge, name: str) -> None:
    if name in ONE_SHAPE:
        pytest.skip(ONE_SHAPE[name])
    some = update(4, 2.0)
    absent = proper(merge([some, some.nothing()], layer="layer"), some.shape)
    if not hasattr(merge, "seed"):
        zero = LoRAUpdate(some.A, torch.zeros_like(some.B), 2.0)
        assert apart(proper(merge([some, zero], layer="layer"), some.shape), absent) < 1e-5
    assert proper(merge([some.nothing(), some.nothing()], layer="layer"), some.shape).abs().max() == 0


def test_the_merge_is_cut_to_any_rank(merge: Merge) -> None:
    for rank in (None, 1, 4, 500):
        merged = merge_factors(merge, [{"layer": u} for u in alike() if isinstance(u, LoRAUpdate)], rank)
        proper(merged.updates["layer"], (OUT, IN))
        assert merged.updates["layer"].rank <= min(rank or 500, max(OUT, IN))
        assert 0 <= merged.lost["layer"] < 1


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda i: update(4, 2.0, seed=i).dense().float(), id="matrices"),
        pytest.param(lambda i: torch.randn(7, 5, generator=torch.Generator().manual_seed(i)), id="of full rank"),
        pytest.param(lambda i: torch.randn(6, generator=torch.Generator().manual_seed(i)), id="vectors"),
        pytest.param(lambda i: torch.tensor(float(i)), id="numbers"),
        pytest.param(lambda i: torch.zeros(4, 3), id="zeros"),
    ],
)
def test_full_updates_of_any_shape_are_merged(merge: Merge, name: str, draw: Callable[[int], torch.Tensor]) -> None:
    if name in FACTORS:
        pytest.skip(FACTORS[name])
    sources: list[Update] = [draw(i) for i in range(1, 4)]
    first = proper(merge(sources, layer="layer"), tuple(draw(1).shape))
    torch.testing.assert_close(whole(merge(sources[::-1], layer="layer")), first, rtol=1e-6, atol=1e-9)
    factor, _ = ALONE.get(name, (1.0, ""))
    if factor is not None:
        alone = whole(merge(sources[:1], layer="layer"))
        assert float((alone - factor * draw(1)).norm()) <= 1e-6 * float(draw(1).norm())
