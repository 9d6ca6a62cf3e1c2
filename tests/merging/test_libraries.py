"""Merges beside those of AdapterHub's `adapters` and of PEFT: alike where these are right, and by how much they are off."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from drawn import apart, merge_dense, merge_factors

from hatemtl.merging.base import Merge, dense
from hatemtl.merging.lora import LoRAUpdate, Updates
from hatemtl.merging.mean import Linear, Mean, TaskArithmetic
from hatemtl.merging.trimmed import DARE, TIES, Election, Magnitude, by_lot, lots

MEAN = Mean(weights=None)
NAMES = ["one", "two", "three", "four"]


def tiny_bert() -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, pad_token_id=0
    )
    return BertModel(config, add_pooling_layer=False).eval()


def off(theirs: Updates, sources: Sequence[Updates]) -> float:
    """The relative Frobenius distance from the true mean, over all layers."""
    true = merge_dense(MEAN, sources)
    assert set(true) == set(theirs)
    error = sum(float((update.dense() - true[layer]).square().sum()) for layer, update in theirs.items())
    return math.sqrt(error / sum(float(matrix.square().sum()) for matrix in true.values()))


@pytest.fixture(scope="module")
def hub() -> Any:
    """A BERT with four LoRAs of AdapterHub, both factors of each drawn anew, as after training from unlike starts."""
    import adapters

    model = tiny_bert()
    adapters.init(model)
    config = adapters.LoRAConfig(
        r=4, alpha=8, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True, init_weights="bert"
    )
    for name in NAMES:
        model.add_adapter(name, config=config)
    return model


def average(model: Any, name: str, **how: Any) -> tuple[dict[str, LoRAUpdate], list[dict[str, LoRAUpdate]]]:
    """What `average_adapter` makes of the four, and the four."""
    model.average_adapter(name, NAMES, weights=[1 / 4] * 4, **how)

    def of(adapter: str) -> dict[str, LoRAUpdate]:
        layers = {path: m.loras[adapter] for path, m in model.named_modules() if adapter in getattr(m, "loras", ())}
        return {path: LoRAUpdate(lora.lora_A.detach(), lora.lora_B.detach(), lora.scaling) for path, lora in layers.items()}

    return of(name), [of(source) for source in NAMES]


def test_adapter_hubs_linear_average_is_factor_averaging_and_no_mean_of_updates(hub: Any) -> None:
    """Of the products Bᵢ·Aⱼ only those with i = j belong there; those of n unlike sources leave √((n - 1) / n) of error."""
    theirs, sources = average(hub, "linear", combine_strategy="linear")
    mine = merge_factors(Linear(), sources, None).updates
    assert set(mine) == set(theirs)
    assert len(mine) == 2 * 5  # two layers, q k v and both feed-forward matrices
    for layer, update in theirs.items():
        assert update.scale == 2
        assert float(update.dense().norm()) > 0
        assert apart(mine[layer].dense(), update.dense()) < 1e-6
    assert off(theirs, sources) == pytest.approx(math.sqrt(3 / 4), abs=0.05)
    assert off(merge_factors(MEAN, sources, None).updates, sources) < 1e-6


def test_adapter_hubs_svd_average_is_the_best_of_the_sources_rank(hub: Any) -> None:
    theirs, sources = average(hub, "same rank", combine_strategy="lora_delta_w_svd", svd_rank=4)
    for layer, update in merge_factors(MEAN, sources, 4).updates.items():
        assert apart(theirs[layer].dense(), update.dense()) < 1e-5


@pytest.mark.parametrize("rank", [2, 8, 16])
def test_adapter_hubs_svd_average_of_another_rank_is_off_by_the_ratio_of_ranks(hub: Any, rank: int) -> None:
    """Its alpha stays while r becomes svd_rank. At rank 16, where nothing need be lost, three quarters are."""
    theirs, sources = average(hub, f"rank {rank}", combine_strategy="lora_delta_w_svd", svd_rank=rank)
    mine = merge_factors(MEAN, sources, rank).updates
    for layer, update in mine.items():
        assert apart(theirs[layer].dense(), 4 / rank * update.dense()) < 1e-5
    if rank == 16:
        assert off(theirs, sources) == pytest.approx(0.75, abs=1e-5)
        assert off(mine, sources) < 1e-6


PEFT_RANKS = {"one": (4, 8.0), "two": (4, 4.0), "three": (4, 8.0), "four": (4, 2.0), "narrow": (2, 2.0)}  # rank, alpha


@pytest.fixture(scope="module")
def peft() -> Any:
    """A BERT with LoRAs of PEFT of several scales, both factors drawn."""
    from peft import LoraConfig, get_peft_model

    def config(rank: int, alpha: float) -> LoraConfig:
        return LoraConfig(r=rank, lora_alpha=alpha, target_modules=["query", "value"], init_lora_weights=False)

    first, *others = PEFT_RANKS.items()
    model = get_peft_model(tiny_bert(), config(*first[1]), adapter_name=first[0])
    for name, (rank, alpha) in others:
        model.add_adapter(name, config(rank, alpha))
    return model


def weighted(
    model: Any, name: str, sources: Sequence[str], **how: Any
) -> tuple[dict[str, LoRAUpdate], list[dict[str, LoRAUpdate]]]:
    """What `add_weighted_adapter` makes of the sources with weights 1/n, and the sources."""
    n = len(sources)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_weighted_adapter(list(sources), [1 / n] * n, name, **how)
    layers = {path: layer for path, layer in model.named_modules() if name in getattr(layer, "lora_A", ())}
    assert len(layers) == 4

    def of(adapter: str) -> dict[str, LoRAUpdate]:
        found = {}
        for path, layer in layers.items():
            A, B = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
            found[path] = LoRAUpdate(A, B, layer.scaling[adapter])
            assert apart(found[path].dense(), layer.get_delta_weight(adapter).double()) < 1e-6
        return found

    return of(name), [of(source) for source in sources]


@pytest.mark.slow
def test_pefts_cat_is_the_lossless_mean(peft: Any) -> None:
    theirs, sources = weighted(peft, "cat", ["one", "two", "narrow"], combination_type="cat")
    for layer, update in merge_factors(MEAN, sources, None).updates.items():
        assert update.rank == theirs[layer].rank == 10
        assert apart(update.dense(), theirs[layer].dense()) < 1e-6


@pytest.mark.slow
def test_pefts_svd_is_the_truncated_mean(peft: Any) -> None:
    theirs, sources = weighted(peft, "svd", ["one", "two", "narrow"], combination_type="svd", svd_rank=3)
    for layer, update in merge_factors(MEAN, sources, 3).updates.items():
        assert apart(update.dense(), theirs[layer].dense()) < 1e-5


@pytest.mark.slow
def test_pefts_linear_is_further_from_the_mean_than_no_update_at_all(peft: Any) -> None:
    """(Σ √wᵢ·Bᵢ)·(Σ √wⱼ·Aⱼ) has every Bᵢ·Aⱼ in it: of n unlike sources of one size √(n - 1) of error; no update has 1."""
    theirs, sources = weighted(peft, "linear", ["one", "three"], combination_type="linear")
    assert off(theirs, sources) == pytest.approx(1, abs=0.15)
    theirs, sources = weighted(peft, "linear of 4", NAMES, combination_type="linear")
    expected = expected_error_of_linear([source[next(iter(source))].scale for source in sources])
    assert off(theirs, sources) == pytest.approx(expected, abs=0.25)
    assert expected > 1.5


def expected_error_of_linear(scales: Sequence[float]) -> float:
    """√(Σ_{i≠j} sᵢ·sⱼ / Σ sᵢ²), for factors without relation."""
    squares = sum(s**2 for s in scales)
    return math.sqrt((sum(scales) ** 2 - squares) / squares)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "density"), [("ties_svd", 0.5), ("magnitude_prune_svd", 0.5)])
def test_pefts_elementwise_merges_of_dense_updates_are_ours(peft: Any, kind: str, density: float) -> None:
    merge: Merge = (
        TIES(density=density, elect="total", scale=1 / 3)  # PEFT weighs the sources and takes their mean besides
        if kind == "ties_svd"
        else Magnitude(density=density, scale=1)
    )
    theirs, sources = weighted(peft, kind, NAMES[:3], combination_type=kind, density=density, svd_rank=6)
    for layer, update in merge_factors(merge, sources, 6).updates.items():
        assert apart(update.dense(), theirs[layer].dense()) < 1e-4


def stack(n: int, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.randn(n, 20, 16, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.filterwarnings("ignore:The density")
def test_merge_utils_of_peft_agree(density: float) -> None:
    from peft.utils import merge_utils

    sources = stack(3)
    ones, thirds, mixed = torch.ones(3), torch.full((3,), 1 / 3), torch.tensor([0.5, -1.0, 2.0])
    pairs = [
        (TIES(density=density, elect="total", scale=1), merge_utils.ties(sources, ones, density, "total")),
        (Magnitude(density=density, scale=1), merge_utils.magnitude_prune(sources, thirds, density)),
        (TaskArithmetic(scale=2, weights=mixed.tolist()), merge_utils.task_arithmetic(sources, 2 * mixed)),
    ]
    for merge, theirs in pairs:
        (mine,) = dense([merge(sources, layer="")])
        torch.testing.assert_close(mine.float(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("density", "mine", "theirs"), [(0.27, 3, 2), (0.21, 2, 2), (0.99, 10, 9)])
def test_a_density_is_rounded_where_peft_cuts_it_off(density: float, mine: int, theirs: int) -> None:
    from peft.utils import merge_utils

    source = torch.arange(1.0, 11.0)
    (kept,) = dense([TIES(density=density, elect="total", scale=1)([source, source], layer="")])
    assert int((kept != 0).sum()) == mine
    assert int((merge_utils.prune(source, density, method="magnitude") != 0).sum()) == theirs


@pytest.mark.slow
@pytest.mark.parametrize("elect", [None, "total"])
def test_dare_of_peft_agrees_when_it_drops_the_same_entries(elect: Election | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.utils import merge_utils

    sources = stack(3)
    kept = iter(by_lot(dense(sources), lots(sources, seed=5, layer="x"), density=0.4, epsilon=0).float())
    monkeypatch.setattr(merge_utils, "random_pruning", lambda tensor, density, rescale: next(kept))
    if elect is None:
        theirs = merge_utils.dare_linear(sources, torch.full((3,), 1 / 3), 0.4)
    else:
        theirs = merge_utils.dare_ties(sources, torch.ones(3), 0.4, elect)
    mine = DARE(density=0.4, elect=elect, scale=1, seed=5)(sources, layer="x")
    torch.testing.assert_close(mine.float(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_dare_of_peft_drops_and_rescales_alike() -> None:
    from peft.utils import merge_utils

    wide = torch.ones(400, 400)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = merge_utils.prune(wide, 0.3, method="random", rescale=True)
    (mine, _) = by_lot(
        torch.stack([wide, wide]), [torch.Generator().manual_seed(i) for i in range(2)], density=0.3, epsilon=0
    )
    torch.testing.assert_close(mine.unique(), theirs.unique())
    assert float(mine.mean()) == pytest.approx(float(theirs.mean()), abs=0.03)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The density")
def test_an_election_by_count_agrees_but_for_ties_which_peft_gives_to_plus() -> None:
    """Of four sources three entries in eight are tied; PEFT takes the positive mean there, so -ΔW does not give -ΔW."""
    from peft.utils import merge_utils

    def theirs(sources: Sequence[torch.Tensor]) -> torch.Tensor:
        return merge_utils.ties(list(sources), torch.ones(len(sources)), 1.0, "frequency")

    merge = TIES(density=1, elect="count", scale=1)
    odd, even = stack(3), stack(4)
    torch.testing.assert_close(merge(odd, layer="").float(), theirs(odd), rtol=1e-5, atol=1e-6)
    tied = torch.stack(even).sign().sum(0) == 0
    assert float(tied.double().mean()) == pytest.approx(3 / 8, abs=0.1)
    mine, other = merge(even, layer="").float(), theirs(even)
    torch.testing.assert_close(mine[~tied], other[~tied], rtol=1e-5, atol=1e-6)
    assert (other[tied] > 0).all()
    assert float((mine[tied] > 0).double().mean()) == pytest.approx(0.5, abs=0.15)
    turned = [-source for source in even]
    torch.testing.assert_close(merge(turned, layer="").float(), -mine)
    assert (theirs(turned)[tied] != -other[tied]).all()
