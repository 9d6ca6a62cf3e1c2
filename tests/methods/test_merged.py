"""Merges of saved adapters that are no LoRAs, and of what posts must tell of them: what the formulas say, written out."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from methods.adapterhub.test_kinds_of_adapter import adapter
from methods.adapterhub.test_train_and_load import lora
from methods.test_base import RATES, encoder, hidden, save, saved
from network.test_merge_statistics import batches, head
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.batches.batch import Batch
from hatemtl.encoders.fast import restore
from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Needs, Update, dense
from hatemtl.merging.informed import Fisher, RegMean, unpacked
from hatemtl.merging.mean import Linear, Mean, TaskArithmetic
from hatemtl.methods.adapterhub.library import loras, own_parameters, updates
from hatemtl.methods.adapterhub.merged import MergedAdapters
from hatemtl.methods.adapterhub.train_and_load import LoadAdapterHub
from hatemtl.methods.full import Full
from hatemtl.methods.merged import MergedWeights
from hatemtl.network.merge_statistics import informed
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.seeds import generator

FISHER = Fisher(normalize=True, floor=1e-6, posts=12)
REGMEAN = RegMean(alpha=0.7, ridge=1e-3, posts=12)
Weights = dict[str, Tensor]  # by parameter
ANY = ["seq_bn", "double_seq_bn_inv", "par_bn[ln_after=True]", "ia3", "prefix_tuning", "loreft[r=4]", "dora", "vera"]
QUICK = ("double_seq_bn_inv", "prefix_tuning", "dora", "vera")  # modules in and beside layers, magnitudes, shared matrices


def wide(config: str) -> dict[str, Any]:
    """Bottlenecks of 8 in an encoder that is 32 wide."""
    return {"reduction_factor": 4} if any(kind in config for kind in ("_bn", "mam", "unipelt", "compacter")) else {}


def parts(config: str, folder: Path, *changes: int) -> list[SavedRun]:
    for i, change in enumerate(changes, 1):
        saved(adapter(config, **wide(config)), folder / f"part_{i}", change=change)
    return [SavedRun(folder / f"part_{i}") for i in range(1, len(changes) + 1)]


def merging(merge: Any, folder: Path) -> MergedAdapters:
    return MergedAdapters(sources=str(folder / "part_*"), merge=merge, rank=None, **RATES)  # type: ignore[arg-type]


def own_heads(run: SavedRun) -> dict[str, Any]:
    """A head that belongs to what a run is called."""
    return {"target": head(len(run.folder.name))}


def merged(
    merge: Any, folder: Path, posts: list[Batch] | None = None, heads: Callable[[SavedRun], Any] = own_heads
) -> Weights:
    """The parameters that a run would start from, which has been told of the posts what the merge must know."""
    method: Any = merging(merge, folder)
    if merge.needs:
        method, _ = informed(method, encoder(), {}, heads, lambda split, number: posts or batches(), 0)
    found = own_parameters(method.attach(encoder(), name="merged", seed=0).model, "merged")
    return {key: parameter.detach().double() for key, parameter in found.items()}


def loaded(run: SavedRun) -> tuple[Any, dict[str, nn.Parameter]]:
    """The encoder with a saved adapter, by the way that a user takes to test it, and the adapter's parameters."""
    model = LoadAdapterHub(path=str(run.folder), **RATES).attach(encoder(), name="alone", seed=0).model  # type: ignore[arg-type]
    return model.eval(), own_parameters(model, "alone")


def informations(run: SavedRun, posts: list[Batch], some: nn.Module) -> Weights:
    """The mean squared gradient of -log p(y | post) by each trained entry: autograd, one post at a time, unpadded."""
    model, own = loaded(run)
    trained = {key: parameter for key, parameter in own.items() if parameter.requires_grad}
    found = {key: torch.zeros_like(parameter).double() for key, parameter in trained.items()}
    draw, number = generator(0, "fisher"), sum(map(len, posts))
    for batch in posts:
        for post in range(len(batch)):
            one = {k: value[post : post + 1, : int(batch.attention_mask[post].sum())] for k, value in batch.inputs.items()}
            logits = some(model(**one).last_hidden_state, one["attention_mask"])
            labels = torch.bernoulli(logits.detach().sigmoid(), generator=draw)
            surprise = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
            gradients = torch.autograd.grad(surprise, list(trained.values()), allow_unused=True)
            for key, gradient in zip(trained, gradients, strict=True):
                found[key] += 0 if gradient is None else gradient.double().square() / number
    return found


