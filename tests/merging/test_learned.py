"""A merge by weights that were searched for: what the weights make of the sources, and what bias is."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import DTYPES, IN, OUT, apart, update, whole
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Update, merge_factors
from hatemtl.merging.learned import Learned, false_positive_equality_difference
from hatemtl.merging.lora import LoRAUpdate

LEAF = Path(__file__).parents[2] / "conf" / "merge" / "learned.yaml"
WEIGHTS = (0.7, -0.2, 1.5)


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


def test_bias_is_the_false_positive_equality_difference_of_the_labels() -> None:
    """By hand: label a has 1 false alarm in 2 posts, b none in 3, c 2 in 2; all together 3 in 7. d is on every post."""
    targets = torch.tensor([[1, 0, 0, 1], [1, 0, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1.0]])
    scores = torch.tensor([[0.9, 0.1, 0.8, 0.9], [0.2, 0.4, 0.1, 0.1], [0.5, 0.3, 0.9, 0.9], [0.4, 0.9, 0.6, 0.2]])
    has = torch.ones(4, dtype=torch.bool)
    expected = abs(1 / 2 - 3 / 7) + 3 / 7 + abs(1 - 3 / 7)
    assert built().bias_of(scores, targets, has, threshold=0.5) == pytest.approx(expected)
    more = [torch.cat([x, 1 - x]) for x in (scores, targets)]  # posts that are not annotated are not counted
    assert built().bias_of(*more, torch.cat([has, ~has]), threshold=0.5) == pytest.approx(expected)


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_bias_is_what_a_loop_over_labels_counts(threshold: float) -> None:
    draw = torch.Generator().manual_seed(0)
    scores, targets, has = torch.rand(200, 5, generator=draw), torch.rand(200, 5, generator=draw), torch.arange(200) % 3 > 0
    rows = [(said, true) for said, true, some in zip(scores.tolist(), targets.tolist(), has.tolist(), strict=True) if some]
    alarms = [[said[c] >= threshold for said, true in rows if true[c] < 0.5] for c in range(5)]
    overall = sum(map(sum, alarms)) / sum(map(len, alarms))
    expected = sum(abs(overall - sum(of) / len(of)) for of in alarms)
    found = false_positive_equality_difference(scores, targets, has, threshold=threshold)
    assert found == pytest.approx(expected, rel=1e-5)


def test_labels_that_are_treated_alike_have_no_bias() -> None:
    one, has = torch.rand(50, 1, generator=torch.Generator().manual_seed(1)), torch.ones(50, dtype=torch.bool)
    targets = (torch.arange(50) % 4 == 0).float()[:, None]
    for scores, true in ((one, targets), (torch.zeros(50, 1), targets), (one, torch.ones(50, 1))):
        three = scores.expand(50, 3), true.expand(50, 3)
        assert false_positive_equality_difference(*three, has, threshold=0.5) == pytest.approx(0, abs=1e-6)
    assert false_positive_equality_difference(one, targets, ~has, threshold=0.5) == 0


def test_another_bias_may_be_named() -> None:
    named = {"_target_": "hatemtl.merging.learned.false_positive_equality_difference", "_partial_": True, "threshold": 0.9}
    merge = built(bias=1, search="cmaes", loss=0, bias_of=named)
    assert merge.objectives == {"bias": 1}
    assert merge.bias_of.keywords == {"threshold": 0.9}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bias": 0.5}, "merge.bias=0.5: counts have no gradient; type merge.search=cmaes, or merge.bias=0"),
        ({"bias": -1, "search": "cmaes"}, "merge.bias=-1: expected how much it counts, a number from 0"),
        ({"loss": 0}, "merge.error, merge.bias are all 0: nothing to search by; type merge.loss=1"),
    ],
)
def test_what_cannot_be_minimised_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        try:
            built(**given)
        except Exception as error:
            raise error.__cause__ or error from None  # Hydra's own is around it
