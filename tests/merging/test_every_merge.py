"""What every merge in conf/merge promises, so that one added later is tested by being there."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations, product
from math import prod
from pathlib import Path
from typing import Any, get_args
from zlib import crc32

import pytest
import torch
from drawn import DTYPES, IN, LAYERS, OUT, apart, merge_dense, merge_factors, source, unlike, update, whole
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hatemtl.merging.base import Merge, Update, dense
from hatemtl.merging.informed import gram
from hatemtl.merging.lora import LoRAUpdate, Updates
from hatemtl.merging.trimmed import Election, agreeing_mean

FILES = sorted((Path(__file__).parents[2] / "conf" / "merge").glob("*.yaml"))

# What one source gives where it is not that source: a factor of it, or None where it is no multiple.
ALONE: dict[str, tuple[float | None, str]] = {
    "task_arithmetic": (0.4, "λ = 0.4: it is a scaled sum, not a mean"),
    "iso_c": (None, "the spectrum is made flat: same directions, same sum of singular values"),
    "iso_cts": (None, "the spectrum is made flat: same directions, same sum of singular values"),
}
# Whose weights are searched for on posts: no formula of the sources.
SEARCHED = ("learned",)
# What needs LoRAs of one rank and scale, or factors at all.
ONE_SHAPE = {"linear": "it averages the A's and the B's"}
FACTORS = {"lego": "it takes LoRAs apart"}


def built(path: Path) -> Any:
    return instantiate(OmegaConf.load(path), _convert_="all")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def merge(request: pytest.FixtureRequest) -> Merge:
    made = built(request.param)
    if made.needs:
        pytest.skip("it needs statistics of the sources' posts")
    return made


@pytest.fixture
def name(request: pytest.FixtureRequest, merge: Merge) -> str:
    return str(request.node.callspec.params["merge"].stem)


def alike(n: int = 3, dtype: torch.dtype = torch.float32) -> list[Update]:
    """LoRAs of one rank and scale."""
    return [update(4, 2.0, seed=i, dtype=dtype) for i in range(n)]


def mixed() -> list[Update]:
    """LoRAs that differ in rank, scale, its sign and number format; one does not adapt the layer."""
    some = [update(2 + i, (2.0, -0.5, 1.0)[i], seed=i, dtype=DTYPES[i]) for i in range(3)]
    return [*some, some[0].nothing()]


def sources_for(name: str) -> list[Update]:
    return alike() if name in ONE_SHAPE else mixed()


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


CLOSED = pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem not in SEARCHED], ids=lambda path: str(path.stem)
)


def several(name: str, seed: int) -> list[dict[str, LoRAUpdate]]:
    """One to five LoRAs of random ranks, scales of either sign, number formats and layers, or of one where they must."""
    sources = unlike(seed)
    if name not in ONE_SHAPE:
        return sources
    some = next(iter(sources[0].values()))
    return [
        source(100 * seed + i, rank=some.rank, scale=some.scale, layers=list(sources[0]), dtype=some.A.dtype)
        for i in range(len(sources))
    ]


def told(merge: Any, sources: Sequence[Updates]) -> Merge:
    """The merge with the statistics that it needs of the sources; a source's are the same at any place among them."""
    if merge.needs is None:
        return merge

    def statistic(some: Updates, layer: str) -> torch.Tensor:
        content = b"".join(part.double().numpy().tobytes() for u in some.values() for part in (u.A, u.B))
        draw = torch.Generator().manual_seed(crc32(content + layer.encode()))
        return gram(torch.randn(30, IN, generator=draw)) if merge.needs == "gram" else torch.rand(OUT, IN, generator=draw)

    return replace(merge, statistics=[{layer: statistic(some, layer) for layer in LAYERS} for some in sources])


def isotropic(update: LoRAUpdate) -> torch.Tensor:
    """The update with all its singular values at their mean."""
    U, S, Vh = torch.linalg.svd(update.dense(), full_matrices=False)
    return S[: update.rank].mean() * U[:, : update.rank] @ Vh[: update.rank]


@CLOSED
def test_one_source_comes_back(path: Path) -> None:
    """Of any rank, scale, number format and layers; whole, as factors, and cut to the rank that it has."""
    for seed in range(10):
        only = several(path.stem, seed)[0]
        merge = told(built(path), [only])
        rank = max(u.rank for u in only.values())
        weights, factors, cut = (
            merge_dense(merge, [only]),
            merge_factors(merge, [only], None),
            merge_factors(merge, [only], rank),
        )
        assert weights.keys() == factors.updates.keys() == cut.updates.keys() == only.keys()
        factor, _ = ALONE.get(path.stem, (1.0, ""))
        for layer, some in only.items():
            expected = isotropic(some) if factor is None else factor * some.dense()
            assert apart(proper(weights[layer], some.shape), expected) < 1e-6
            assert apart(factors.updates[layer].dense(), expected) < 1e-6
            assert apart(cut.updates[layer].dense(), expected) < 1e-6
            assert cut.lost[layer] < 1e-10