def check(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], atol=2e-5, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("config", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in ANY])
def test_fisher_is_the_mean_weighted_by_each_entrys_information(config: str, tmp_path: Path) -> None:
    """The reference: the information by autograd, and Σ Fᵢ ⊙ Wᵢ / Σ Fᵢ, of the encoders as a user loads them."""
    runs, posts = parts(config, tmp_path, 1, 2, 3), batches()
    W = [{key: p.detach().double() for key, p in loaded(run)[1].items()} for run in runs]
    F_ = [informations(run, posts, head(i)) for i, run in enumerate(runs)]
    sizes = [sum(float(own.square().sum()) for own in source.values()) ** 0.5 for source in F_]
    expected = {}
    for key in W[0]:
        if key not in F_[0]:  # VeRA's matrices are drawn, not trained
            expected[key] = W[0][key]
            continue
        given = torch.stack([source[key] / size for source, size in zip(F_, sizes, strict=True)])
        given += FISHER.floor * given.mean() if given.any() else 1
        expected[key] = (given * torch.stack([w[key] for w in W])).sum(0) / given.sum(0)
    found = merged(FISHER, tmp_path, posts, lambda run: {"target": head(int(run.folder.name[-1]) - 1)})
    check(found, expected)
    mean = torch.cat([torch.stack([w[key] for w in W]).mean(0).flatten() for key in expected])
    assert (torch.cat([value.flatten() for value in expected.values()]) - mean).norm() > 0.02 * mean.norm()


@torch.no_grad()
def read(model: nn.Module, own: dict[str, nn.Parameter], posts: list[Batch]) -> Weights:
    """What each linear layer among an adapter's parameters, but a gate, reads of all tokens, (tokens, in)."""
    restore(model)  # else hatemtl's own layers compute in their place
    seen: dict[str, list[Tensor]] = {key: [] for key in own if ".gate." not in key}
    for key, inputs in seen.items():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.weight is own[key]:
                module.register_forward_pre_hook(lambda _, given, inputs=inputs: inputs.append(given[0]))
    for batch in posts:
        model(**batch.inputs)
    masks = [batch.attention_mask.bool() for batch in posts]
    return {
        key: torch.cat([x[mask] for x, mask in zip(inputs, masks, strict=True)]).double()
        for key, inputs in seen.items()
        if inputs
    }


@pytest.mark.parametrize("config", ["seq_bn", "double_seq_bn_inv", "par_bn[use_gating=True]"])
def test_regmean_is_least_squares_on_what_each_linear_layer_reads(config: str, tmp_path: Path) -> None:
    """The reference: the formula, over what hooks see at the linear layers of the encoders as a user loads them."""
    runs, posts = parts(config, tmp_path, 1, 2, 3), batches()
    grams: list[Weights] = []
    W: list[Weights] = []
    for run in runs:
        model, own = loaded(run)
        W.append({key: parameter.detach().double() for key, parameter in own.items()})
        grams.append({key: x.T @ x / len(x) for key, x in read(model, own, posts).items()})
    expected = {key: torch.stack([w[key] for w in W]).mean(0) for key in W[0]}
    layers = [key for key in expected if key.endswith(".weight") and expected[key].ndim == 2 and ".gate." not in key]
    assert set(layers) == set(grams[0])
    assert len(layers) == {"seq_bn": 4, "double_seq_bn_inv": 12, "par_bn[use_gating=True]": 4}[config]
    for key in layers:
        G = [REGMEAN.alpha * g[key] + (1 - REGMEAN.alpha) * torch.diag(torch.diag(g[key])) for g in grams]
        pull = REGMEAN.ridge * torch.stack([torch.diag(g[key]) for g in grams]).mean()
        G = [g + pull * torch.eye(len(g)) for g in G]
        above = torch.stack([w[key] @ g for w, g in zip(W, G, strict=True)]).sum(0)
        mean, expected[key] = expected[key], above @ torch.linalg.inv(torch.stack(G).sum(0))
        if "adapter_up" in key:  # what is read above a bottleneck is another thing in each source
            assert (expected[key] - mean).norm() > 1e-3 * mean.norm()
    check(merged(REGMEAN, tmp_path, posts), expected)


@pytest.mark.parametrize(
    ("merge", "configs"), [(FISHER, [*ANY, "unipelt", "compacter[phm_dim=2]"]), (REGMEAN, ["seq_bn", "par_bn"])]
)
def test_merging_one_source_gives_it_back(merge: Any, configs: list[str], tmp_path: Path) -> None:
    for i, config in enumerate(configs):
        (run,) = parts(config, tmp_path / str(i), 1)
        check(merged(merge, tmp_path / str(i)), {key: p.detach().double() for key, p in loaded(run)[1].items()})


