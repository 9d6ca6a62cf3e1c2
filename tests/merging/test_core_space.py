import pytest
import torch
from drawn import apart, mean, merge_dense, unlike, update, whole
from torch import Tensor

from hatemtl.merging.base import Merge, layers_of
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.merging.mean import Mean, TaskArithmetic
from hatemtl.merging.subspaces import CoreSpace
from hatemtl.merging.trimmed import TIES, Magnitude

INNER = [
    TIES(density=0.3, elect="total", scale=1.0),
    TIES(density=1.0, elect="count", scale=2.0),
    Magnitude(density=0.5, scale=1.0),
]


def plainly(updates: list[LoRAUpdate], inner: Merge) -> Tensor:
    """The paper's formula, over the dense updates."""
    U, along_out, _ = torch.linalg.svd(torch.cat([one.scale * one.B.double() for one in updates], dim=1))
    _, along_in, Vt = torch.linalg.svd(torch.cat([one.A.double() for one in updates]))
    U, Vt = U[:, : int((along_out > 1e-9 * along_out[0]).sum())], Vt[: int((along_in > 1e-9 * along_in[0]).sum())]
    return U @ whole(inner([U.T @ one.dense() @ Vt.T for one in updates], layer="x")) @ Vt


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("inner", INNER)
def test_it_is_the_formula_over_dense_updates(inner: Merge, seed: int) -> None:
    for updates in layers_of(unlike(seed)).values():
        assert apart(whole(CoreSpace(inner=inner)(updates, layer="x")), plainly(updates, inner)) < 1e-8


@pytest.mark.parametrize("seed", range(5))
def test_the_mean_of_cores_is_the_mean(seed: int) -> None:
    """The paper's theorem: what is linear loses nothing in the core space."""
    sources = unlike(seed)
    merged = merge_dense(CoreSpace(inner=Mean(weights=None)), sources)
    for layer, expected in mean(sources).items():
        assert apart(merged[layer], expected) < 1e-9


def test_weights_inside_belong_to_the_sources_as_they_are_given() -> None:
    updates, inner = (
        [update(2, seed=3), update(3, seed=1), update(1, 4.0, seed=2)],
        TaskArithmetic(scale=1.0, weights=[1, -2, 3]),
    )
    expected = updates[0].dense() - 2 * updates[1].dense() + 3 * updates[2].dense()
    assert apart(whole(CoreSpace(inner=inner)(updates, layer="x")), expected) < 1e-9


@pytest.mark.parametrize(("out", "into"), [(5, 30), (30, 5), (5, 5)])
def test_a_layer_narrower_than_the_ranks_together_merges_too(out: int, into: int) -> None:
    updates = [update(4, 2.0, seed, out=out, into=into) for seed in range(3)]
    for inner in INNER:
        merged = CoreSpace(inner=inner)(updates, layer="x")
        assert isinstance(merged, LoRAUpdate)
        assert merged.rank <= 5
        assert apart(merged.dense(), plainly(updates, inner)) < 1e-8