def test_exceptions_are_of_merges_that_are_there() -> None:
    assert {*ALONE, *ONE_SHAPE, *FACTORS, *SEARCHED} <= {path.stem for path in FILES}


@CLOSED
def test_the_order_of_the_sources_does_not_matter(path: Path) -> None:
    for seed in [0, 2, 3, 5, 8, 10, 11, 12, 15, 21]:  # of two to five sources
        sources, merge = several(path.stem, seed), built(path)
        first = merge_dense(told(merge, sources), sources)
        for order in (sources[::-1], sources[1:] + sources[:1], sources[2:] + sources[:2]):
            again = merge_dense(told(merge, order), order)
            assert len(order) > 1
            assert again.keys() == first.keys()
            for layer, expected in first.items():
                assert apart(again[layer], expected) < 1e-5


def test_the_order_of_many_sources_of_one_layer_does_not_matter(merge: Merge, name: str) -> None:
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


BY_LOT = pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem in ("dare_linear", "dare_ties", "della")], ids=lambda path: str(path.stem)
)
TIMES = 3000


def often(one: LoRAUpdate) -> LoRAUpdate:
    """The rows of an update so many times below each other: each time lots are drawn anew."""
    return LoRAUpdate(one.A, one.B.repeat(TIMES, 1), one.scale)


def check_expectation(merged: Update, expected: torch.Tensor) -> None:
    """Whether the entries average to what is expected, within what their standard errors allow."""
    draws = whole(merged).view(TIMES, *expected.shape)
    z = (draws.mean(0) - expected) / (draws.std(0) / TIMES**0.5)
    assert draws.std(0).min() > 0
    assert z.abs().max() < 4.5
    assert 0.5 < z.square().mean() < 1.8


@BY_LOT
@pytest.mark.parametrize("full", [False, True], ids=["factors", "matrices"])
@pytest.mark.parametrize("seed", range(4))
def test_the_mean_of_what_lots_leave_is_unbiased(path: Path, full: bool, seed: int) -> None:
    """Of any ranks, scales of either sign, number formats and densities."""
    draw = torch.Generator().manual_seed(seed)
    ranks, scales = torch.randint(1, 7, (2 + seed % 3,), generator=draw), 2 * torch.randn(5, generator=draw)
    some = [
        update(int(r), float(s), seed=10 * seed + i, out=3, dtype=DTYPES[(seed + i) % len(DTYPES)])
        for i, (r, s) in enumerate(zip(ranks, scales, strict=False))
    ]
    sources: list[Update] = [often(one).dense().to(one.A.dtype) if full else often(one) for one in some]
    true = torch.stack([whole(one)[:3].double() for one in sources]).mean(0)
    scale = (1.0, -1.5)[seed % 2]
    merge = replace(built(path), elect=None, density=(0.2, 0.4, 0.6, 0.8)[seed], scale=scale)
    check_expectation(merge(sources, layer="layer"), scale * true)


@BY_LOT
@pytest.mark.parametrize("elect", get_args(Election))
def test_elected_signs_leave_an_entry_unbiased_that_one_source_alone_has(path: Path, elect: Election) -> None:
    sources = [torch.zeros(3, IN) for _ in range(3)]
    for i, one in enumerate(sources):
        one[:, i::3] = torch.randn(one[:, i::3].shape, generator=torch.Generator().manual_seed(i))
    merge = replace(built(path), elect=elect, density=0.4)
    check_expectation(merge([one.repeat(TIMES, 1) for one in sources], layer="layer"), torch.stack(sources).sum(0).double())


@BY_LOT
@pytest.mark.parametrize("elect", get_args(Election))
def test_elected_signs_make_an_entry_that_sources_share_too_great_as_is_said(path: Path, elect: Election) -> None:
    """The expectation is exact: over all that three sources may keep. Of one sign it is (1 - (1 - p)³) / p of their mean."""
    merge, p = replace(built(path), elect=elect, density=0.4), 0.4
    if hasattr(merge, "epsilon"):
        merge = replace(merge, epsilon=0)
    some = [update(2 + i, (1.0, -2.0, 0.5)[i], seed=i, out=3) for i in range(3)]
    stack = dense(some)
    expected = torch.zeros_like(stack[0])
    for kept in product((0, 1), repeat=3):
        chance = prod(p if one else 1 - p for one in kept)
        expected += chance * agreeing_mean(stack * torch.tensor(kept)[:, None, None] / p, elect)
    check_expectation(merge([often(one) for one in some], layer="layer"), expected)
    agreed = stack.sign().sum(0).abs() == 3
    assert agreed.any()
    torch.testing.assert_close(expected[agreed], (1 - (1 - p) ** 3) / p * stack.mean(0)[agreed])
