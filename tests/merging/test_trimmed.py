from typing import get_args

import pytest
import torch
from drawn import apart, merge_dense, source, update

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, dense
from hatemtl.merging.mean import Mean
from hatemtl.merging.trimmed import TIES, Breadcrumbs, Election, Magnitude, agreeing_mean, between

ROW = torch.tensor([[0.1, -0.9, 0.2, 0.8, -0.3], [0.5, 0.4, -0.6, 0.05, 0.7]])  # two sources of five entries


def drawn(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 20, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_trimming_by_hand() -> None:
    kept = between(ROW.double(), smallest=0.6, greatest=0)
    torch.testing.assert_close(kept.float(), torch.tensor([[0, -0.9, 0, 0.8, 0], [0, 0, -0.6, 0, 0.7]]))
    kept = between(ROW.double(), smallest=0.2, greatest=0.2)
    torch.testing.assert_close(kept.float(), torch.tensor([[0, 0, 0.2, 0.8, -0.3], [0.5, 0.4, -0.6, 0, 0]]))


def test_ties_by_hand() -> None:
    merge = TIES(density=0.8, elect="total", scale=2.0)
    # trimmed: 0.1 of the first source and 0.05 of the second; the signs elected: + - - + +
    expected = 2 * torch.tensor([0.5, -0.9, -0.6, 0.8, 0.7], dtype=torch.float64)
    torch.testing.assert_close(merge(list(ROW), layer=""), expected)


@pytest.mark.parametrize(("smallest", "greatest"), [(0.5, 0.0), (0.0, 0.1), (0.85, 0.01), (0.99, 0.0), (0.3, 0.69)])
def test_the_shares_left_out_are_those_asked_for_and_of_the_right_entries(smallest: float, greatest: float) -> None:
    stack = drawn(3)
    for whole, kept in zip(stack, between(stack.clone(), smallest=smallest, greatest=greatest), strict=True):
        ordered = whole.abs().flatten().sort().values
        stays = ordered[round(200 * smallest) : 200 - round(200 * greatest)]
        assert torch.equal(kept[kept != 0].abs().sort().values, stays)
        assert torch.equal(kept[kept != 0], whole[kept != 0])


def test_at_least_one_entry_stays() -> None:
    kept = between(drawn(2), smallest=1 - 1e-9, greatest=0)
    assert (kept != 0).sum(dim=(1, 2)).tolist() == [1, 1]
    assert between(torch.ones(2, 1), smallest=0.9, greatest=0.05).tolist() == [[1], [1]]


def test_entries_of_one_magnitude_stay_or_go_together() -> None:
    stack = torch.tensor([[1.0, -1.0, 1.0, 0.5], [3.0, 2.0, -2.0, 1.0]])
    assert between(stack, smallest=0.5, greatest=0).tolist() == [[1, -1, 1, 0], [3, 2, -2, 0]]


def test_one_source_is_left_whole() -> None:
    assert torch.equal(between(drawn(1), smallest=0.9, greatest=0.05), drawn(1))


@pytest.mark.parametrize("elect", ["total", "count"])
def test_ties_of_all_entries_is_the_mean_wherever_the_sources_agree_on_the_sign(elect: Election) -> None:
    sources = [source(seed, rank=1 + seed) for seed in range(4)]
    merged = merge_dense(TIES(density=1, elect=elect, scale=1), sources)
    mean = merge_dense(Mean(weights=None), sources)
    for layer, matrix in merged.items():
        signs = dense([s[layer] for s in sources]).sign()
        agreed = (signs == signs[0]).all(0)
        assert 0.05 < agreed.double().mean() < 0.5
        torch.testing.assert_close(matrix[agreed], mean[layer][agreed])
        assert not torch.isclose(matrix[~agreed], mean[layer][~agreed]).any()


@pytest.mark.parametrize("elect", ["total", "count"])
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_ties_is_the_mean_of_sources_that_are_multiples_of_one(elect: Election, density: float) -> None:
    """Equal signs everywhere, and the same entries trimmed."""
    one = update(5)
    some = [one.dense() * factor for factor in (0.5, 1.0, 3.0)]
    trimmed = between(dense(some), smallest=1 - density, greatest=0).mean(0)
    assert apart(TIES(density=density, elect=elect, scale=1)(some, layer=""), trimmed) < 1e-12
    if density == 1:
        assert apart(trimmed, 1.5 * one.dense()) < 1e-12


@pytest.mark.parametrize(
    "merge", [Magnitude(density=1, scale=1), Breadcrumbs(smallest=0, greatest=0, scale=1)], ids=["magnitude", "breadcrumbs"]
)
def test_what_leaves_nothing_out_is_the_mean(merge: Merge) -> None:
    sources = list(drawn(4))
    torch.testing.assert_close(merge(sources, layer=""), drawn(4).mean(0))


def test_breadcrumbs_without_outliers_to_leave_out_is_magnitude_pruning() -> None:
    sources = list(drawn(4))
    crumbs = Breadcrumbs(smallest=0.7, greatest=0, scale=3)(sources, layer="")
    assert torch.equal(crumbs, Magnitude(density=0.3, scale=3)(sources, layer=""))


@pytest.mark.parametrize("density", [0, -0.1, 1.5, float("nan")])
def test_a_density_is_a_share(density: float) -> None:
    for make in (lambda: Magnitude(density=density, scale=1), lambda: TIES(density=density, elect="total", scale=1)):
        with pytest.raises(UserError, match=rf"^merge\.density={density}:.*type merge\.density=0\.5$"):
            make()


@pytest.mark.parametrize(
    ("smallest", "greatest", "says"),
    [
        (-0.1, 0, r"merge\.smallest=-0\.1"),
        (0, 1, r"merge\.greatest=1:"),
        (0.6, 0.4, r"merge\.smallest=0\.6 and merge\.greatest=0\.4 leave nothing; type"),
        (float("nan"), 0, r"merge\.smallest=nan"),
    ],
)
def test_tails_leave_something(smallest: float, greatest: float, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Breadcrumbs(smallest=smallest, greatest=greatest, scale=1)


def test_a_scale_is_checked_everywhere() -> None:
    nan = float("nan")
    for make in (
        lambda: Magnitude(density=0.5, scale=nan),
        lambda: TIES(density=0.5, elect="total", scale=nan),
        lambda: Breadcrumbs(smallest=0.5, greatest=0, scale=nan),
    ):
        with pytest.raises(UserError, match=r"^merge\.scale=nan:.*type merge\.scale=1$"):
            make()


# The elected sign

both = pytest.mark.parametrize("elect", get_args(Election))


def column(*values: float) -> torch.Tensor:
    """One entry of as many sources."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(
    ("values", "total", "count"),
    [
        ((1.0, 2.0, 6.0), 3.0, 3.0),  # of one mind: the mean
        ((-1.0, -2.0, -6.0), -3.0, -3.0),
        ((1.0, 2.0, -6.0), -6.0, 1.5),  # the sum is below 0, two of three are above
        ((-1.0, -2.0, 6.0), 6.0, -1.5),
        ((4.0, 0.0, 0.0), 4.0, 4.0),  # zeros have no vote and no share
        ((4.0, 2.0, -1.0, -1.0), 3.0, 3.0),  # two against two: the sum decides
        ((3.0, -3.0), 0.0, 0.0),
        ((0.0, 0.0), 0.0, 0.0),
    ],
)
def test_by_hand(values: tuple[float, ...], total: float, count: float) -> None:
    assert agreeing_mean(column(*values), "total").tolist() == [total]
    assert agreeing_mean(column(*values), "count").tolist() == [count]


@both
def test_turning_every_sign_turns_the_result(elect: Election) -> None:
    stack = torch.randint(-3, 4, (4, 50, 20), generator=torch.Generator().manual_seed(0)).double()  # full of ties
    assert torch.equal(agreeing_mean(-stack, elect), -agreeing_mean(stack, elect))


@both
def test_sources_of_one_sign_give_their_mean(elect: Election) -> None:
    stack = torch.rand(5, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    stack = stack * torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).sign()
    torch.testing.assert_close(agreeing_mean(stack, elect), stack.mean(0))


@pytest.mark.parametrize("size", [1, 2**20])
def test_a_tie_is_a_tie_in_every_order(size: float) -> None:
    """0.1 + 0.2 - 0.3 is 5.6e-17 in one order and 2.8e-17 below 0 in another."""
    for values in ((0.1, 0.2, -0.3), (-0.3, 0.2, 0.1), (0.2, -0.3, 0.1)):
        assert agreeing_mean(size * column(*values), "total").item() == 0


def test_what_rounding_leaves_of_a_zero_has_no_share() -> None:
    assert agreeing_mean(column(3.0, 1e-16, -1e-16), "total").item() == pytest.approx(3.0)
    assert agreeing_mean(column(3.0, -1e-16, -1e-16), "count").item() == pytest.approx(3.0)
