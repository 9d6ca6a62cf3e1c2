from dataclasses import replace
from itertools import permutations

import pytest
import torch
from drawn import IN, OUT, apart, unlike, update, whole
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.merging.base import layers_of
from hatemtl.merging.informed import RegMean, gram, packed, unpacked
from hatemtl.merging.lora import LoRAUpdate

MERGE = RegMean(alpha=0.9, ridge=1e-6, posts=8)


def inputs(seed: int, tokens: int = 60, into: int = IN) -> Tensor:
    """(tokens, in), of features that go together and are not of one size."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, into, generator=draw) @ torch.randn(into, into, generator=draw)


def merged(merge: RegMean, updates: list[LoRAUpdate], X: list[Tensor]) -> Tensor:
    return whole(replace(merge, statistics=[{"x": gram(x)} for x in X])(updates, layer="x"))


@pytest.mark.parametrize("seed", range(5))
def test_it_is_least_squares_on_the_sources_outputs(seed: int) -> None:
    """The reference: one regression of every source's outputs on its inputs."""
    updates = [update(r, s, 10 * seed + r) for r, s in ((1, 2.0), (4, -1.0), (3, 0.5))]
    X = [inputs(10 * seed + i).double() for i in range(3)]
    targets = torch.cat([x @ one.dense().T for x, one in zip(X, updates, strict=True)])
    expected = torch.linalg.lstsq(torch.cat(X), targets).solution.T
    assert apart(merged(RegMean(alpha=1.0, ridge=1e-13, posts=8), updates, X), expected) < 1e-6


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_formula_over_dense_updates(seed: int, alpha: float) -> None:
    for updates in layers_of(unlike(seed)).values():
        X = [inputs(seed + i).double() for i in range(len(updates))]
        G = [alpha * (x.T @ x) + (1 - alpha) * torch.diag(torch.diag(x.T @ x)) for x in X]
        above = torch.stack([one.dense() @ g for one, g in zip(updates, G, strict=True)]).sum(0)
        expected = above @ torch.linalg.inv(torch.stack(G).sum(0))
        assert apart(merged(RegMean(alpha=alpha, ridge=1e-13, posts=8), updates, X), expected) < 1e-6


def test_the_weights_merge_as_their_updates_do() -> None:
    """The formula for W₀ + ΔWᵢ gives W₀ + the formula for ΔWᵢ, so that the start need not be at hand."""
    start = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    updates = [update(3, 2.0, seed) for seed in range(3)]
    statistics = [{"x": gram(inputs(seed))} for seed in range(3)]
    merge = replace(RegMean(alpha=0.7, ridge=1e-3, posts=8), statistics=statistics)
    weights = whole(merge([start + one.dense() for one in updates], layer="x"))
    assert apart(weights, start + whole(merge(updates, layer="x"))) < 1e-9


@pytest.mark.parametrize("tokens", [3, 200])
@pytest.mark.parametrize("scale", [1.0, -3.0])
def test_one_source_gives_that_source_however_few_its_posts(scale: float, tokens: int) -> None:
    some = update(4, scale)
    assert apart(merged(RegMean(alpha=1.0, ridge=1e-6, posts=8), [some], [inputs(0, tokens)]), some.dense()) < 1e-8


def test_equal_inputs_give_the_mean() -> None:
    updates = [update(3, 2.0, seed) for seed in range(4)]
    mean = torch.stack([one.dense() for one in updates]).mean(0)
    assert apart(merged(MERGE, updates, [inputs(0)] * 4), mean) < 1e-9


def test_where_the_inputs_say_nothing_the_mean_decides() -> None:
    updates = [update(3, 2.0, seed) for seed in range(2)]
    X = [inputs(seed) for seed in range(2)]
    for x in X:
        x[:, 5:] = 0
    mean = torch.stack([one.dense() for one in updates]).mean(0)
    assert apart(merged(MERGE, updates, X)[:, 5:], mean[:, 5:]) < 1e-6
    assert apart(merged(MERGE, updates, X)[:, :5], mean[:, :5]) > 0.1
    assert apart(merged(MERGE, updates, [torch.zeros(4, IN)] * 2), mean) < 1e-12


def test_a_source_with_more_posts_weighs_more() -> None:
    updates = [update(3, 2.0, seed) for seed in range(2)]
    X = inputs(0, 20_000)
    near = [apart(merged(MERGE, updates, [X[:n], inputs(1, 50)]), updates[0].dense()) for n in (20, 200, 2_000, 20_000)]
    assert near == sorted(near, reverse=True)
    assert near[-1] < 0.1


def test_the_order_of_the_sources_does_not_matter() -> None:
    pairs = [(update(r, s, seed=r), inputs(r)) for r, s in ((1, 2.0), (4, -1.0), (3, 0.5))]
    first, *others = [merged(MERGE, [u for u, _ in order], [x for _, x in order]) for order in permutations(pairs)]
    for other in others:
        assert apart(other, first) < 1e-9


def test_the_result_is_of_the_sources_ranks() -> None:
    updates = [update(3, 2.0, seed) for seed in range(4)]
    result = replace(MERGE, statistics=[{"x": gram(inputs(seed))} for seed in range(4)])(updates, layer="x")
    assert isinstance(result, LoRAUpdate)
    assert result.rank == 12


