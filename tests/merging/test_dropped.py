from collections.abc import Callable, Sequence
from itertools import permutations

import pytest
import torch
from drawn import update

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Update, dense
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.merging.mean import Mean
from hatemtl.merging.trimmed import DARE, DELLA, TIES, Election, by_lot, lots


def dare(density: float = 0.5, elect: Election | None = None, scale: float = 1.0, seed: int = 0) -> DARE:
    return DARE(density=density, elect=elect, scale=scale, seed=seed)


def della(
    density: float = 0.5, epsilon: float = 0.4, elect: Election | None = None, scale: float = 1.0, seed: int = 0
) -> DELLA:
    return DELLA(density=density, epsilon=epsilon, elect=elect, scale=scale, seed=seed)


def generators(n: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 * seed + i) for i in range(n)]


@pytest.mark.parametrize("make", [lambda seed: dare(0.3, seed=seed), lambda seed: della(0.3, 0.4, seed=seed)])
def test_the_mean_of_what_is_kept_is_unbiased(make: Callable[[int], Merge]) -> None:
    """Over many seeds each entry averages to that of the true mean, within what its standard error allows."""
    sources, runs = [update(2, 2.0, seed=i, out=6, into=5) for i in range(3)], 4000
    mean = Mean(weights=None)(sources, layer="")
    assert isinstance(mean, LoRAUpdate)
    results = torch.stack([dense([make(seed)(sources, layer="layer")])[0] for seed in range(runs)])
    z = (results.mean(0) - mean.dense()) / (results.std(0) / runs**0.5)
    assert z.abs().max() < 4.5
    assert 0.5 < z.square().mean() < 1.8
    assert results.std(0).min() > 0


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_the_share_that_is_kept_is_the_density_and_each_is_divided_by_it(density: float) -> None:
    stack = torch.randn(2, 300, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = by_lot(stack.clone(), generators(2), density=density, epsilon=0)
    stays = kept != 0
    error = (density * (1 - density) / 90_000) ** 0.5
    assert (stays.double().mean(dim=(1, 2)) - density).abs().max() < 5 * error
    torch.testing.assert_close(kept[stays], stack[stays] / density)
    together = (stays[0] & stays[1]).double().mean()
    assert together == pytest.approx(density**2, abs=0.01)  # the sources draw apart


def test_greater_entries_of_a_row_have_better_chances_in_equal_steps() -> None:
    """Rows of 5 entries, density 0.5, epsilon 0.4: chances 0.3, 0.4, 0.5, 0.6, 0.7 by rank, whatever the row's size."""
    row = torch.tensor([0.3, -0.1, 0.9, -0.5, 0.7], dtype=torch.float64)
    chances = torch.tensor([0.4, 0.3, 0.7, 0.5, 0.6], dtype=torch.float64)
    stack = (row * torch.logspace(-3, 3, 20_000, dtype=torch.float64)[:, None]).expand(2, -1, -1)
    kept = by_lot(stack.clone(), generators(2), density=0.5, epsilon=0.4)
    stays = kept != 0
    assert (stays.double().mean(dim=(0, 1)) - chances).abs().max() < 5 * (0.25 / 40_000) ** 0.5
    torch.testing.assert_close(kept[stays], (stack / chances)[stays])


def test_a_vector_is_one_row_and_a_row_of_one_entry_has_the_mean_chance() -> None:
    vector = torch.arange(1, 100_001, dtype=torch.float64)
    kept = by_lot(vector.expand(2, -1).clone(), generators(2), density=0.5, epsilon=0.8) != 0
    lower, upper = kept.double().mean(0).split(50_000)
    assert lower.mean() == pytest.approx(0.3, abs=0.02)
    assert upper.mean() == pytest.approx(0.7, abs=0.02)
    thin = by_lot(torch.ones(2, 50_000, 1), generators(2), density=0.5, epsilon=0.8)
    assert set(thin.unique().tolist()) == {0.0, 2.0}
    assert (thin != 0).double().mean() == pytest.approx(0.5, abs=0.02)


def test_without_a_window_della_is_dare() -> None:
    sources = [update(3, seed=i) for i in range(3)]
    for elect in (None, "total", "count"):
        assert torch.equal(della(0.4, 0, elect)(sources, layer="a"), dare(0.4, elect)(sources, layer="a"))


def test_what_drops_nothing_is_the_mean_or_ties() -> None:
    sources = [update(3, seed=i) for i in range(3)]
    torch.testing.assert_close(dare(1)(sources, layer=""), dense(sources).mean(0))
    ties = TIES(density=1, elect="count", scale=2)(sources, layer="")
    torch.testing.assert_close(dare(1, "count", 2)(sources, layer=""), ties)
    torch.testing.assert_close(della(1, 0, "count", 2)(sources, layer=""), ties)


def masks(updates: Sequence[Update], seed: int = 0, layer: str = "layer") -> list[torch.Tensor]:
    return [torch.rand(8, generator=lot) for lot in lots(updates, seed=seed, layer=layer)]


def test_a_lot_belongs_to_a_source_and_not_to_its_place() -> None:
    sources: list[Update] = [update(2, seed=0), update(2, seed=1), update(2, seed=1).dense(), update(2, 3.0, seed=1)]
    first = masks(sources)
    for a, b in permutations(range(4), 2):
        assert not torch.equal(first[a], first[b])
    for order in permutations(range(4)):
        for place, i in enumerate(order):
            assert torch.equal(masks([sources[i] for i in order])[place], first[i])
    assert torch.equal(masks([sources[0]] * 2)[1], first[0])


def test_a_lot_depends_on_seed_and_layer_and_not_on_how_the_source_lies_in_memory() -> None:
    some = update(2)
    (lot,) = masks([some])
    for other in (masks([some], seed=1), masks([some], layer="other")):
        assert not torch.equal(other[0], lot)
    turned = LoRAUpdate(some.A.T.contiguous().T, some.B.T.contiguous().T.requires_grad_(), some.scale)
    assert torch.equal(masks([turned])[0], lot)
    assert torch.equal(
        masks([LoRAUpdate(some.A.bfloat16(), some.B.bfloat16())])[0], masks([update(2, dtype=torch.bfloat16)])[0]
    )


def test_an_elected_mean_of_what_is_kept_is_greater_than_the_sources() -> None:
    """Four equal but for a hair: only the kept ones count, and they are doubled; one entry in 16 has none kept."""
    some = update(8, out=200, into=200).dense()
    merged = dare(0.5, "total")([some * (1 + i * 1e-9) for i in range(4)], layer="")
    assert float((merged / some).mean()) == pytest.approx(2 * 15 / 16, abs=0.01)


@pytest.mark.parametrize("density", [0, 1.01, float("nan")])
def test_a_density_is_a_chance(density: float) -> None:
    for make in (dare, della):
        with pytest.raises(UserError, match=rf"^merge\.density={density}:.*type merge\.density=0\.5$"):
            make(density)


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, -0.1), (0.5, 1.0), (0.9, 0.3), (0.1, 0.2), (1.0, 0.1)])
def test_chances_lie_above_0_and_up_to_1(density: float, epsilon: float) -> None:
    with pytest.raises(UserError, match=rf"merge\.epsilon={epsilon} with merge\.density={density}.*type merge\.epsilon="):
        della(density, epsilon)


@pytest.mark.parametrize(("density", "epsilon"), [(0.9, 0.2), (0.5, 0.99), (0.1, 0.1), (1.0, 0.0)])
def test_the_widest_windows_are_taken(density: float, epsilon: float) -> None:
    merged = della(density, epsilon)([update(2, seed=i) for i in range(2)], layer="")
    assert torch.isfinite(merged).all()


def test_a_scale_is_finite() -> None:
    for make in (lambda: dare(scale=float("inf")), lambda: della(scale=float("inf"))):
        with pytest.raises(UserError, match=r"^merge\.scale=inf.*merge\.scale=1$"):
            make()
