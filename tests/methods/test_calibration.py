"""What merges are told of posts: gathered from each source as it computes, equal to what the definitions say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from methods.test_adapter_hub import lora
from methods.test_base import RATES, encoder, hidden, save
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.artifacts import SavedRun
from hatemtl.batch import Batch
from hatemtl.errors import UserError
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.labels import LabelSpace
from hatemtl.merging.learned import Learned
from hatemtl.methods.calibration import _fishers, _grams, as_source, named, statistics
from hatemtl.methods.coefficients import search
from hatemtl.methods.full import Full

SPACE = LabelSpace("multilabel", ("a", "b", "c"))
LAYER = "encoder.layer.0.attention.self.query"


def head(seed: int = 0) -> MultilabelHead:
    torch.manual_seed(seed)
    return MultilabelHead(hidden_size=32, space=SPACE, pooling="mean", layers=1, dropout=0.0, threshold=0.5, balance=0.0)


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
    lora_source = save(lora(), tmp_path / "lora", kind)
    full_source = save(Full(path=None, **RATES), tmp_path / "full", kind)
    model = encoder(kind)
    before = hidden(model)
    for folder, source in (("lora", lora_source), ("full", full_source)):
        with as_source(model, SavedRun(tmp_path / folder)):
            torch.testing.assert_close(hidden(model), hidden(source), atol=1e-5, rtol=1e-4)
        assert torch.equal(hidden(model), before)


def test_a_gram_matrix_is_of_the_inputs_of_tokens_without_padding(tmp_path: Path) -> None:
    save(lora(), tmp_path / "part_1")
    model, run, posts = encoder(), SavedRun(tmp_path / "part_1"), batches()
    [found] = statistics("gram", model, [run], lambda run: {}, posts)
    inputs: list[Tensor] = []
    with as_source(model, run):
        handle = model.get_submodule(LAYER).register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
        with torch.no_grad():
            for batch in posts:
                model(**batch.inputs)
        handle.remove()
    kept = torch.cat([x[batch.attention_mask.bool()] for x, batch in zip(inputs, posts, strict=True)]).double()
    torch.testing.assert_close(found[LAYER].double(), kept.T @ kept / len(kept), atol=1e-6, rtol=1e-5)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_fisher_information_is_the_mean_squared_gradient_of_a_posts_own_surprise(tmp_path: Path) -> None:
    save(lora(), tmp_path / "part_1")
    model, run, posts, some = encoder(), SavedRun(tmp_path / "part_1"), batches(), head()
    [found] = statistics("fisher", model, [run], lambda run: {"target": some}, posts)
    weight: nn.Parameter = model.get_submodule(LAYER).weight  # type: ignore[assignment]
    expected, count = torch.zeros_like(weight), 0
    # by its definition the mean over all labels, each as likely as predicted: a post has 2³ of them
    with as_source(model, run):
        for batch in posts:
            for i in range(len(batch)):
                one = {key: value[i : i + 1, : int(batch.attention_mask[i].sum())] for key, value in batch.inputs.items()}
                logits = some(model(**one).last_hidden_state, one["attention_mask"])
                for labels in torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3):
                    surprise = F.binary_cross_entropy_with_logits(logits, labels[None], reduction="sum")
                    [gradient] = torch.autograd.grad(surprise, weight, retain_graph=True)
                    expected += gradient.square() * torch.exp(-surprise.detach())
                count += 1
    expected /= count
    # one label a post is drawn: as large as expected, and large in the same places
    assert float(found[LAYER].sum() / expected.sum()) == pytest.approx(1, abs=0.6)
    together = torch.stack([found[LAYER].float().flatten().sqrt(), expected.flatten().sqrt()])
    assert float(torch.corrcoef(together)[0, 1]) > 0.7
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_layers_that_also_read_positions_are_told_by_posts_alone() -> None:
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
    torch.testing.assert_close(found.double(), expected / sum(batch.tokens for batch in posts), atol=1e-6, rtol=1e-5)
    fisher = _fishers(model, [path], {"target": head()}, posts, torch.Generator().manual_seed(0))[path]
    assert fisher.shape == (32, 32)
    assert (fisher >= 0).all()
    assert fisher.any()


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
        ({"by": "head"}, "merge.by=head"),
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
