"""A merge by weights that were searched for: what the weights make of the sources, and what bias is."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import DTYPES, IN, OUT, apart, merge_factors, update, whole
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Update
from hatemtl.merging.learned import Learned
from hatemtl.merging.lora import LoRAUpdate

LEAF = Path(__file__).parents[2] / "conf" / "merge" / "learned.yaml"
WEIGHTS = (0.7, -0.2, 1.5)
BIAS = OmegaConf.load(LEAF.parents[1] / "evaluations" / "bias.yaml").bias


def built(**given: Any) -> Learned:
    """merge=learned as the leaf has it, but for what is given."""
    return instantiate(OmegaConf.merge(OmegaConf.load(LEAF), given), _convert_="all")


def told(weights: Sequence[float], layer: str = "layer") -> Merge:
    return replace(built(), statistics=[{layer: torch.tensor(weight)} for weight in weights])


def unlike() -> list[LoRAUpdate]:
    """LoRAs that differ in rank, scale, its sign and number format."""
    return [update(2 + i, (2.0, -0.5, 1.0)[i], seed=i, dtype=DTYPES[i]) for i in range(3)]


@pytest.mark.parametrize("weight", [1.0, 0.4, -2.0])
@pytest.mark.parametrize("draw", [lambda: update(4, 2.0), lambda: update(4, 2.0).dense()], ids=["factors", "dense"])
def test_one_source_comes_back_times_its_weight(weight: float, draw: Any) -> None:
    merged = told([weight])([draw()], layer="layer")
    assert apart(whole(merged), weight * whole(draw())) < 1e-6


def test_it_is_the_weighted_sum_whatever_the_order_of_the_sources() -> None:
    pairs = list(zip(unlike(), WEIGHTS, strict=True))
    expected = torch.stack([weight * source.dense().double() for source, weight in pairs]).sum(0)
    for order in permutations(pairs):
        sources, weights = zip(*order, strict=True)
        assert apart(whole(told(weights)(list(sources), layer="layer")), expected) < 1e-6


def test_factors_stay_factors_and_matrices_matrices() -> None:
    factors = told(WEIGHTS)(unlike(), layer="layer")
    assert isinstance(factors, LoRAUpdate)
    assert factors.rank == 2 + 3 + 4
    given: list[Update] = [source.dense() for source in unlike()]
    matrix = told(WEIGHTS)(given, layer="layer")
    assert isinstance(matrix, Tensor)
    assert matrix.shape == (OUT, IN)
    assert apart(matrix, factors.dense()) < 1e-6


def test_a_source_without_the_layer_counts_as_zero_and_a_layer_without_sources_stays_zero() -> None:
    some = update(4, 2.0)
    assert apart(whole(told([0.5, 3.0])([some, some.nothing()], layer="layer")), 0.5 * some.dense()) < 1e-6
    assert not whole(told([0.5, 3.0])([some.nothing(), some.nothing()], layer="other")).any()


def test_the_cut_to_a_rank_comes_after_the_weights() -> None:
    """The singular values of the sum are cut, not those of the sources."""
    sources, merge = unlike(), told(WEIGHTS)
    [cut] = merge_factors(merge, [{"layer": source} for source in sources], 2).updates.values()
    U, S, Vh = torch.linalg.svd(whole(merge(sources, layer="layer")).double(), full_matrices=False)
    assert apart(cut.dense().double(), U[:, :2] * S[:2] @ Vh[:2]) < 1e-5


def test_without_posts_it_is_refused() -> None:
    assert built().needs == "search"
    with pytest.raises(UserError, match="where no posts are at hand use merge=mean"):
        built()([update(4)], layer="layer")


# Bias


def test_bias_is_the_evaluation_that_a_test_may_be_judged_by() -> None:
    of_a_test = OmegaConf.load(LEAF.parents[1] / "evaluations" / "false_positive_difference.yaml")
    assert built().bias_of == instantiate(of_a_test.false_positive_difference)
    assert built(bias=1, search="cmaes", loss=0).objectives == {"bias": 1}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"error": 0.5}, "merge.error=0.5: a metric has no gradient; type merge.search=cmaes, or merge.error=0"),
        ({"bias": 0.5}, "merge.bias=0.5: counts have no gradient; type merge.search=cmaes, or merge.bias=0"),
        ({"bias": -1, "search": "cmaes"}, "merge.bias=-1: expected how much it counts, a number from 0"),
        ({"loss": 0}, "merge.error, merge.bias are all 0: nothing to search by; type merge.loss=1"),
        ({"bias_of": None}, "merge.bias_of=None: expected an evaluation .*; name it as conf/merge/learned.yaml does"),
        ({"bias_of": BIAS}, "merge.bias_of=Bias.*: expected an evaluation of predictions alone with a row of which less"),
    ],
)
def test_what_cannot_be_minimised_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        try:
            built(**given)
        except Exception as error:
            raise error.__cause__ or error from None  # Hydra's own is around it


@pytest.mark.parametrize(
    ("key", "least", "refused"),
    [
        ("loss", 1e-9, [float("inf"), float("nan"), -1e-9]),
        ("entropy", 0, [float("inf")]),
        ("steps", 1, [0]),
        ("posts", 1, [0]),
        ("rate", 1e-9, [0, float("inf")]),
        ("start", -2.0, [float("inf"), float("nan")]),
    ],
)
def test_each_number_is_taken_as_far_as_it_means_something(key: str, least: float, refused: list[float]) -> None:
    assert getattr(built(**{key: least}), key) == least
    for value in refused:
        with pytest.raises(Exception, match=rf"merge\.{key}={value}: expected"):
            built(**{key: value})
