import pytest
import torch
from drawn import apart, unlike, update, whole
from torch import Tensor

from hatemtl.merging.base import layers_of
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.merging.subspaces import IsoC, IsoCTS


def flat(updates: list[Tensor], rank: int) -> Tensor:
    """Iso-C as the paper has it, over dense updates whose sum has this rank."""
    U, S, Vt = torch.linalg.svd(torch.stack(updates).sum(0), full_matrices=False)
    return U[:, :rank] @ torch.diag(S[:rank].mean().expand(rank)) @ Vt[:rank]


def common_and_own(updates: list[Tensor], rank: int, fraction: float) -> Tensor:
    """Iso-CTS as the paper has it, over dense updates; `rank` in the place of min(out, in)."""
    n = len(updates)
    k = int(rank * fraction)
    k = rank - round((rank - k) / n) * n
    each = (rank - k) // n
    U, S, Vt = torch.linalg.svd(torch.stack(updates).sum(0), full_matrices=False)
    U, S, Vt = U[:, :k], S[:k], Vt[:k]
    left, middle, right = [], [], []
    for W in updates:
        own_U, own_S, own_Vt = torch.linalg.svd(W - U @ U.T @ W, full_matrices=False)
        left.append(own_U[:, :each])
        middle.append(own_S[:each])
        right.append(own_Vt[:each])
    P, _, Q = torch.linalg.svd(torch.cat([*left, U], dim=1), full_matrices=False)
    X, _, Y = torch.linalg.svd(torch.cat([*right, Vt]), full_matrices=False)
    return torch.cat([*middle, S]).mean() * (P @ Q) @ (X @ Y)


@pytest.mark.parametrize("seed", range(10))
def test_the_common_formula_over_dense_updates(seed: int) -> None:
    for updates in layers_of(unlike(seed)).values():
        dense = [one.dense() for one in updates]
        rank = int(torch.linalg.matrix_rank(torch.stack(dense).sum(0), rtol=1e-9))
        assert apart(whole(IsoC(scale=1.3)(updates, layer="x")), 1.3 * flat(dense, rank)) < 1e-6


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("ranks", [(4,), (4, 4), (5, 5, 5), (4, 4, 4, 4)])
def test_the_common_and_own_formula_over_dense_updates(ranks: tuple[int, ...], fraction: float) -> None:
    updates = [update(rank, (-1) ** seed * 0.5, seed) for seed, rank in enumerate(ranks)]
    expected = common_and_own([one.dense() for one in updates], sum(ranks), fraction)
    assert apart(whole(IsoCTS(common=fraction, scale=1.0)(updates, layer="x")), expected) < 1e-8


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize(("out", "into"), [(12, 20), (20, 12)])
def test_both_formulas_over_full_matrices(out: int, into: int, fraction: float) -> None:
    updates = [update(30, seed=seed, out=out, into=into).dense() for seed in range(3)]
    assert apart(whole(IsoC(scale=1.0)(updates, layer="x")), flat(updates, 12)) < 1e-8
    expected = common_and_own(updates, 12, fraction)
    assert apart(whole(IsoCTS(common=fraction, scale=1.0)(updates, layer="x")), expected) < 1e-8


@pytest.mark.parametrize("merge", [IsoC(scale=1.0), IsoCTS(common=0.5, scale=1.0), IsoCTS(common=0.0, scale=1.0)])
def test_one_source_keeps_its_directions_and_the_sum_of_its_singular_values(merge: IsoC | IsoCTS) -> None:
    some = update(5, -2.0)
    U, S, Vt = torch.linalg.svd(some.dense())
    merged = whole(merge([some], layer="x"))
    assert apart(merged, S[:5].mean() * U[:, :5] @ Vt[:5]) < 1e-9
    torch.testing.assert_close(torch.linalg.svdvals(merged)[:5], S[:5].mean().expand(5))


def test_all_common_is_the_common_merge() -> None:
    updates = [update(3, seed=seed) for seed in range(3)]
    assert apart(whole(IsoCTS(common=1.0, scale=1.0)(updates, layer="x")), whole(IsoC(scale=1.0)(updates, layer="x"))) < 1e-9


def test_every_direction_is_equally_strong() -> None:
    updates = [update(3, 10.0**seed, seed) for seed in range(3)]
    for merge in (IsoC(scale=1.0), IsoCTS(common=0.6, scale=1.0)):
        values = torch.linalg.svdvals(whole(merge(updates, layer="x")))[:9]
        torch.testing.assert_close(values, values.mean().expand(9))


def test_rounding_of_the_factors_is_no_direction() -> None:
    """Two savings of one update that differ in late digits: what sets them apart must not become as strong as the update."""
    some, noise = update(3, 2.0), update(3, seed=1)
    again = LoRAUpdate(some.A + 1e-5 * noise.A, some.B + 1e-5 * noise.B, some.scale)
    assert apart(whole(IsoC(scale=1.0)([some, again], layer="x")), 2 * whole(IsoC(scale=1.0)([some], layer="x"))) < 1e-4
