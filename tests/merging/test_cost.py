"""What every merge in conf/merge costs as layers widen and ranks grow, counted and not timed."""

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import merge_factors, update
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hatemtl.merging.informed import packed

FILES = {path.stem: path for path in (Path(__file__).parents[2] / "conf" / "merge").glob("*.yaml")}

# Whose cost grows with the ranks and with out + in, and which make no matrix of (out, in).
FACTORED = ("mean", "task_arithmetic", "linear", "learned", "knots", "core_space", "tsv_m", "iso_c", "iso_cts", "lego")
# Which work on entries of the dense updates, a matrix of (out, in) for each source.
DENSE = ("ties", "magnitude", "breadcrumbs", "dare_linear", "dare_ties", "della", "fisher")
# Which work in factors, but with Gram matrices of (in, in), whose sum is inverted: in³, and out only as the factors do.
SQUARE = ("regmean",)
SOURCES = 4


@dataclass
class Cost:
    """Floating-point operations of products and decompositions, entries of all tensors made, and of the largest of them."""

    flops: int = 0
    made: int = 0
    largest: int = 0


class Made(TorchDispatchMode):
    """Counts the entries of what every operation makes; views make nothing."""

    def __init__(self, cost: Cost) -> None:
        super().__init__()
        self.cost = cost

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor) and not one._is_view():
                self.cost.made += one.numel()
                self.cost.largest = max(self.cost.largest, one.numel())
        return made


def decomposition(shape: Any, *others: Any, out_shape: Any = None, **options: Any) -> int:
    """QR, SVD, eigenvectors and Cholesky of (m, n), but for a constant factor."""
    return prod(shape) * min(shape[-2:])


aten = torch.ops.aten
DECOMPOSITIONS = dict.fromkeys((aten.linalg_qr, aten._linalg_svd, aten._linalg_eigh, aten.linalg_cholesky_ex), decomposition)


def cost(name: str, *, out: int, into: int, rank: int) -> Cost:
    """Of the merge of four LoRAs of one layer, cut to their rank where that is done in factors."""
    merge = instantiate(OmegaConf.load(FILES[name]), _convert_="all")
    sources = [{"layer": update(rank, 2.0, seed=i, out=out, into=into)} for i in range(SOURCES)]
    if merge.needs:
        draw = torch.Generator().manual_seed(0)
        statistic = {
            "gram": lambda: packed(torch.eye(into) + torch.rand(into, into, generator=draw) / into),
            "fisher": lambda: torch.rand(out, into, generator=draw),
            "search": lambda: torch.rand((), generator=draw),
        }[merge.needs]
        merge = replace(merge, statistics=[{"layer": statistic()} for _ in sources])
    found = Cost()
    with Made(found), FlopCounterMode(display=False, custom_mapping=DECOMPOSITIONS) as counter:
        if name in FACTORED:
            merge_factors(merge, sources, rank)
        else:
            merge([source["layer"] for source in sources], layer="layer")
    found.flops = counter.get_total_flops()
    return found


def test_every_merge_is_named_once() -> None:
    assert sorted([*FACTORED, *DENSE, *SQUARE]) == sorted(FILES)


@pytest.mark.parametrize("name", FACTORED)
def test_cost_grows_with_the_width_and_the_ranks_and_nothing_is_as_large_as_the_weight(name: str) -> None:
    """Twice the width: twice of everything. Twice the ranks: of everything made at most 2.2 times, and 4 times the FLOPs."""
    once = cost(name, out=1024, into=1024, rank=4)
    wide, deep = cost(name, out=2048, into=2048, rank=4), cost(name, out=1024, into=1024, rank=8)
    for key in ("flops", "made", "largest"):
        assert getattr(wide, key) <= 2.01 * getattr(once, key), key
    assert wide.largest < 2048**2 / 8
    assert deep.flops <= 4.2 * once.flops
    assert deep.made <= 2.2 * once.made
    assert deep.largest <= 2.2 * once.largest


@pytest.mark.parametrize("name", DENSE)
def test_a_merge_of_entries_costs_as_many_as_the_weight_has_whatever_the_ranks(name: str) -> None:
    once, wide = (cost(name, out=width, into=width, rank=4) for width in (256, 512))
    deep = cost(name, out=256, into=256, rank=8)
    assert once.largest >= 256**2
    assert wide.made == pytest.approx(4 * once.made, rel=0.1)
    assert deep.made == pytest.approx(once.made, rel=0.1)
    assert deep.flops <= 2 * once.flops  # of making them dense


@pytest.mark.parametrize("name", SQUARE)
def test_a_merge_with_gram_matrices_costs_little_more_for_more_outputs_and_ranks(name: str) -> None:
    once = cost(name, out=256, into=256, rank=4)
    for other in (cost(name, out=1024, into=256, rank=4), cost(name, out=256, into=256, rank=8)):
        assert other.largest == once.largest == 256**2
        assert other.flops <= 1.2 * once.flops
        assert other.made <= 1.2 * once.made
    assert cost(name, out=256, into=512, rank=4).flops <= 8 * once.flops
