"""What holds of every merge that works on the directions of updates."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import DTYPES, IN, OUT, apart, merge_dense, merge_factors, unlike, update, whole
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge
from hatemtl.merging.lego import LEGO
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.merging.mean import Mean
from hatemtl.merging.subspaces import TSVM, CoreSpace, IsoC, IsoCTS, KnOTS
from hatemtl.merging.trimmed import DARE, TIES

CONF = Path(__file__).parents[2] / "conf/merge"
NAMES = ("knots", "core_space", "tsv_m", "iso_c", "iso_cts", "lego")
TRIM = TIES(density=0.4, elect="total", scale=1.0)
DROP = DARE(density=0.5, elect="total", scale=1.0, seed=3)
MERGES = {
    "knots": KnOTS(inner=TRIM, sigma_inside=True),
    "knots of bare directions": KnOTS(inner=TRIM, sigma_inside=False),
    "knots by lot": KnOTS(inner=DROP, sigma_inside=True),
    "core space": CoreSpace(inner=TRIM),
    "core space by lot": CoreSpace(inner=DROP),
    "tsv": TSVM(share=None, scale=1.0),
    "tsv of few": TSVM(share=0.2, scale=0.5),
    "iso": IsoC(scale=1.0),
    "iso cts": IsoCTS(common=0.6, scale=1.0),
    "iso cts, nothing common": IsoCTS(common=0.0, scale=1.0),
    "lego": LEGO(units=None, seed=0),
    "lego of few": LEGO(units=3, seed=0),
}
EVERY = pytest.mark.parametrize("merge", [pytest.param(merge, id=name) for name, merge in MERGES.items()])
OF_MATRICES = pytest.mark.parametrize(
    "merge", [pytest.param(merge, id=name) for name, merge in MERGES.items() if "lego" not in name]
)


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_of_the_sources_does_not_matter(merge: Merge, dtype: torch.dtype) -> None:
    given = [update(r, s, seed=r, dtype=dtype) for r, s in ((1, 2.0), (4, -1.0), (3, 0.5))]
    first, *others = [whole(merge(order, layer="x")) for order in permutations(given)]
    assert first.norm() > 0
    for other in others:
        assert apart(other, first) < 1e-9


@EVERY
def test_the_sources_are_left_as_they_were(merge: Merge) -> None:
    for dtype in (torch.float32, torch.float64):
        given, before = ([update(3, 2.0, seed, dtype=dtype) for seed in range(3)] for _ in range(2))
        merge(given, layer="x")
        for one, other in zip(given, before, strict=True):
            assert torch.equal(one.A, other.A)
            assert torch.equal(one.B, other.B)


@EVERY
def test_two_calls_agree_to_the_last_digit(merge: Merge) -> None:
    given = [update(3, 2.0, seed) for seed in range(3)]
    assert torch.equal(whole(merge(given, layer="x")), whole(merge(given, layer="x")))


@pytest.mark.parametrize("scale", [-1.0, 3.0])
@pytest.mark.parametrize("name", [name for name in MERGES if "lot" not in name and "lego" not in name])
def test_the_sign_and_size_of_all_sources_are_those_of_the_merge(name: str, scale: float) -> None:
    given = [update(r, 0.5, seed=r) for r in (2, 4, 3)]
    scaled = [LoRAUpdate(one.A, one.B, scale * one.scale) for one in given]
    assert apart(whole(MERGES[name](scaled, layer="x")), scale * whole(MERGES[name](given, layer="x"))) < 1e-9


NOTHING = update(2).nothing()
FRESH = LoRAUpdate(update(4).A, torch.zeros(OUT, 4))  # as LoRA starts


@EVERY
@pytest.mark.parametrize("given", [[NOTHING], [FRESH], [NOTHING, NOTHING], [FRESH, NOTHING, FRESH]])
def test_updates_of_zero_give_zero(merge: Merge, given: list[LoRAUpdate]) -> None:
    merged = whole(merge(given, layer="x"))
    assert merged.shape == (OUT, IN)
    assert not merged.any()


@EVERY
@pytest.mark.parametrize("beside", [[NOTHING], [FRESH], [NOTHING, FRESH]])
def test_updates_of_zero_beside_another_do_no_harm(merge: Merge, beside: list[LoRAUpdate]) -> None:
    merged = whole(merge([update(4, 2.0), *beside], layer="x"))
    assert torch.isfinite(merged).all()
    assert merged.any()


@EVERY
def test_opposite_sources_do_no_harm(merge: Merge) -> None:
    some = update(3)
    opposite = LoRAUpdate(some.A, some.B, -some.scale)
    merged = whole(merge([some, opposite], layer="x"))
    assert torch.isfinite(merged).all()
    assert merged.norm() <= 3 * some.dense().norm()  # rounding is not blown up


@EVERY
def test_any_ranks_scales_formats_and_layers_merge(merge: Merge) -> None:
    for seed in range(10):
        sources = unlike(seed)
        factors, weights = merge_factors(merge, sources, None), merge_dense(merge, sources)
        assert set(factors.updates) == set(weights) == {layer for source in sources for layer in source}
        for layer, matrix in weights.items():
            assert torch.isfinite(matrix).all()
            assert matrix.shape == (OUT, IN)
            assert matrix.dtype in (torch.float32, torch.float64)
            assert (factors.updates[layer].dense() - matrix).norm() <= 1e-6 * matrix.norm()
            assert merge_factors(merge, sources, 2).updates[layer].rank <= 2


class Largest(TorchDispatchMode):
    """Watches the size of every tensor that is made, in bytes."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self.bytes = max(self.bytes, one.nbytes)
        return made


