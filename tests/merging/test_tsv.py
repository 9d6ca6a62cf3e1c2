import pytest
import torch
from drawn import apart, unlike, update, whole
from scipy.linalg import polar
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.merging.base import layers_of
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.merging.subspaces import TSVM


def plainly(updates: list[Tensor], most: int) -> Tensor:
    """The paper's formula, over dense updates: each one's greatest singular vectors, whitened together by Procrustes."""
    left, middle, right = [], [], []
    for W in updates:
        U, S, Vt = torch.linalg.svd(W, full_matrices=False)
        k = min(most, int(S.gt(1e-9 * S[0]).sum())) if W.any() else 0
        left.append(U[:, :k])
        middle.append(S[:k])
        right.append(Vt[:k].T)
    U, V = (torch.from_numpy(polar(torch.cat(side, dim=1).numpy())[0]) for side in (left, right))
    return U @ torch.diag(torch.cat(middle)) @ V.T


@pytest.mark.parametrize("seed", range(10))
def test_it_is_the_formula_over_dense_updates(seed: int) -> None:
    for updates in layers_of(unlike(seed)).values():
        merged = TSVM(share=None, scale=0.7)(updates, layer="x")
        expected = 0.7 * plainly([one.dense() for one in updates], min(updates[0].shape) // len(updates))
        assert apart(whole(merged), expected) < 1e-8


@pytest.mark.parametrize("sources", [1, 2, 3, 4])
@pytest.mark.parametrize(("out", "into"), [(12, 20), (20, 12)])
def test_full_matrices_keep_the_nth_part_of_their_vectors(out: int, into: int, sources: int) -> None:
    updates = [update(30, seed=seed, out=out, into=into).dense() for seed in range(sources)]
    merged = whole(TSVM(share=None, scale=1.0)(updates, layer="x"))
    assert apart(merged, plainly(updates, 12 // sources)) < 1e-8
    assert torch.linalg.matrix_rank(merged) == 12 // sources * sources


@pytest.mark.parametrize(("share", "most"), [(0.2, 3), (0.01, 1), (1.0, 17)])
def test_a_share_is_of_the_layers_singular_vectors(share: float, most: int) -> None:
    updates = [update(4, seed=seed) for seed in range(3)]
    merged = TSVM(share=share, scale=1.0)(updates, layer="x")
    assert isinstance(merged, LoRAUpdate)
    assert merged.rank == 3 * min(4, most)
    assert apart(merged.dense(), plainly([one.dense() for one in updates], most)) < 1e-8


def test_sources_of_directions_of_their_own_are_summed() -> None:
    out, into = (torch.linalg.qr(torch.randn(d, 6, generator=torch.Generator().manual_seed(d)))[0] for d in (24, 17))
    updates = [LoRAUpdate(into[:, i : i + 2].T, out[:, i : i + 2] * torch.tensor([3.0, 1.0]), i - 3.0) for i in (0, 2, 4)]
    merged = TSVM(share=None, scale=1.0)(updates, layer="x")
    expected = torch.stack([one.dense() for one in updates]).sum(0)
    assert apart(whole(merged), expected) < 1e-6


def test_the_singular_values_of_the_merge_are_those_of_the_sources() -> None:
    updates = [update(3, seed=seed) for seed in range(4)]
    merged = whole(TSVM(share=None, scale=1.0)(updates, layer="x"))
    theirs = torch.cat([torch.linalg.svdvals(one.dense())[:3] for one in updates]).sort(descending=True).values
    torch.testing.assert_close(torch.linalg.svdvals(merged)[:12], theirs)


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(UserError, match=f"merge.share={share}: expected"):
        TSVM(share=share, scale=1.0)
