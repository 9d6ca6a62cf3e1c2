import math
from collections.abc import Iterator, Mapping, Sequence

import pytest
import torch
from drawn import IN, LAYERS, OUT, apart, cut, mean, merge_dense, merge_factors, source, unlike, update, whole
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Update, dense, layers_of, merge_each
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.merging.mean import Mean
from hatemtl.merging.trimmed import TIES

MERGES: list[Merge] = [Mean(weights=None), TIES(density=0.5, elect="total", scale=1.0)]  # one gives factors, one does not
names = pytest.mark.parametrize("merge", MERGES, ids=["factors", "dense"])


@pytest.mark.parametrize("seed", range(30))
def test_the_lossless_mean_is_the_mean_of_the_dense_updates(seed: int) -> None:
    sources = unlike(seed)
    merged = merge_factors(Mean(weights=None), sources, None)
    expected = mean(sources)
    assert set(merged.updates) == set(expected) == set(merged.lost)
    for layer, matrix in expected.items():
        assert apart(merged.updates[layer].dense(), matrix) < 1e-6
        assert merged.updates[layer].rank == sum(s[layer].rank for s in sources if layer in s)
    assert set(merged.lost.values()) == {0.0}


@names
@pytest.mark.parametrize("seed", range(15))
def test_a_rank_gives_the_truncated_svd_of_the_dense_merge(merge: Merge, seed: int) -> None:
    """Eckart & Young 1936, whatever the ranks, scales, signs, number formats and layers of the sources."""
    sources, rank = unlike(seed), 1 + seed % 6
    merged = merge_factors(merge, sources, rank)
    for layer, matrix in merge_dense(merge, sources).items():
        best, lost = cut(matrix, rank)
        assert apart(merged.updates[layer].dense(), best) < 1e-5
        assert merged.lost[layer] == pytest.approx(lost, abs=1e-6)
        assert merged.lost[layer] == pytest.approx(apart(merged.updates[layer].dense(), matrix) ** 2, abs=1e-5)


@names
@pytest.mark.parametrize("rank", [None, 17, 500])
def test_no_rank_and_a_rank_that_needs_no_cut_are_lossless(merge: Merge, rank: int | None) -> None:
    sources = [source(seed, rank=5) for seed in range(3)]
    merged = merge_factors(merge, sources, rank)
    for layer, matrix in merge_dense(merge, sources).items():
        assert apart(merged.updates[layer].dense(), matrix) < 1e-6
        assert merged.lost[layer] < 1e-10


