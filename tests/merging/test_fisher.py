from dataclasses import replace
from itertools import permutations

import pytest
import torch
from drawn import IN, OUT, apart, unlike, update, whole
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.merging.base import layers_of
from hatemtl.merging.informed import Fisher, fisher
from hatemtl.merging.lora import LoRAUpdate

MERGE = Fisher(normalize=True, floor=1e-6, posts=8)
PLAIN = Fisher(normalize=False, floor=1e-12, posts=8)


def sure(seed: int, *shape: int) -> Tensor:
    """A Fisher information: positive, of entries of very different size."""
    return torch.randn(*(shape or (OUT, IN)), generator=torch.Generator().manual_seed(seed)).mul(3).exp()


def test_it_is_the_weighted_mean_worked_out_by_hand() -> None:
    updates = [torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([[3.0, 2.0], [1.0, 0.0]])]
    statistics = [{"x": torch.tensor([[1.0, 5.0], [3.0, 0.0]])}, {"x": torch.tensor([[3.0, 1.0], [1.0, 0.0]])}]
    merged = whole(replace(PLAIN, statistics=statistics)(updates, layer="x"))
    torch.testing.assert_close(merged, torch.tensor([[2.5, 2.0], [0.25, 2.0]], dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_formula_over_dense_updates(seed: int) -> None:
    for updates in layers_of(unlike(seed)).values():
        F = torch.stack([sure(seed + i) for i in range(len(updates))]).double()
        W = torch.stack([one.dense() for one in updates])
        merged = whole(replace(PLAIN, statistics=[{"x": f} for f in F])(updates, layer="x"))
        assert apart(merged, (F * W).sum(0) / F.sum(0)) < 1e-6


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)])
def test_any_shape_merges(shape: tuple[int, ...]) -> None:
    updates = [torch.ones(shape), torch.zeros(shape)]
    F = [sure(0, *shape), sure(1, *shape)]
    torch.testing.assert_close(
        whole(replace(PLAIN, statistics=[{"x": f} for f in F])(updates, layer="x")), (F[0] / (F[0] + F[1])).double()
    )


def test_the_weights_merge_as_their_updates_do() -> None:
    start = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    updates = [update(3, 2.0, seed) for seed in range(3)]
    merge = replace(MERGE, statistics=[{"x": sure(seed)} for seed in range(3)])
    weights = whole(merge([start + one.dense() for one in updates], layer="x"))
    assert apart(weights, start + whole(merge(updates, layer="x"))) < 1e-9


@pytest.mark.parametrize("merge", [MERGE, PLAIN])
@pytest.mark.parametrize("scale", [1.0, -3.0])
def test_one_source_gives_that_source(merge: Fisher, scale: float) -> None:
    some = update(4, scale)
    for statistic in (sure(0), torch.zeros(OUT, IN)):
        assert apart(whole(replace(merge, statistics=[{"x": statistic}])([some], layer="x")), some.dense()) < 1e-6


def test_equal_information_gives_the_mean() -> None:
    updates = [update(3, 2.0, seed) for seed in range(4)]
    mean = torch.stack([one.dense() for one in updates]).mean(0)
    assert apart(whole(replace(MERGE, statistics=[{"x": sure(0)}] * 4)(updates, layer="x")), mean) < 1e-12


def test_where_no_source_is_sure_the_mean_decides() -> None:
    updates = [update(3, 2.0, seed) for seed in range(2)]
    mean = torch.stack([one.dense() for one in updates]).mean(0)
    F = [sure(seed) for seed in range(2)]
    for f in F:
        f[:, 5:] = 0
    merged = whole(replace(MERGE, statistics=[{"x": f} for f in F])(updates, layer="x"))
    assert apart(merged[:, 5:], mean[:, 5:]) < 1e-12
    assert apart(merged[:, :5], mean[:, :5]) > 0.1


def test_normalized_the_size_of_a_sources_gradients_has_no_say() -> None:
    updates = [update(3, 2.0, seed) for seed in range(2)]
    one, other = [{"x": sure(seed), "y": sure(seed + 5)} for seed in range(2)]
    great = {layer: 1e4 * f for layer, f in other.items()}
    assert apart(*(whole(replace(MERGE, statistics=[one, f])(updates, layer="x")) for f in (great, other))) < 1e-6
    assert apart(*(whole(replace(PLAIN, statistics=[one, f])(updates, layer="x")) for f in (great, other))) > 0.1
    # one factor for all layers: a source may still be surer than another of one of them
    shifted = {"x": 1e4 * other["x"], "y": other["y"]}
    assert apart(*(whole(replace(MERGE, statistics=[one, f])(updates, layer="y")) for f in (shifted, other))) > 0.1


def test_the_order_of_the_sources_does_not_matter() -> None:
    pairs = [(update(r, s, seed=r), {"x": sure(r)}) for r, s in ((1, 2.0), (4, -1.0), (3, 0.5))]
    first, *others = [
        whole(replace(MERGE, statistics=[f for _, f in order])([u for u, _ in order], layer="x"))
        for order in permutations(pairs)
    ]
    for other in others:
        assert apart(other, first) < 1e-9


