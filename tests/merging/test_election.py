from typing import get_args

import pytest
import torch

from hatemtl.merging.election import Election, agreeing_mean

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


def test_a_tie_is_a_tie_in_every_order() -> None:
    """0.1 + 0.2 - 0.3 is 5.6e-17 in one order and 2.8e-17 below 0 in another."""
    for values in ((0.1, 0.2, -0.3), (-0.3, 0.2, 0.1), (0.2, -0.3, 0.1)):
        assert agreeing_mean(column(*values), "total").item() == 0


def test_what_rounding_leaves_of_a_zero_has_no_share() -> None:
    assert agreeing_mean(column(3.0, 1e-16, -1e-16), "total").item() == pytest.approx(3.0)
    assert agreeing_mean(column(3.0, -1e-16, -1e-16), "count").item() == pytest.approx(3.0)