@pytest.mark.parametrize("merge", [FISHER, REGMEAN], ids=["fisher", "regmean"])
def test_a_merge_into_the_weights_uses_what_posts_say_of_loras(merge: Any, tmp_path: Path) -> None:
    """As a merge of the same LoRAs does that stays beside the weights."""
    for i in (1, 2):
        saved(adapter("lora[r=4,alpha=8,dropout=0.0]"), tmp_path / f"part_{i}", change=i)
    given = {"sources": str(tmp_path / "part_*"), "merge": merge, **RATES}
    told, _ = informed(MergedWeights(**given), encoder(), {}, own_heads, lambda split, number: batches(), 0)
    found = told.attach(encoder(), name="whole", seed=0).model
    plain = MergedWeights(**given | {"merge": Mean(weights=None)}).attach(encoder(), name="whole", seed=0).model
    beside, _ = informed(MergedAdapters(rank=None, **given), encoder(), {}, own_heads, lambda split, number: batches(), 0)
    torch.testing.assert_close(
        hidden(found), hidden(beside.attach(encoder(), name="beside", seed=0).model), atol=1e-5, rtol=1e-4
    )
    assert not torch.allclose(hidden(found), hidden(plain), atol=1e-5)


@pytest.mark.parametrize("merge", [FISHER, REGMEAN], ids=["fisher", "regmean"])
def test_the_order_of_the_sources_does_not_matter(merge: Any, tmp_path: Path) -> None:
    parts("seq_bn", tmp_path / "a", 1, 2, 3)
    parts("seq_bn", tmp_path / "b", 3, 1, 2)
    check(merged(merge, tmp_path / "a"), merged(merge, tmp_path / "b"))


def test_what_is_told_leaves_the_encoder_and_every_draw_alone(tmp_path: Path) -> None:
    parts("double_seq_bn_inv", tmp_path, 1, 2)
    model, heads = encoder(), {"target": head()}
    before, state = hidden(model), torch.get_rng_state()
    for merge in (FISHER, REGMEAN):
        informed(merging(merge, tmp_path), model, {}, lambda run: heads, lambda split, number: batches(), 0)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(hidden(model), before)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_of_other_adapters_linear_is_the_mean_as_the_library_has_it(tmp_path: Path) -> None:
    parts("seq_bn", tmp_path, 1, 2)
    check(merged(Linear(), tmp_path), merged(Mean(weights=None), tmp_path))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("ia3", "ia3"),
        ("prefix_tuning", "prefix"),
        ("loreft[r=4]", "reft"),
        ("mam", "prefix"),
        ("lora|par_bn", "lora"),
        ("compacter[phm_dim=2]", "products in place of matrices"),
    ],
)
def test_regmean_refuses_what_is_more_than_linear_layers(config: str, said: str, tmp_path: Path) -> None:
    parts(config, tmp_path, 1, 2)
    with pytest.raises(UserError, match=rf"part_1 \(.*\) has .*{said}.*; type merge=fisher, .* or merge=mean"):
        merged(REGMEAN, tmp_path)


@pytest.mark.parametrize("merge", [FISHER, REGMEAN], ids=["fisher", "regmean"])
def test_what_cannot_be_merged_is_told_before_a_post_is_read(merge: Any, tmp_path: Path) -> None:
    parts("seq_bn", tmp_path, 1, 2)

    def told(seed: int = 0) -> None:
        informed(merging(merge, tmp_path), encoder(), {}, own_heads, lambda split, number: [], seed)

    with pytest.raises(UserError, match="seed 0, this run has seed 1.*type seed=0"):
        told(seed=1)
    save(lora(), tmp_path / "part_1")
    with pytest.raises(UserError, match="part_1 and part_2 are adapters of different configurations"):
        told()


def test_means_of_any_kind_take_adapters_that_went_on_from_another_run(tmp_path: Path) -> None:
    parts("seq_bn", tmp_path, 1, 2)
    whole = [merged(merge, tmp_path) for merge in (FISHER, REGMEAN, Linear())]
    run = tmp_path / "part_2" / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"sources": {"adapters/mlm": "0123"}}))
    for merge, before in zip((FISHER, REGMEAN, Linear()), whole, strict=True):
        check(merged(merge, tmp_path), before)
    with pytest.raises(UserError, match="part_2 started from adapters/mlm.*type merge=mean"):
        merged(TaskArithmetic(scale=1.0, weights=None), tmp_path)