def test_nothing_given_is_changed() -> None:
    updates, statistics = [update(3, 2.0, seed) for seed in range(2)], [{"x": sure(seed)} for seed in range(2)]
    replace(MERGE, statistics=statistics)(updates, layer="x")
    for seed in range(2):
        assert torch.equal(statistics[seed]["x"], sure(seed))
        assert torch.equal(updates[seed].dense(), update(3, 2.0, seed).dense())


def test_updates_of_zero_give_zero() -> None:
    for nothing in (update(2).nothing(), LoRAUpdate(update(4).A, torch.zeros(OUT, 4))):
        merged = whole(replace(MERGE, statistics=[{"x": sure(0)}, {"x": sure(1)}])([nothing, nothing], layer="x"))
        assert merged.shape == (OUT, IN)
        assert not merged.any()


def test_without_statistics_of_every_source_a_layer_gets_the_mean() -> None:
    updates = [update(3, 2.0, seed) for seed in range(2)]
    mean = torch.stack([one.dense() for one in updates]).mean(0)
    for statistics in ([{}, {}], [{"x": sure(0)}, {}], [{"x": torch.zeros(OUT, IN)}] * 2):
        assert apart(whole(replace(MERGE, statistics=statistics)(updates, layer="x")), mean) < 1e-6


def test_the_information_is_the_sum_of_squared_gradients_of_single_posts() -> None:
    """The reference: autograd, one post at a time."""
    draw = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(5, 3)
    X = torch.randn(4, 6, 5, generator=draw)
    labels = torch.tensor([0, 2, 1, 1])
    expected = torch.zeros(3, 5)
    for post, label in zip(X, labels, strict=True):
        layer.zero_grad()
        torch.nn.functional.cross_entropy(layer(post).tanh().mean(0), label).backward()
        expected += layer.weight.grad.square()
    came_out = layer(X)
    loss = torch.nn.functional.cross_entropy(came_out.tanh().mean(1), labels, reduction="sum")
    (gradients,) = torch.autograd.grad(loss, came_out)
    torch.testing.assert_close(fisher(X, gradients).float(), expected)
    torch.testing.assert_close(fisher(X[:1], gradients[:1]) + fisher(X[1:], gradients[1:]), fisher(X, gradients))


def test_it_says_that_it_needs_statistics() -> None:
    assert MERGE.needs == "fisher"
    with pytest.raises(UserError, match=r"merge=fisher.*posts.*merge=mean"):
        MERGE([update(2)], layer="x")


def test_statistics_of_something_else_are_refused() -> None:
    with pytest.raises(UserError, match=r"source 1's statistic of x has shape \(17, 24\), expected \(24, 17\)"):
        replace(MERGE, statistics=[{"x": sure(0).T}])([update(2)], layer="x")
    with pytest.raises(UserError, match="statistics of 2 sources for 1"):
        replace(MERGE, statistics=[{}, {}])([update(2)], layer="x")


@pytest.mark.parametrize("floor", [0.0, -1.0, float("inf")])
def test_a_floor_out_of_range_is_refused(floor: float) -> None:
    with pytest.raises(UserError, match="merge.floor="):
        Fisher(normalize=True, floor=floor, posts=8)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])  # of the gradients
@pytest.mark.parametrize("floor", [0.5, 1e-3])
def test_normalized_it_is_the_formula_whatever_the_size_of_the_gradients(size: float, floor: float) -> None:
    updates = [update(3, 2.0, seed) for seed in range(3)]
    F = torch.stack([size * (seed + 1) * sure(seed) for seed in range(3)]).double()
    whole_of = [{"x": f, "y": 2 * f} for f in F]  # the norm is that of all layers
    merged = whole(Fisher(normalize=True, floor=floor, posts=1, statistics=whole_of)(updates, layer="x"))
    normed = F / torch.stack([(f.square().sum() * 5).sqrt() for f in F])[:, None, None]
    sharp = normed + floor * normed.mean()
    expected = (sharp * torch.stack([one.dense() for one in updates])).sum(0) / sharp.sum(0)
    assert apart(merged, expected) < 1e-9


def test_one_source_that_is_sure_of_nothing_has_the_say_of_the_floor() -> None:
    updates, F = [update(3, 2.0, seed) for seed in range(2)], sure(0).double()
    statistics = [{"x": F}, {"x": torch.zeros(OUT, IN)}]
    merged = whole(Fisher(normalize=True, floor=0.25, posts=1, statistics=statistics)(updates, layer="x"))
    normed = torch.stack([F / F.norm(), torch.zeros_like(F)])
    sharp = normed + 0.25 * normed.mean()
    expected = (sharp * torch.stack([one.dense() for one in updates])).sum(0) / sharp.sum(0)
    assert apart(merged, expected) < 1e-9
