from itertools import permutations

import numpy as np
import pytest
import torch
from drawn import IN, LAYERS, OUT, apart, unlike, update, whole
from sklearn.cluster import KMeans

from hatemtl.merging.lego import LEGO, kmeans, units
from hatemtl.merging.lora import LoRAUpdate


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inertia(points: torch.Tensor, cluster: torch.Tensor) -> float:
    """Σ ‖x − its centroid‖²."""
    return sum(float((own - own.mean(0)).square().sum()) for own in (points[cluster == c] for c in cluster.unique()))


@pytest.mark.parametrize("scale", [1.0, 0.25, -3.0])
def test_the_units_make_up_the_update(scale: float) -> None:
    some = update(5, scale)
    pool = units(some)
    assert pool.shape == (5, IN + OUT)
    torch.testing.assert_close(pool[:, IN:].T @ pool[:, :IN], some.dense())


def test_the_clusters_are_as_tight_as_those_of_scikit_learn() -> None:
    """Where nothing is to be found each search ends in another local optimum: none must be much worse, nor all by and by."""
    ratios = []
    for seed in range(20):
        points = drawn(40, 6, seed=seed)
        mine = inertia(points, kmeans(points, 5, torch.Generator().manual_seed(seed)))
        ratios.append(mine / KMeans(5, n_init=8, random_state=seed).fit(points.numpy()).inertia_)
    assert max(ratios) < 1.1
    assert sum(ratios) / 20 < 1.03


@pytest.mark.parametrize("size", [1, 1e-3])
@pytest.mark.parametrize("seed", range(5))
def test_clusters_that_are_plain_to_see_are_found(seed: int, size: float) -> None:
    centres = 10 * drawn(6, 9, seed=seed)
    truth = torch.arange(30) % 6
    points = size * (centres[truth] + 0.01 * drawn(30, 9, seed=seed + 100))
    found = kmeans(points, 6, torch.Generator().manual_seed(seed))
    pairs = {(int(a), int(b)) for a, b in zip(truth, found, strict=True)}
    assert len(pairs) == len(found.unique()) == 6


def test_fewer_places_than_clusters_leave_clusters_empty() -> None:
    points = drawn(2, 4).repeat(3, 1)
    found = kmeans(points, 4, torch.Generator().manual_seed(0))
    assert inertia(points, found) < 1e-20


@pytest.mark.parametrize("seed", range(10))
def test_one_source_gives_that_source_layer_by_layer(seed: int) -> None:
    for layer, some in unlike(seed)[0].items():
        assert apart(whole(LEGO(units=None, seed=0)([some], layer=layer)), some.dense()) < 1e-12


def test_equal_units_of_one_source_are_kept_apart() -> None:
    one = update(1, 2.0)
    twice = LoRAUpdate(one.A.repeat(2, 1), one.B.repeat(1, 2), 2.0)
    assert apart(whole(LEGO(units=None, seed=0)([twice], layer="x")), twice.dense()) < 1e-12


def test_a_source_that_does_not_adapt_the_layer_has_no_say() -> None:
    some = update(3, 2.0)
    assert apart(whole(LEGO(units=None, seed=0)([some, some.nothing()], layer="x")), some.dense()) < 1e-12


def test_sources_that_started_alike_give_the_mean_of_like_units() -> None:
    """Stretched to the mean length of the units, as the paper has it."""
    start = update(4, 2.0)
    sources = [
        LoRAUpdate(start.A + 0.02 * moved.A, start.B + 0.02 * moved.B, 2.0)
        for moved in (update(4, seed=s) for s in (1, 2, 3))
    ]
    pool = torch.stack([units(one) for one in sources])  # (sources, unit, in + out)
    mean = pool.mean(0)
    mean = mean * (pool.norm(dim=2).mean(0) / mean.norm(dim=1))[:, None]
    expected = mean[:, IN:].T @ mean[:, :IN]
    assert apart(whole(LEGO(units=None, seed=0)(sources, layer="x")), expected) < 1e-9


@pytest.mark.parametrize("k", [1, 2, 4, 6, 30])
def test_the_result_has_k_units_scaled_for_their_number(k: int) -> None:
    sources = [update(3, 2.0, seed) for seed in range(3)]
    merged = LEGO(units=k, seed=0)(sources, layer="x")
    assert isinstance(merged, LoRAUpdate)
    assert merged.rank == min(k, 9)
    assert merged.scale == pytest.approx((3 / min(k, 9)) ** 0.5)


def test_with_a_unit_for_each_nothing_is_merged() -> None:
    sources = [update(3, 2.0, seed) for seed in range(3)]
    total = torch.stack([one.dense() for one in sources]).sum(0)
    assert apart(whole(LEGO(units=9, seed=0)(sources, layer="x")), total * (3 / 9) ** 0.5) < 1e-12


@pytest.mark.parametrize("but_for", [0, 1e-9])
def test_units_that_cancel_leave_nothing_behind(but_for: float) -> None:
    """And no rounding that is stretched to full length. The two are the same update: only their units are opposite."""
    some = update(1)
    opposite = LoRAUpdate((but_for - 1) * some.A.double(), (but_for - 1) * some.B.double())
    merged = whole(LEGO(units=1, seed=0)([some, opposite], layer="x"))
    assert not merged.any()


def test_the_order_of_the_sources_does_not_change_a_digit() -> None:
    sources = [update(r, s, seed=r) for r, s in ((2, 1.0), (4, -2.0), (3, 0.5))]
    first, *others = [whole(LEGO(units=4, seed=5)(order, layer="x")) for order in permutations(sources)]
    for other in others:
        assert torch.equal(first, other)


def test_the_order_of_the_units_of_a_source_does_not_matter_either() -> None:
    some, other = update(4, seed=1), update(4, seed=2)
    turned = LoRAUpdate(some.A.flip(0), some.B.flip(1), some.scale)
    merge = LEGO(units=None, seed=0)
    assert torch.equal(whole(merge([some, other], layer="x")), whole(merge([turned, other], layer="x")))


def test_the_draw_belongs_to_seed_and_layer_and_to_nothing_drawn_before() -> None:
    sources = [update(8, seed=seed) for seed in range(4)]
    made = {(seed, layer): whole(LEGO(units=4, seed=seed)(sources, layer=layer)) for seed in range(4) for layer in LAYERS}
    torch.manual_seed(123)
    np.random.seed(1)
    for (seed, layer), before in reversed(made.items()):
        assert torch.equal(whole(LEGO(units=4, seed=seed)(sources, layer=layer)), before)
    assert len({float(one.norm()) for one in made.values()}) > 1


def test_a_cluster_of_one_is_where_its_point_is() -> None:
    points = torch.tensor([[0.0], [4.0], [10.0]], dtype=torch.float64)
    found = kmeans(points, 2, torch.Generator().manual_seed(0)).tolist()
    assert found[0] == found[1] != found[2]


def test_another_seed_and_another_layer_draw_anew() -> None:
    """Of points without clusters each search finds its own."""
    sources = [update(12, 1.0, seed) for seed in range(4)]
    found = [(0, "a"), (0, "b"), (1, "a")]
    merged = [whole(LEGO(units=3, seed=seed)(sources, layer=layer)) for seed, layer in found]
    assert all(apart(merged[0], other) > 1e-3 for other in merged[1:])