def test_nothing_given_is_changed() -> None:
    updates, X = [update(3, 2.0, seed) for seed in range(2)], [inputs(seed) for seed in range(2)]
    statistics = [{"x": gram(x)} for x in X]
    replace(MERGE, statistics=statistics)(updates, layer="x")
    for seed in range(2):
        assert torch.equal(statistics[seed]["x"], gram(inputs(seed)))
        assert torch.equal(updates[seed].dense(), update(3, 2.0, seed).dense())


@pytest.mark.parametrize("given", [[update(2).nothing()] * 2, [LoRAUpdate(update(4).A, torch.zeros(OUT, 4))] * 2])
def test_updates_of_zero_give_zero(given: list[LoRAUpdate]) -> None:
    result = merged(MERGE, given, [inputs(0), inputs(1)])
    assert result.shape == (OUT, IN)
    assert not result.any()


def test_without_statistics_of_every_source_a_layer_gets_the_mean() -> None:
    updates = [update(3, 2.0, seed) for seed in range(2)]
    mean = torch.stack([one.dense() for one in updates]).mean(0)
    for statistics in ([{}, {}], [{"x": gram(inputs(0))}, {}]):
        assert apart(whole(replace(MERGE, statistics=statistics)(updates, layer="x")), mean) < 1e-6
    biases = [torch.ones(7), torch.zeros(7)]
    assert torch.equal(
        whole(replace(MERGE, statistics=[{}, {}])(biases, layer="bias")), torch.full((7,), 0.5, dtype=torch.float64)
    )


def test_a_gram_matrix_adds_up_over_batches_and_takes_any_leading_shape() -> None:
    X = inputs(0, 24).reshape(4, 6, IN)
    expected = X.reshape(24, IN).double().T @ X.reshape(24, IN).double()
    torch.testing.assert_close(gram(X), expected)
    torch.testing.assert_close(gram(X[:1]) + gram(X[1:]), expected)


@pytest.mark.parametrize("width", [1, 5, 64, 65, 200])
def test_a_packed_matrix_is_itself_in_single_precision(width: int) -> None:
    G = gram(inputs(0, into=width))
    assert torch.equal(unpacked(packed(G), width), G.float().double())


def test_a_packed_matrix_takes_little_more_than_a_quarter() -> None:
    for width in (768, 3072):
        G = torch.empty(width, width, dtype=torch.float64, device="meta")
        assert packed(G).nbytes <= (0.25 + 16 / width) * G.nbytes


@pytest.mark.parametrize(
    ("tokens", "alpha", "ridge", "within"),
    [(10, 0.0, 1e-6, 1e-5), (10, 0.9, 1e-6, 1e-5), (300, 1.0, 1e-6, 1e-5), (10, 1.0, 1e-4, 2e-3)],
)
def test_packed_matrices_give_what_whole_ones_give(tokens: int, alpha: float, ridge: float, within: float) -> None:
    """Also where a width is of two blocks. With alpha 1 rounding counts where inputs say nothing: 30 tokens, 70 wide."""
    merge = RegMean(alpha=alpha, ridge=ridge, posts=8)
    for into in (IN, 70):
        updates = [update(r, s, seed=r, into=into) for r, s in ((1, 2.0), (4, -1.0), (3, 0.5))]
        whole_ones = [gram(inputs(i, tokens, into)) for i in range(3)]
        found = [
            whole(replace(merge, statistics=[{"x": G} for G in some])(updates, layer="x"))
            for some in (whole_ones, [packed(G) for G in whole_ones])
        ]
        assert apart(found[1], found[0]) < within


def test_it_says_that_it_needs_statistics() -> None:
    assert MERGE.needs == "gram"
    with pytest.raises(UserError, match=r"merge=regmean.*posts.*merge=mean"):
        MERGE([update(2)], layer="x")


@pytest.mark.parametrize(
    ("statistics", "says"),
    [
        ([{"x": torch.eye(IN)}], "statistics of 1 sources for 2"),
        (
            [{"x": torch.eye(IN)}, {"x": torch.eye(IN + 1)}],
            r"source 2's statistic of x has shape \(18, 18\), expected \(17, 17\)",
        ),
        ([{"x": torch.eye(IN)}, {"x": torch.full((IN, IN), torch.nan)}], "source 2's statistic of x.*no finite number"),
        ([{"x": packed(torch.eye(IN + 1))}] * 2, r"source 1's statistic of x has shape \(324,\), expected \(289,\)"),
    ],
)
def test_statistics_of_something_else_are_refused(statistics: list[dict[str, Tensor]], says: str) -> None:
    with pytest.raises(UserError, match=says):
        replace(MERGE, statistics=statistics)([update(2), update(3)], layer="x")


@pytest.mark.parametrize(("alpha", "ridge", "says"), [(1.1, 1e-6, "merge.alpha=1.1"), (0.9, 0.0, "merge.ridge=0.0")])
def test_numbers_out_of_range_are_refused(alpha: float, ridge: float, says: str) -> None:
    with pytest.raises(UserError, match=says):
        RegMean(alpha=alpha, ridge=ridge, posts=8)


def test_a_ridge_below_rounding_is_named() -> None:
    with pytest.raises(UserError, match=r"merge\.ridge=1e-25 is too small.*type merge\.ridge=1e-09"):
        merged(RegMean(alpha=1.0, ridge=1e-25, posts=8), [update(2)], [inputs(0, 3)])


def test_a_vector_too_is_refused_before_posts_were_read() -> None:
    with pytest.raises(UserError, match="gathered from posts"):
        MERGE([torch.ones(3), torch.zeros(3)], layer="x")
