"""What merges are told of posts: gathered from each source as it computes, equal to what the definitions say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.peft_adapters.test_train_and_load import lora
from methods.test_base import RATES, encoder, hidden, save
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.batches.batch import Batch
from hatemtl.errors import UserError
from hatemtl.heads.base import Head
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.labels import LabelSpace
from hatemtl.merging.informed import packed, unpacked
from hatemtl.merging.learned import Learned
from hatemtl.methods.full import Full
from hatemtl.network.merge_search import search
from hatemtl.network.merge_statistics import _fishers, _grams, as_source, named, statistics
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.seeds import generator

SPACE = LabelSpace("multilabel", ("a", "b", "c"))
LAYER = "encoder.layer.0.attention.self.query"


def head(seed: int = 0) -> MultilabelHead:
    torch.manual_seed(seed)
    return MultilabelHead(hidden_size=32, space=SPACE, pooling="mean", layers=1, dropout=0.0, threshold=0.5, balance=0.0)


def one_label(seed: int = 0) -> MulticlassHead:
    torch.manual_seed(seed)
    space = LabelSpace("multiclass", ("a", "b", "c"))
    return MulticlassHead(
        hidden_size=32, space=space, pooling="mean", layers=1, dropout=0.0, label_smoothing=0.0, balance=0.0
    )


def batches(posts: int = 12, *, each: int = 4) -> list[Batch]:
    draw = torch.Generator().manual_seed(3)
    found = []
    for first in range(0, posts, each):
        tokens, mask = torch.randint(3, 20, (each, 7), generator=draw), torch.ones(each, 7, dtype=torch.long)
        mask[1, 4:] = 0
        targets = (torch.rand(each, 3, generator=draw) < 0.5).float()
        has = torch.ones(each, dtype=torch.bool)
        found.append(Batch(tokens, mask, {"target": targets}, {"target": has}, torch.arange(first, first + each)))
    return found


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_inside_the_encoder_is_the_source_and_afterwards_itself(kind: str, tmp_path: Path) -> None:
    lora_formats = save(lora(), tmp_path / "lora", kind)
    full_source = save(Full(path=None, **RATES), tmp_path / "full", kind)
    model = encoder(kind)
    before = hidden(model)
    for folder, source in (("lora", lora_formats), ("full", full_source)):
        with as_source(model, SavedRun(tmp_path / folder)):
            torch.testing.assert_close(hidden(model), hidden(source), atol=1e-5, rtol=1e-4)
        assert torch.equal(hidden(model), before)


def test_a_gram_matrix_is_of_the_inputs_of_tokens_without_padding(tmp_path: Path) -> None:
    save(lora(), tmp_path / "part_1")
    model, run, posts = encoder(), SavedRun(tmp_path / "part_1"), batches()
    [found] = statistics("gram", model, [run], lambda run: {}, posts)
    inputs: dict[str, list[Tensor]] = {path: [] for path in found}
    with as_source(model, run):
        handles = [
            model.get_submodule(path).register_forward_pre_hook(
                lambda module, given, path=path: inputs[path].append(given[0])
            )
            for path in found
        ]
        with torch.no_grad():
            for batch in posts:
                model(**batch.inputs)
        for handle in handles:
            handle.remove()
    assert len(found) == 10
    for path, given in inputs.items():
        kept = torch.cat([x[batch.attention_mask.bool()] for x, batch in zip(given, posts, strict=True)]).double()
        expected = kept.T @ kept / len(kept)
        torch.testing.assert_close(unpacked(found[path], len(expected)), expected, atol=1e-6, rtol=1e-5)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def likely(some: Head, logits: Tensor) -> list[Tensor]:
    """-log p of every labelling of one post: of 2³ for any number of labels, of 3 for one."""
    if some.kind == "multilabel":
        every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
        return [F.binary_cross_entropy_with_logits(logits, labels[None], reduction="sum") for labels in every]
    return [F.cross_entropy(logits, label[None]) for label in torch.arange(3)]


def alone(model: nn.Module, some: Head, batch: Batch, post: int) -> Tensor:
    """What the head says of one post that is read by itself, without padding."""
    one = {key: value[post : post + 1, : int(batch.attention_mask[post].sum())] for key, value in batch.inputs.items()}
    return some(model(**one).last_hidden_state, one["attention_mask"])


LAYERS = (LAYER, "encoder.layer.1.output.dense")


@pytest.mark.parametrize("make", [head, one_label])
def test_fisher_information_is_the_mean_squared_gradient_of_a_posts_own_surprise(
    make: Callable[[], Head], tmp_path: Path
) -> None:
    """The reference: autograd, one post at a time and without padding, for the labels that the same lots draw."""
    save(lora(), tmp_path / "part_1")
    model, run, posts, some = encoder(), SavedRun(tmp_path / "part_1"), batches(), make()
    [found] = statistics("fisher", model, [run], lambda run: {"target": some}, posts)
    weights = [model.get_parameter(f"{path}.weight") for path in LAYERS]
    expected, draw = [torch.zeros_like(weight) for weight in weights], generator(0, "fisher")
    with as_source(model, run):
        for batch in posts:
            for post in range(len(batch)):
                logits = alone(model, some, batch, post)
                p = some.scores(logits.detach())
                if some.kind == "multilabel":
                    surprise = F.binary_cross_entropy_with_logits(
                        logits, torch.bernoulli(p, generator=draw), reduction="sum"
                    )
                else:
                    surprise = F.cross_entropy(logits, torch.multinomial(p, 1, generator=draw)[0])
                for total, gradient in zip(expected, torch.autograd.grad(surprise, weights), strict=True):
                    total += gradient.square() / 12
    for path, value in zip(LAYERS, expected, strict=True):
        torch.testing.assert_close(found[path], value.detach(), atol=1e-4 * float(value.max()), rtol=1e-3)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("make", [head, one_label])
def test_labels_are_drawn_as_the_source_predicts_them(make: Callable[[], Head], tmp_path: Path) -> None:
    """The reference: the definition, a mean over all labels, each as likely as predicted. The lots are drawn many times."""
    save(lora(), tmp_path / "part_1")
    model, run, [batch], some = encoder(), SavedRun(tmp_path / "part_1"), batches(each=12), make()
    with torch.no_grad():
        for parameter in some.parameters():
            parameter.mul_(4)  # no label is as likely as another
    weights = [model.get_parameter(f"{path}.weight") for path in LAYERS]
    expected = [torch.zeros_like(weight) for weight in weights]
    with as_source(model, run):
        for post in range(len(batch)):
            for surprise in likely(some, alone(model, some, batch, post)):
                for total, gradient in zip(expected, torch.autograd.grad(surprise, weights, retain_graph=True), strict=True):
                    total += gradient.square() * torch.exp(-surprise.detach()) / len(batch)
        model.requires_grad_(False)
        found = _fishers(model, LAYERS, {"target": some}, [batch] * 60, torch.Generator().manual_seed(0))
    for path, value in zip(LAYERS, expected, strict=True):
        assert float(found[path].sum() / value.sum()) == pytest.approx(1, abs=0.1)
        assert float((found[path] - value).norm() / value.norm()) < 0.2


def test_layers_that_also_read_positions_are_told_by_posts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeBERTa's query and key layers read relative positions after the posts."""
    from transformers import DebertaV2Config, DebertaV2Model

    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    positions = {"relative_attention": True, "position_buckets": 8, "share_att_key": True, "pos_att_type": ["p2c", "c2p"]}
    torch.manual_seed(0)
    model = DebertaV2Model(DebertaV2Config(**size, **positions)).eval().requires_grad_(False)
    path, posts = "encoder.layer.0.attention.self.query_proj", batches()
    found = _grams(model, [path], posts)[path]
    expected = torch.zeros(32, 32, dtype=torch.float64)
    with torch.no_grad():
        for batch in posts:  # what the first layer reads are the embeddings
            x = model.embeddings(input_ids=batch.input_ids, mask=batch.attention_mask)[batch.attention_mask.bool()].double()
            expected += x.T @ x
    expected /= sum(batch.tokens for batch in posts)
    torch.testing.assert_close(unpacked(found, 32), expected, atol=1e-6, rtol=1e-5)
    some = {"target": head()}
    fisher = _fishers(model, [path], some, posts, torch.Generator().manual_seed(0))[path]
    assert fisher.shape == (32, 32)
    assert (fisher >= 0).all()
    assert fisher.any()
    monkeypatch.setattr("hatemtl.network.merge_statistics.TOKENS", 1)  # positions stand in one row, as a post by itself does
    again = _fishers(model, [path], some, posts, torch.Generator().manual_seed(0))[path]
    torch.testing.assert_close(again, fisher, atol=1e-5 * float(fisher.max()), rtol=1e-3)