def test_of_posts_in_several_sequences_the_first_is_read(tmp_path: Path) -> None:
    """As a run has them that also learns to choose."""
    parts("seq_bn", tmp_path, 1, 2)
    [batch] = batches(4, each=4)
    owner, first = torch.tensor([0, 1, 1, 2, 3, 3]), [0, 1, 3, 4]
    ids = torch.full((6, 7), 5)
    ids[first], mask = batch.input_ids, torch.ones(6, 7, dtype=torch.long)
    mask[first] = batch.attention_mask
    several = Batch(ids, mask, batch.targets, batch.has, batch.posts, owner=owner)
    check(merged(FISHER, tmp_path, [several]), merged(FISHER, tmp_path, [batch]))


def test_what_a_merge_says_is_given_and_hangs_on_nothing(tmp_path: Path) -> None:
    for i in (1, 2):
        save(lora(intermediate=i == 1), tmp_path / f"part_{i}", change=i)
    alone = {"ah": lora(), "full": Full(path=None, **RATES)}  # type: ignore[arg-type]
    mean, sources = Mean(weights=None), str(tmp_path / "part_*")
    merged: dict[str, Any] = {
        "ah": MergedAdapters(sources=sources, merge=mean, rank=1, **RATES),  # type: ignore[arg-type]
        "full": MergedWeights(sources=sources, merge=mean, **RATES),  # type: ignore[arg-type]
    }
    for kind, method in merged.items():
        found, plain = (way.attach(encoder(), name="run", seed=0) for way in (method, alone[kind]))
        assert len(found.notes) == 1 and "part_2 does not adapt encoder.layer.0.intermediate.dense" in found.notes[0]
        assert (plain.notes, plain.lost) == ((), {})
        assert vars(found.model).keys() == vars(plain.model).keys()
        assert set(found.lost) == ({path for path, _, _ in loras(found.model, "run")} if kind == "ah" else set())
        assert all(0 < share < 1 for share in found.lost.values())


@dataclass(frozen=True, kw_only=True)
class Doubled(Merge):
    """A merge of one's own, all of it: twice the mean."""

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        return 2 * dense(updates).mean(dim=0)


@dataclass(frozen=True, kw_only=True)
class Widest(Merge):
    """One that must know something of posts: of each layer, the source whose inputs have the greatest norm."""

    posts: int
    statistics: Sequence[Mapping[str, Tensor]] | None = None
    needs: ClassVar[Needs] = "gram"

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        assert self.statistics is not None
        traces = [float(unpacked(own[layer], updates[0].shape[1]).trace()) for own in self.statistics]
        return updates[traces.index(max(traces))]


def test_a_merge_of_ones_own_is_one_class(tmp_path: Path) -> None:
    sources = [save(lora(), tmp_path / f"part_{i}", change=i) for i in (1, 2)]
    by_source = [updates(source, "run") for source in sources]
    made: list[Any] = [merging(merge, tmp_path) for merge in (Doubled(), Widest(posts=12))]
    asked: list[tuple[str, int]] = []

    def posts(split: str, number: int) -> list[Batch]:
        asked.append((split, number))
        return batches()

    assert made[0].merge.needs is None
    told, search = informed(made[1], encoder(), {}, own_heads, posts, 0)
    assert asked == [("train", 12)] and not search.tried
    found = [updates(method.attach(encoder(), name="run", seed=0).model, "run") for method in (made[0], told)]
    for layer, twice in found[0].items():
        one, other = (source[layer].dense() for source in by_source)
        torch.testing.assert_close(twice.dense(), one + other)
        assert any(torch.allclose(found[1][layer].dense(), each, atol=1e-6) for each in (one, other))


def test_full_encoders_merge_into_the_weights(tmp_path: Path) -> None:
    sources = [save(Full(path=None, **RATES), tmp_path / f"part_{i}", change=i) for i in (1, 2)]  # type: ignore[arg-type]
    method = MergedWeights(sources=str(tmp_path / "part_*"), merge=Mean(weights=[1, 3]), **RATES)  # type: ignore[arg-type]
    weights = dict(method.attach(encoder(), name="run", seed=0).model.named_parameters())
    for key, first in sources[0].named_parameters():
        torch.testing.assert_close(weights[key], first / 4 + 3 / 4 * sources[1].get_parameter(key))
