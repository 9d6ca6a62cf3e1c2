from itertools import permutations

import pytest
import torch
from drawn import DTYPES, IN, OUT, apart, cut, update

from hatemtl.merging.lora import LoRAUpdate, combine, factorise, norm, truncate


def test_an_update_is_its_scaled_product() -> None:
    some = LoRAUpdate(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0], [5.0]]), 0.5)
    assert some.rank == 1
    assert some.dense().tolist() == [[1.5, 3.0], [2.0, 4.0], [2.5, 5.0]]


@pytest.mark.parametrize("seed", range(20))
def test_combining_is_the_weighted_sum_of_the_dense_updates(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 6, (), generator=draw))
    ranks = torch.randint(1, 9, (n,), generator=draw).tolist()
    scales = (4 * torch.randn(n, generator=draw)).tolist()  # of either sign
    weights = torch.randn(n, generator=draw).tolist()
    updates = [update(ranks[i], scales[i], seed=100 * seed + i) for i in range(n)]
    whole = combine(updates, weights)
    assert whole.rank == sum(ranks)
    expected = torch.stack([w * u.dense() for w, u in zip(weights, updates, strict=True)]).sum(0)
    assert apart(whole.dense(), expected) < 1e-6


def test_an_update_minus_itself_is_zero() -> None:
    some = update(3, 2.0)
    assert combine([some, some], [1, -1]).dense().abs().max() < 1e-6


def test_the_order_of_what_is_combined_does_not_matter() -> None:
    pairs = [(update(r, s, seed=r), w) for r, s, w in ((1, 2.0, 0.3), (4, -1.0, 0.5), (2, 0.5, -0.2))]
    first, *others = [combine(*map(list, zip(*order, strict=True))).dense() for order in permutations(pairs)]
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-6, atol=1e-6)


def test_a_weight_too_few_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        combine([update(2), update(2)], [1.0])


@pytest.mark.parametrize("rank", [1, 3, 7, 11])
@pytest.mark.parametrize("scale", [1.0, -3.0])
def test_truncating_is_the_truncated_svd_of_the_dense_update(rank: int, scale: float) -> None:
    """Eckart & Young 1936: no matrix of that rank is nearer."""
    some = update(12, scale)
    U, S, Vh = torch.linalg.svd(some.dense(), full_matrices=False)
    best = U[:, :rank] * S[:rank] @ Vh[:rank]
    cut, lost = truncate(some, rank)
    assert cut.rank == rank
    assert apart(cut.dense(), best) < 1e-5
    assert lost == pytest.approx(float(S[rank:].square().sum() / S.square().sum()), abs=1e-10)
    # and the reported loss is the distance that is really there
    assert lost == pytest.approx(apart(cut.dense(), some.dense()) ** 2, rel=1e-4)


@pytest.mark.parametrize(("out", "into"), [(5, 30), (30, 5), (5, 5)])
def test_factors_wider_than_the_layer_are_truncated_too(out: int, into: int) -> None:
    some = update(12, out=out, into=into)
    U, S, Vh = torch.linalg.svd(some.dense(), full_matrices=False)
    cut, lost = truncate(some, 3)
    assert (cut.A.shape, cut.B.shape) == ((3, into), (out, 3))
    assert apart(cut.dense(), U[:, :3] * S[:3] @ Vh[:3]) < 1e-5
    assert lost == pytest.approx(float(S[3:].square().sum() / S.square().sum()))


def test_what_has_the_rank_already_is_kept_and_loses_nothing() -> None:
    low = update(2, seed=1)
    wide = combine([low, low, low], [0.2, 0.3, 0.5])  # rank 2, written with 6
    cut, lost = truncate(wide, 2)
    assert apart(cut.dense(), low.dense()) < 1e-6
    assert lost < 1e-10


def test_an_update_of_zero_stays_zero_and_loses_nothing() -> None:
    fresh = LoRAUpdate(update(4).A, torch.zeros(OUT, 4))  # as LoRA starts
    cut, lost = truncate(fresh, 2)
    assert lost == 0
    assert torch.equal(cut.dense(), torch.zeros(OUT, IN, dtype=torch.float64))


def test_a_higher_rank_never_loses_more() -> None:
    losses = [truncate(update(8), rank)[1] for rank in range(1, 9)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 0.3
    assert losses[-1] == 0


def test_the_singular_values_are_shared_evenly_by_the_factors() -> None:
    some = update(8, 5.0)
    cut, _ = truncate(some, 4)
    roots = torch.linalg.svdvals(some.dense())[:4].sqrt().float()
    torch.testing.assert_close(torch.linalg.svdvals(cut.A), roots)
    torch.testing.assert_close(torch.linalg.svdvals(cut.B), roots)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_factors_keep_their_number_format_and_stand_alone_in_memory(dtype: torch.dtype) -> None:
    some = update(6)
    cut, _ = truncate(LoRAUpdate(some.A.to(dtype), some.B.to(dtype), 2.0), 3)
    assert cut.A.dtype == cut.B.dtype == dtype
    assert cut.A.is_contiguous()
    assert cut.B.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_combining_rounds_no_factor_of_whatever_number_format(dtype: torch.dtype, other: torch.dtype) -> None:
    pair = [update(3, 2 / 3, seed=1, dtype=dtype), update(2, -0.3, seed=2, dtype=other)]
    expected = pair[0].dense() / 3 - pair[1].dense() / 7
    assert apart(combine(pair, [1 / 3, -1 / 7]).dense(), expected) < 1e-6


def test_a_layer_left_alone_adds_nothing() -> None:
    some = update(3, 2.0)
    nothing = some.nothing()
    assert (nothing.rank, nothing.shape) == (0, some.shape)
    assert nothing.dense().abs().max() == 0
    torch.testing.assert_close(combine([nothing, some, nothing], [1, 1, 1]).dense(), some.dense())


def test_no_dense_matrix_is_ever_made_of_factors() -> None:
    """The matrix alone would take 320 GB: the cost grows with the ranks, not with the layer's area."""
    wide = [update(4, (-1.0) ** i, seed=i, out=200_000, into=200_000) for i in range(3)]
    merged = combine(wide, [0.2, 0.3, 0.5])
    cut_, lost = truncate(merged, 4)
    assert cut_.rank == 4
    assert 0.3 < lost < 0.7
    assert norm(merged) ** 2 * (1 - lost) == pytest.approx(norm(cut_) ** 2, rel=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 7, 17])
@pytest.mark.parametrize("turned", [False, True])
def test_factorising_is_the_truncated_svd(rank: int, turned: bool) -> None:
    matrix = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    matrix = matrix.T if turned else matrix
    best, expected = cut(matrix, rank)
    made, lost = factorise(matrix, rank)
    assert made.rank == rank
    assert apart(made.dense(), best) < 1e-5
    assert lost == pytest.approx(expected, abs=1e-10)
    roots = torch.linalg.svdvals(matrix)[:rank].sqrt().float()
    torch.testing.assert_close(torch.linalg.svdvals(made.A), roots)
    torch.testing.assert_close(torch.linalg.svdvals(made.B), roots)


def test_factorising_what_has_a_lower_rank_or_none() -> None:
    low = update(3, 2.0)
    made, lost = factorise(low.dense(), 10)
    assert apart(made.dense(), low.dense()) < 1e-6
    assert lost < 1e-10
    none, lost = factorise(torch.zeros(5, 4), 3)
    assert (none.A.shape, none.B.shape, lost) == ((3, 4), (5, 3), 0.0)
    assert none.dense().abs().max() == 0