@pytest.mark.parametrize(("kind", "few_tokens"), [("gram", 4), ("fisher", 16)])
def test_how_many_tokens_are_computed_at_once_changes_nothing(
    kind: str, few_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(lora(), tmp_path / "part_1")
    seen: list[int] = []
    model, runs = encoder(), [SavedRun(tmp_path / "part_1")]
    model.get_input_embeddings().register_forward_hook(lambda module, given, output: seen.append(len(output)))
    whole, few = [], []
    for tokens, found in ((256, whole), (few_tokens, few)):
        monkeypatch.setattr("hatemtl.network.merge_statistics.TOKENS", tokens)
        found += statistics(kind, model, runs, lambda run: {"target": head()}, batches(each=6))
    assert seen == [6, 6, 2, 2, 2, 2, 2, 2]
    for path, value in whole[0].items():
        torch.testing.assert_close(few[0][path], value, atol=1e-5 * float(value.abs().max()), rtol=1e-3)


def kept(kind: str, *, hidden: int, wide: int, layers: int) -> int:
    """Bytes of four sources' statistics, of 4 a number: q, k and v have one Gram matrix."""

    def gram(width: int) -> int:
        return len(packed(torch.empty(width, width, device="meta")))

    layer = {"gram": 2 * gram(hidden) + gram(wide), "fisher": 3 * hidden**2 + 2 * hidden * wide}
    return 4 * 4 * layers * layer[kind]


@pytest.mark.parametrize("kind", ["gram", "fisher"])
def test_statistics_of_four_sources_of_a_base_size_encoder_stay_well_under_2_gib(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(lora(), tmp_path / "part_1")
    runs = [SavedRun(tmp_path / "part_1")] * 4
    assert kept(kind, hidden=768, wide=3072, layers=12) < 1.2 * 2**30
    monkeypatch.setattr("hatemtl.merging.informed.ROWS", 4)  # matrices of this size are one block otherwise
    found = statistics(kind, encoder(), runs, lambda run: {"target": head()}, batches(4))
    memory = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for one in found for value in one.values()
    }
    assert sum(memory.values()) == kept(kind, hidden=32, wide=48, layers=2)


def test_statistics_have_the_names_that_a_method_merges_by() -> None:
    model = encoder("modernbert")
    path = next(path for path, module in model.named_modules() if path.endswith("Wqkv"))
    gram, fisher = torch.eye(32), torch.arange(96 * 32.0).view(96, 32)
    assert {key: value.shape for key, value in named({path: gram}, model, "adapterhub").items()} == {
        f"{path}.{name}": (32, 32) for name in "qkv"
    }
    assert torch.equal(named({path: fisher}, model, "adapterhub")[f"{path}.v"], fisher[64:])
    assert named({path: fisher}, model, "peft").keys() == {path}
    assert named({path: fisher}, model, "full").keys() == {f"{path}.weight"}


LEARNED: dict[str, Any] = {"start": None, "posts": 12, "seed": 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "steps"),
    [
        ({"search": "gradient", "by": "source", "rate": 0.2, "loss": 1.0}, 60),
        ({"search": "gradient", "by": "layer", "rate": 0.2, "loss": 1.0}, 60),
        ({"search": "cmaes", "by": "source", "rate": 0.5, "loss": 1.0}, 15),
        ({"search": "gradient", "by": "layer", "rate": 0.1, "entropy": 1.0}, 30),
        ({"search": "cmaes", "by": "source", "rate": 0.5, "error": 1.0, "loss": 0.1}, 5),
    ],
    ids=str,
)
def test_a_search_finds_better_coefficients_and_leaves_all_as_it_was(
    how: dict[str, Any], steps: int, tmp_path: Path
) -> None:
    for i in (1, 2):
        save(lora(), tmp_path / f"part_{i}", change=i)
    runs = [SavedRun(tmp_path / f"part_{i}") for i in (1, 2)]
    model, some, posts = encoder(), head(), batches(each=12)
    before, weights = hidden(model), {key: value.clone() for key, value in some.state_dict().items()}
    with as_source(model, runs[0]), torch.no_grad():  # what the first source alone would say is right
        for batch in posts:
            logits = some(model(**batch.inputs).last_hidden_state, batch.attention_mask)
            batch.targets["target"] = (logits > logits.median(dim=0).values).float()
    merge = Learned(**{"loss": 0.0, "entropy": 0.0, "error": 0.0, "steps": steps, **how, **LEARNED})
    coefficients, trace = search(merge, model, runs, {"target": some}, posts)
    value = [sum(row[name] * weight for name, weight in merge.objectives.items()) for row in trace]
    assert min(value) < value[0]  # the weights at the start
    for by_layer in coefficients:
        assert (len({float(x) for x in by_layer.values()}) == 1) == (how["by"] == "source")
    assert torch.equal(hidden(model), before)
    assert all(torch.equal(value, weights[key]) for key, value in some.state_dict().items())
    assert all(parameter.requires_grad for parameter in [*model.parameters(), *some.parameters()])
    torch.rand(2)
    again, _ = search(merge, model, runs, {"target": some}, posts)
    assert all(torch.equal(a[layer], b[layer]) for a, b in zip(coefficients, again, strict=True) for layer in a)


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    good = {
        "loss": 1.0,
        "entropy": 0.0,
        "error": 0.0,
        "by": "source",
        "search": "gradient",
        "steps": 1,
        "rate": 0.1,
        **LEARNED,
    }
    for wrong, said in (
        ({"loss": -1}, "merge.loss=-1: expected how much it counts, a number from 0"),
        ({"error": 1.0}, "merge.error=1.0: a metric has no gradient; type merge.search=cmaes"),
        ({"loss": 0}, "nothing to search by; type merge.loss=1"),
        ({"rate": float("inf")}, "merge.rate=inf: expected a number above 0"),
        ({"start": float("nan")}, "merge.start=nan: expected a finite number"),
        ({"steps": 0}, "merge.steps=0: expected a whole number from 1"),
        ({"rate": 0}, "merge.rate=0: expected a number above 0"),
    ):
        with pytest.raises(UserError, match=said):
            Learned(**{**good, **wrong})
    save(Full(path=None, **RATES), tmp_path / "full")
    with pytest.raises(UserError, match="merge=learned weighs LoRAs"):
        search(Learned(**good), encoder(), [SavedRun(tmp_path / "full")], {"target": head()}, batches())
    with pytest.raises(UserError, match="searches its coefficients on posts during a run"):
        Learned(**good)([torch.zeros(2, 2)], layer="x")