def test_a_higher_rank_never_loses_more() -> None:
    sources = [source(seed) for seed in range(4)]
    losses = [merge_factors(MERGES[1], sources, rank).lost[LAYERS[0]] for rank in range(1, IN + 1)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 0.5


@names
def test_a_layer_that_a_source_lacks_counts_as_an_update_of_zero(merge: Merge) -> None:
    sources = [source(0), source(1, layers=LAYERS[:1]), source(2, layers=LAYERS[1:])]
    nothing = LoRAUpdate(torch.zeros(4, IN), torch.zeros(OUT, 4))
    zeros = [{layer: some.get(layer, nothing) for layer in LAYERS} for some in sources]
    for rank in (None, 3):
        found, expected = merge_factors(merge, sources, rank), merge_factors(merge, zeros, rank)
        assert set(found.updates) == set(LAYERS)
        for layer in LAYERS:
            assert apart(found.updates[layer].dense(), expected.updates[layer].dense()) < 1e-5
            assert found.lost[layer] == pytest.approx(expected.lost[layer], abs=1e-9)


@names
def test_fresh_sources_merge_into_nothing(merge: Merge) -> None:
    """LoRA starts from B = 0."""
    fresh = [{LAYERS[0]: LoRAUpdate(update(4, seed=i).A, torch.zeros(OUT, 4), 2.0)} for i in range(3)]
    for rank in (None, 2):
        merged = merge_factors(merge, fresh, rank)
        assert merged.updates[LAYERS[0]].dense().abs().max() == 0
        assert merged.lost == {LAYERS[0]: 0.0}


def test_directions_that_could_learn_stay_and_those_of_nothing_go() -> None:
    """One of which A or B alone is 0, as in a fresh LoRA, has a gradient."""
    some = update(4)
    some.A[:2], some.B[:, 1:3] = 0, 0  # of the second both
    kept = merge_factors(Mean(weights=None), [{LAYERS[0]: some}], None).updates[LAYERS[0]]
    assert torch.equal(kept.A, some.A[[0, 2, 3]]) and torch.equal(kept.B, some.B[:, [0, 2, 3]])


@names
def test_factors_and_dense_updates_of_the_same_sources_merge_alike(merge: Merge) -> None:
    sources = [source(seed, rank=1 + seed) for seed in range(3)]
    matrices = [{layer: some.dense() for layer, some in given.items()} for given in sources]
    for layer, matrix in merge_dense(merge, sources).items():
        assert matrix.dtype == torch.float64
        assert apart(merge_dense(merge, matrices)[layer], matrix) < 1e-6


def test_dense_updates_may_have_any_shape() -> None:
    given = [{"bias": torch.arange(3.0) + i, "gate": torch.tensor(float(i))} for i in range(3)]
    merged = merge_dense(Mean(weights=None), given)
    assert merged["bias"].tolist() == [1.0, 2.0, 3.0]
    assert merged["gate"].item() == 1.0


def test_the_merge_is_told_the_layer_and_gets_every_source_in_order() -> None:
    seen = []

    def spy(updates: Sequence[Update], *, layer: str) -> Update:
        seen.append((layer, [u.rank for u in updates if isinstance(u, LoRAUpdate)]))
        return updates[0]

    merge_factors(spy, [source(0, rank=1, layers=LAYERS[:2]), source(1, rank=2, layers=LAYERS[1:])], None)
    assert seen == [(LAYERS[0], [1, 0]), (LAYERS[1], [1, 2]), (LAYERS[2], [0, 2])]


def test_of_full_updates_one_layer_is_made_at_a_time() -> None:
    """Those of an encoder, all at once in double precision, are twice its size for every source."""
    made: list[str] = []

    class Changes(Mapping[str, Tensor]):
        def __getitem__(self, layer: str) -> Tensor:
            made.append(layer)
            return torch.ones(2, 2)

        def __iter__(self) -> Iterator[str]:
            return iter(LAYERS)

        def __len__(self) -> int:
            return len(LAYERS)

    merged = merge_each(Mean(weights=None), [Changes(), Changes()])
    assert next(merged)[0] == LAYERS[0]
    assert set(made) == {LAYERS[0]}
    assert [layer for layer, _ in merged] == list(LAYERS[1:])


def test_sources_of_other_widths_are_named() -> None:
    other = {LAYERS[1]: update(4, out=OUT + 1)}
    with pytest.raises(UserError, match=rf"source 2 adapts {LAYERS[1]} of shape \(25, 17\).*\(24, 17\)"):
        layers_of([source(0), other])
    with pytest.raises(UserError, match=rf"^wide adapts {LAYERS[1]} of shape"):
        next(merge_each(Mean(weights=None), [source(0), other], ["narrow", "wide"]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_a_source_with_what_is_no_number_is_named(value: float, factor: str) -> None:
    broken = source(1)
    getattr(broken[LAYERS[2]], factor)[0, 0] = value
    with pytest.raises(UserError, match=rf"source 2 .*{LAYERS[2]}.*diverged"):
        merge_factors(Mean(weights=None), [source(0), broken], None)
    with pytest.raises(UserError, match=rf"source 2 .*{LAYERS[2]}.*diverged"):
        merge_dense(Mean(weights=None), [source(0), broken])


def test_dense_stacks_in_double_precision_and_gives_no_view_of_a_source() -> None:
    matrix = torch.randn(OUT, IN, dtype=torch.float64)
    stack = dense([matrix, update(2, 3.0)])
    assert (stack.shape, stack.dtype) == ((2, OUT, IN), torch.float64)
    torch.testing.assert_close(stack[1], whole(update(2, 3.0)))
    stack.zero_()
    assert matrix.abs().sum() > 0