@EVERY
def test_no_matrix_of_the_layers_size_is_made(merge: Merge) -> None:
    width, ranks = 20_000, (4, 4, 4)
    given = [update(r, 2.0, seed, out=width, into=width) for seed, r in enumerate(ranks)]
    with Largest() as largest:
        merged = merge(given, layer="x")
    assert isinstance(merged, LoRAUpdate)
    assert merged.shape == (width, width)
    assert merged.rank <= sum(ranks)
    assert largest.bytes <= 8 * sum(ranks) * len(ranks) * width  # all sources side by side


@OF_MATRICES
@pytest.mark.parametrize("shape", [(9, 14), (14, 9)])
def test_full_matrices_merge_as_their_factors_do(merge: Merge, shape: tuple[int, int]) -> None:
    """Core Space depends on how the factors are written, so both are written as W·I or I·W."""
    out, into = shape
    given = [update(20, 0.3, seed, out=out, into=into).dense() for seed in range(3)]
    factors = [
        LoRAUpdate(torch.eye(into, dtype=torch.float64), W)
        if out >= into
        else LoRAUpdate(W, torch.eye(out, dtype=torch.float64))
        for W in given
    ]
    assert apart(whole(merge(given, layer="x")), whole(merge(factors, layer="x"))) < 1e-12


@OF_MATRICES
@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)])
def test_what_is_no_matrix_gets_the_scaled_mean_or_is_merged_by_the_inner_merge(merge: Any, shape: tuple[int, ...]) -> None:
    given = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double() for seed in range(3)]
    inner = getattr(merge, "inner", None)
    expected = merge.scale * torch.stack(given).mean(0) if inner is None else inner(given, layer="x")
    torch.testing.assert_close(merge(given, layer="x"), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_yaml_builds_and_one_source_gives_it_back(name: str) -> None:
    merge = instantiate(OmegaConf.load(CONF / f"{name}.yaml"), _convert_="all")
    some = update(4, -2.0)
    merged, expected = whole(merge([some], layer="x")), some.dense()
    if name.startswith("iso"):  # with a flat spectrum of the same sum
        U, S, Vt = torch.linalg.svd(expected)
        expected = S[:4].mean() * U[:, :4] @ Vt[:4]
    assert apart(merged, expected) < 1e-9


@pytest.mark.parametrize("sources", [1, 2, 5])
@pytest.mark.parametrize("name", ["knots", "core_space", "tsv_m", "lego"])
def test_equal_sources_give_what_they_are(name: str, sources: int) -> None:
    merge = instantiate(OmegaConf.load(CONF / f"{name}.yaml"), _convert_="all")
    if name in ("knots", "core_space"):
        merge = replace(merge, inner=Mean(weights=None))
    some = update(3, 2.0)
    assert apart(whole(merge([some] * sources, layer="x")), some.dense()) < 1e-9


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: TSVM(share=0.0, scale=1.0), r"merge\.share=0\.0"),
        (lambda: TSVM(share=None, scale=float("nan")), r"^merge.scale=nan.*merge\.scale=1"),
        (lambda: IsoC(scale=float("inf")), r"^merge.scale=inf.*merge\.scale=1"),
        (lambda: IsoCTS(common=1.5, scale=1.0), r"merge\.common=1\.5"),
        (lambda: LEGO(units=0, seed=0), r"merge\.units=0"),
        (lambda: LEGO(units=None, seed=0)([torch.ones(2, 2)], layer="x"), r"merge=lego.*merge=mean"),
    ],
)
def test_what_cannot_be_is_refused(wrong: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        wrong()
