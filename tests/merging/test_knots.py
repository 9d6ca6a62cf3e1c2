import pytest
import torch
from drawn import LAYERS, apart, mean, merge_dense, unlike, update, whole
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, layers_of
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.merging.mean import Mean, TaskArithmetic
from hatemtl.merging.subspaces import CoreSpace, KnOTS
from hatemtl.merging.trimmed import TIES, Magnitude

INNER = [
    TIES(density=0.3, elect="total", scale=1.0),
    TIES(density=1.0, elect="total", scale=2.0),
    Magnitude(density=0.5, scale=1.0),
]


def plainly(updates: list[LoRAUpdate], inner: Merge, sigma_inside: bool) -> Tensor:
    """The paper's formula, over the dense updates side by side."""
    U, S, Vt = torch.linalg.svd(torch.cat([one.dense() for one in updates], dim=1), full_matrices=False)
    k = int(S.gt(1e-9 * S[0]).sum())
    into = updates[0].shape[1]
    parts = [Vt[:k, i * into : (i + 1) * into] for i in range(len(updates))]
    if sigma_inside:
        return U[:, :k] @ whole(inner([torch.diag(S[:k]) @ part for part in parts], layer="x"))
    return U[:, :k] @ torch.diag(S[:k]) @ whole(inner(parts, layer="x"))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("sigma_inside", [True, False])
@pytest.mark.parametrize("inner", INNER)
def test_it_is_the_formula_over_dense_updates(inner: Merge, sigma_inside: bool, seed: int) -> None:
    for updates in layers_of(unlike(seed)).values():
        merged = KnOTS(inner=inner, sigma_inside=sigma_inside)(updates, layer="x")
        assert apart(whole(merged), plainly(updates, inner, sigma_inside)) < 1e-8


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sigma_inside", [True, False])
def test_the_mean_inside_is_the_mean(sigma_inside: bool, seed: int) -> None:
    sources = unlike(seed)
    merged = merge_dense(KnOTS(inner=Mean(weights=None), sigma_inside=sigma_inside), sources)
    for layer, expected in mean(sources).items():
        assert apart(merged[layer], expected) < 1e-9


def test_weights_inside_belong_to_the_sources_as_they_are_given() -> None:
    updates, inner = (
        [update(2, seed=3), update(3, seed=1), update(1, 4.0, seed=2)],
        TaskArithmetic(scale=1.0, weights=[1, -2, 3]),
    )
    merged = KnOTS(inner=inner, sigma_inside=True)(updates, layer="x")
    expected = updates[0].dense() - 2 * updates[1].dense() + 3 * updates[2].dense()
    assert apart(whole(merged), expected) < 1e-9


def test_the_basis_is_common_where_the_sources_write_into_the_same_outputs() -> None:
    """Sources with orthogonal outputs do not meet in any entry, so that no sign is in conflict and nothing is lost."""
    into = torch.randn(4, 17, generator=torch.Generator().manual_seed(0))
    outs = torch.linalg.qr(torch.randn(24, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    updates = [LoRAUpdate(into[:2], outs[:, :2], 3.0), LoRAUpdate(into[2:], outs[:, 2:], 1.0)]
    merged = KnOTS(inner=TIES(density=1.0, elect="total", scale=1.0), sigma_inside=True)(updates, layer="x")
    assert apart(whole(merged), updates[0].dense() + updates[1].dense()) < 1e-6


def test_a_layer_of_one_source_is_that_sources() -> None:
    some = update(3, seed=1)
    merged = merge_dense(KnOTS(inner=INNER[0], sigma_inside=True), [{LAYERS[0]: some}])
    assert apart(merged[LAYERS[0]], some.dense()) < 1e-9


def test_an_error_inside_names_the_key_inside() -> None:
    """Weights are told to fit or not when the sources are there, so Hydra cannot say where."""
    inner = Mean(weights=[1, 2, 3])
    knots, core = KnOTS(inner=inner, sigma_inside=True), CoreSpace(inner=inner)
    for merge in (knots, core):
        with pytest.raises(UserError, match=r"^merge\.inner\.weights holds 3 numbers for 2 sources"):
            merge([update(2), update(3)], layer="x")
    with pytest.raises(UserError, match=r"^merge\.inner\.inner\.weights holds 3 numbers for 2 sources"):
        KnOTS(inner=core, sigma_inside=True)([update(2), update(3)], layer="x")
