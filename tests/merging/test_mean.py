from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import pytest
import torch

from hatemtl.errors import UserError
from hatemtl.merging.lora import LoRAUpdate, Updates
from hatemtl.merging.mean import Exact, Linear, Merge

IN, OUT = 32, 20
LAYERS = ("encoder.0.query", "encoder.0.value", "encoder.1.query")


def source(seed: int, *, rank: int = 4, scale: float = 2.0, layers: Sequence[str] = LAYERS) -> dict[str, LoRAUpdate]:
    draw = torch.Generator().manual_seed(seed)
    return {
        layer: LoRAUpdate(torch.randn(rank, IN, generator=draw), torch.randn(OUT, rank, generator=draw), scale)
        for layer in layers
    }


def mean(sources: Sequence[Updates]) -> dict[str, torch.Tensor]:
    """The mean of the updates as it is defined, over dense matrices."""
    layers = dict.fromkeys(layer for source in sources for layer in source)
    zero = torch.zeros(OUT, IN, dtype=torch.float64)
    return {layer: sum((s[layer].dense() for s in sources if layer in s), zero) / len(sources) for layer in layers}


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The relative Frobenius distance of a from b."""
    return float((a - b).norm() / b.norm())


UNLIKE = [source(0, rank=4, scale=2.0), source(1, rank=1, scale=-0.5), source(2, rank=6, scale=1.0)]


def test_the_lossless_mean_is_the_mean_of_the_dense_updates() -> None:
    merged, lost = Exact(rank=None)(UNLIKE)
    for layer, expected in mean(UNLIKE).items():
        assert merged[layer].rank == 11
        assert apart(merged[layer].dense(), expected) < 1e-6
    assert lost == dict.fromkeys(LAYERS, 0.0)


@pytest.mark.parametrize("rank", [1, 4, 10])
def test_the_cut_mean_is_the_best_of_its_rank(rank: int) -> None:
    merged, lost = Exact(rank=rank)(UNLIKE)
    for layer, expected in mean(UNLIKE).items():
        U, S, Vh = torch.linalg.svd(expected, full_matrices=False)
        assert merged[layer].rank == rank
        assert apart(merged[layer].dense(), U[:, :rank] * S[:rank] @ Vh[:rank]) < 1e-5
        assert lost[layer] == pytest.approx(float(S[rank:].square().sum() / S.square().sum()), rel=1e-6)


@pytest.mark.parametrize("rank", [11, 12, 500])
def test_a_rank_that_needs_no_cut_is_lossless(rank: int) -> None:
    merged, lost = Exact(rank=rank)(UNLIKE)
    assert set(lost.values()) == {0.0}
    for layer, expected in mean(UNLIKE).items():
        assert apart(merged[layer].dense(), expected) < 1e-6


@pytest.mark.parametrize("rank", [None, 4, 16])
def test_the_mean_of_one_source_is_that_source(rank: int | None) -> None:
    only = source(0)
    merged, lost = Exact(rank=rank)([only])
    assert set(lost.values()) == {0.0}
    for layer in LAYERS:
        assert apart(merged[layer].dense(), only[layer].dense()) < 1e-6


def test_the_mean_of_equals_is_each_of_them_at_the_rank_of_one() -> None:
    only = source(0)
    merged, lost = Exact(rank=4)([only, only, only])
    for layer in LAYERS:
        assert apart(merged[layer].dense(), only[layer].dense()) < 1e-6
        assert lost[layer] < 1e-10


@pytest.mark.parametrize("merge", [Exact(rank=None), Exact(rank=3), Linear()])
def test_the_order_of_the_sources_does_not_matter(merge: Merge) -> None:
    sources = [source(seed) for seed in range(3)]
    first, lost = merge(sources)
    for order in permutations(sources):
        other, other_lost = merge(order)
        for layer in LAYERS:
            assert apart(other[layer].dense(), first[layer].dense()) < 1e-5
            assert other_lost[layer] == pytest.approx(lost[layer], abs=1e-9)


@pytest.mark.parametrize("rank", [None, 3])
def test_a_layer_that_a_source_lacks_counts_as_an_update_of_zero(rank: int | None) -> None:
    sources = [source(0), source(1, layers=LAYERS[:1]), source(2, layers=LAYERS[1:])]
    nothing = LoRAUpdate(torch.zeros(4, IN), torch.zeros(OUT, 4))
    zeros = [{layer: source.get(layer, nothing) for layer in LAYERS} for source in sources]
    merged, lost = Exact(rank=rank)(sources)
    filled, filled_lost = Exact(rank=rank)(zeros)
    assert set(merged) == set(LAYERS)
    for layer in LAYERS:
        assert apart(merged[layer].dense(), filled[layer].dense()) < 1e-5
        assert lost[layer] == pytest.approx(filled_lost[layer], abs=1e-9)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(rank: int) -> None:
    with pytest.raises(UserError, match=rf"merge\.rank={rank}.*null"):
        Exact(rank=rank)


def test_merging_does_not_change_its_sources() -> None:
    sources = [source(0), source(1)]
    for merge in (Exact(rank=2), Exact(rank=None), Linear()):
        merge(sources)
    for seed, given in enumerate(sources):
        for layer, update in source(seed).items():
            assert torch.equal(update.dense(), given[layer].dense())


def test_factor_averaging_is_far_from_the_mean_of_sources_that_started_apart() -> None:
    sources = [source(seed) for seed in range(4)]
    for layer, expected in mean(sources).items():
        assert apart(Linear()(sources)[0][layer].dense(), expected) > 0.5


@pytest.mark.parametrize(("drift", "distance"), [(0.0, 1e-6), (0.05, 0.1)])
def test_factor_averaging_is_near_the_mean_of_sources_that_share_their_start(drift: float, distance: float) -> None:
    start = source(0)
    sources = [
        {layer: LoRAUpdate(start[layer].A + drift * moved.A, moved.B, moved.scale) for layer, moved in source(seed).items()}
        for seed in range(1, 5)
    ]
    for layer, expected in mean(sources).items():
        assert apart(Linear()(sources)[0][layer].dense(), expected) < distance


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (source(1, rank=5), r"one rank.*merge=exact"),
        (source(1, layers=LAYERS[:2]), r"same layers.*merge=exact"),
        (source(1, scale=1.0), r"one scale.*merge=exact"),
    ],
)
def test_factor_averaging_refuses_what_it_cannot_average(other: Updates, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Linear()([source(0), other])


def tiny_bert() -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, pad_token_id=0
    )
    return BertModel(config, add_pooling_layer=False).eval()


def test_factor_averaging_is_what_adapter_hub_calls_linear() -> None:
    import adapters

    from hatemtl.methods.adapter_hub import updates

    model = tiny_bert()
    adapters.init(model)
    config = adapters.LoRAConfig(
        r=3, alpha=6, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True, init_weights="bert"
    )
    names = ["one", "two", "three"]
    for name in names:  # both factors are drawn at random, for every source anew
        model.add_adapter(name, config=config)
    model.average_adapter("average", names, weights=[1 / 3] * 3, combine_strategy="linear")
    theirs, sources = updates(model, "average"), [updates(model, name) for name in names]
    mine, _ = Linear()(sources)
    assert set(mine) == set(theirs)
    assert len(mine) == 2 * 5  # two layers, q k v and both feed-forward matrices
    for layer, update in theirs.items():
        assert update.scale == 2
        assert float(update.dense().norm()) > 0
        assert apart(mine[layer].dense(), update.dense()) < 1e-6
        exact = Exact(rank=None)(sources)[0][layer].dense()
        assert apart(update.dense(), exact) > 0.5


@pytest.mark.parametrize(
    ("rank", "of_sources"),
    [
        pytest.param(3, (3, 3), id="one rank everywhere"),
        pytest.param(None, (3, 3), id="lossless"),
        pytest.param(None, (1, 1), id="lossless, of rank one"),
        pytest.param(5, (3, 3), id="cut above a source's rank"),
        pytest.param(20, (12, 12), id="cut above the layer's width"),
    ],
)
def test_adapter_hub_takes_in_a_merge_whatever_the_rank_of_its_layers(
    tmp_path: Path, rank: int | None, of_sources: tuple[int, int]
) -> None:
    """One source adapts q and v, the other q alone."""
    from hatemtl.methods.adapter_hub import LoRA, MergeLoRA, loras, save, updates

    sources = []
    for name, r, attention in (("source_1", of_sources[0], ["q", "v"]), ("source_2", of_sources[1], ["q"])):
        rest = {"dropout": 0.0, "intermediate": False, "output": False, "learning_rate": 1.0, "body_dropout": False}
        model = LoRA(rank=r, alpha=2 * r, attention=attention, leave_out=[], **rest).attach(tiny_bert(), name=name, seed=0)
        for _, _, lora in loras(model, name):
            torch.nn.init.normal_(lora.lora_B)
        (tmp_path / name).mkdir()
        save(model, name, tmp_path / name)
        sources.append(updates(model, name))
        (tmp_path / name / "config.yaml").write_text("{}")
        (tmp_path / name / "labels.json").write_text("{}")
        (tmp_path / name / "run.json").write_text('{"library": "adapterhub", "method": "ah_lora16"}')
    exact = Exact(rank=rank)
    method = MergeLoRA(sources=str(tmp_path / "source_*"), merge=exact, learning_rate=1.0, body_dropout=False)
    loaded = updates(method.attach(tiny_bert(), name="merge", seed=0), "merge")
    for layer, update in exact(sources)[0].items():
        assert apart(loaded[layer].dense(), update.dense()) < 1e-5


@pytest.mark.slow
def test_the_lossless_mean_is_what_peft_calls_cat() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=3, lora_alpha=6, target_modules=["query", "value"], init_lora_weights=False)
    model = get_peft_model(tiny_bert(), config, adapter_name="one")
    model.add_adapter("two", LoraConfig(r=5, lora_alpha=5, target_modules=["query", "value"], init_lora_weights=False))
    model.add_weighted_adapter(["one", "two"], [0.5, 0.5], "cat", combination_type="cat")
    layers = {path: layer for path, layer in model.named_modules() if "cat" in getattr(layer, "lora_A", ())}
    assert len(layers) == 4

    def theirs(name: str) -> dict[str, LoRAUpdate]:
        return {
            path: LoRAUpdate(module.lora_A[name].weight.detach(), module.lora_B[name].weight.detach(), module.scaling[name])
            for path, module in layers.items()
        }

    merged, _ = Exact(rank=None)([theirs("one"), theirs("two")])
    for path, update in theirs("cat").items():
        assert merged[path].rank == 8
        assert apart(merged[path].dense(), update.dense()) < 1e-6
        assert apart(update.dense(), layers[path].get_delta_weight("cat").double()) < 1e-6
