"""What evaluations ask a network, whole: tokens and their words, attention, and gradients that leave no trace."""

import copy
import dataclasses
import json
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from invented import BATCHING, Mild, minilm
from transformers import BertConfig, BertModel
from using.test_judging import data_of

from hatemtl.corpora.base import Posts
from hatemtl.encoders.fast import is_fast
from hatemtl.errors import UserError
from hatemtl.evaluations.base import Predicted
from hatemtl.evaluations.faithfulness import Faithfulness
from hatemtl.evaluations.plausibility import Plausibility
from hatemtl.methods.mtl_lora import MTLLoRA
from hatemtl.methods.peft_adapters.library import PEFTLoRA
from hatemtl.network.module import MultitaskModule
from hatemtl.objective.weighting import Sum
from hatemtl.using.judging import check_test
from hatemtl.using.reader import Reader

WAYS: dict[str, Any] = {
    **{"task": "label", "truth": "rationale", "rationale_task": "marks", "protocols": ["official", "joined"], "top": 2},
    **{"layer": -1, "head": None, "steps": 3, "outside": None},
}
ALL = ["rationale", "attention", "gradient_input", "integrated_gradients"]


@dataclass(frozen=True, kw_only=True)
class Mine(Mild):
    """The same posts, to be tested; with `pairs` each read with another text."""

    splits: ClassVar[list[str]] = ["test"] * 6
    pairs: bool = False

    def load(self) -> Posts:
        posts = super().load()
        return dataclasses.replace(posts, pairs=[("or so",)] * 6) if self.pairs else posts


@cache
def bert() -> Any:
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**size, vocab_size=len(minilm()), attn_implementation="eager")
    return BertModel(config, add_pooling_layer=False)


def reader(method: str = "lora", max_length: int = 128, *, pairs: bool = False) -> Reader:
    torch.manual_seed(0)
    data = data_of(label=(Mine(pairs=pairs), "label"), marks=(Mine(pairs=pairs), "rationale"))
    data.tokenize(minilm(), max_length)
    learning: dict[str, Any] = {"learning_rate": 1e-3, "body_dropout": False}
    if method == "mtl_lora":
        way: Any = MTLLoRA(
            tasks=["label", "marks"], rank=2, alpha=2, ups=2, temperature=1.0, learning_rate=1e-3, body_dropout=False
        )
    else:
        way = PEFTLoRA(rank=2, alpha=2, dropout=0.0, targets=None, leave_out=[], **learning)
    model: Any = way.attach(copy.deepcopy(bert()), name="run", seed=0).model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape)
    heads = {name: task.head(hidden_size=16, space=data.spaces[name]) for name, task in data.tasks.items()}
    never: Any = SimpleNamespace()
    weights = dict.fromkeys(heads, 1.0)
    module = MultitaskModule(model, heads, weights=weights, weighting=Sum, optimization=never, seed=0)
    return Reader(module, SimpleNamespace(device="cpu", arithmetic=nullcontext, int8=False), data, max_length)


def judged(asked: Reader, kind: Any, **given: Any) -> dict[str, float]:
    said: dict[str, Predicted] = asked.predicted("test")
    column = Mine().load().columns["rationale"]
    rows = said["label"].posts
    posts = {"label": {"rationale": dataclasses.replace(column, values=column.values[rows], has=column.has[rows])}}
    settings = {**WAYS, "explainers": ALL, **given}
    return {row.metric: row.value for row in kind(**settings).rows(said, posts, asked)}


def test_what_the_test_would_refuse_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    def check(asked: Reader, **given: Any) -> None:
        ways = {**WAYS, "explainers": ["attention"], **given}
        check_test({"mine": Faithfulness(**ways, aopc=False)}, asked.data, asked)

    asked, path = reader(), tmp_path / "scores.jsonl"
    before = {name: value.clone() for name, value in asked.module.state_dict().items()}
    check(asked, explainers=ALL)
    assert all(torch.equal(before[name], value) for name, value in asked.module.state_dict().items())
    for layer in (2, -3):
        with pytest.raises(UserError, match=rf"^evaluations\.mine\.layer={layer}: expected 0 to 1, or -1"):
            check(asked, layer=layer)
    with pytest.raises(UserError, match=r"^evaluations\.mine\.head=2: expected 0 to 1, or null"):
        check(asked, head=2)
    with pytest.raises(UserError, match=r"^evaluations\.mine\.task=label: expected posts of one text each"):
        check(reader(pairs=True))
    words = {post: len(text.split(" ")) for post, text in zip(Mine().load().ids, Mine.texts, strict=True)}
    for some, said in (
        ({"p0": words["p0"]}, "no line for post 'p3'"),
        ({"p0": words["p0"], "p2": 40}, "line 2: 40 scores for the 3 words"),
    ):
        path.write_text("".join(json.dumps({"post_id": p, "scores": [0] * n}) + "\n" for p, n in some.items()))
        with pytest.raises(UserError, match=rf"^evaluations\.mine\.outside=.*scores\.jsonl.*{said}"):
            check(asked, explainers=["outside"], outside=str(path))


def test_every_token_is_of_a_word_also_where_it_is_cut_off() -> None:
    whole, short = reader(), reader(max_length=5)
    for post in range(6):
        tokens, cut = whole.tokens(post), short.tokens(post)
        words = minilm()(Mild.texts[post].split(" "), is_split_into_words=True).word_ids()
        assert tokens.words.tolist() == [-1 if word is None else word for word in words]
        assert len(tokens.cut) == 0
        kept = [*cut.words[cut.words >= 0].tolist(), *cut.cut.tolist()]
        assert kept == [word for word in words if word is not None]
        assert len(cut.ids) <= 5
    assert len(short.tokens(3).cut)
    assert whole.named(3) == ("p3", 3)
    with pytest.raises(UserError, match="'p0' is read with a second text"):
        reader(pairs=True).tokens(0)


@pytest.mark.parametrize("method", ["lora", "mtl_lora"])
@pytest.mark.parametrize("max_length", [128, 5])
def test_explaining_changes_nothing_of_the_network(method: str, max_length: int) -> None:
    asked = reader(method, max_length)
    module = asked.module
    assert is_fast(module.encoder) is (method == "lora")
    module.encoder.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    flags = {name: (p.requires_grad, p.grad) for name, p in module.named_parameters()}
    said = asked.predicted("test")
    rows = judged(asked, Plausibility) | judged(asked, Faithfulness, aopc=True)
    assert len(rows) == 4 * (2 * (3 + 4) + 2 * 2)
    assert all(np.isfinite(value) for value in rows.values())
    assert flags == {name: (p.requires_grad, p.grad) for name, p in module.named_parameters()}
    assert module.encoder.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    again = reader(method, max_length)
    again.module.load_state_dict(before)
    for task, of in again.predicted("test").items():
        assert all(np.array_equal(a, b) for a, b in zip(of.scores, said[task].scores, strict=True))


def test_gradients_are_of_embeddings_alone_and_of_the_task_that_reads() -> None:
    asked = reader("mtl_lora")
    ((_, batch),) = list(asked.batches([asked.tokens(0).ids]))
    with asked.gradients():
        embeddings = asked.through.embed(batch).detach().requires_grad_()
        for task in ("label", "marks"):
            logits = asked.through.logits(batch, task, embeddings)
            plain = asked.through(batch, [task])[task]
            torch.testing.assert_close(logits, plain)
            (gradient,) = torch.autograd.grad(logits.sum(), embeddings)
            assert gradient.abs().sum() > 0
        first, second = (asked.through.attention(batch, task, layer=-1, head=None) for task in ("label", "marks"))
    assert not torch.allclose(first, second)
    assert not any(p.grad is not None for p in asked.module.parameters())


def test_what_is_known_of_a_batch_does_not_depend_on_the_others() -> None:
    asked = reader()
    posts = [asked.tokens(post) for post in range(6)]
    with asked.inference():
        whole = {int(p): w[: len(posts[p].ids)] for places, b in asked.batches([t.ids for t in posts]) for p, w in
                 zip(places, asked.through.attention(b, "label", layer=-1, head=None), strict=True)}  # fmt: skip
        for place, tokens in enumerate(posts):
            ((_, batch),) = list(asked.batches([tokens.ids]))
            alone = asked.through.attention(batch, "label", layer=-1, head=None)[0]
            torch.testing.assert_close(whole[place], alone, atol=1e-6, rtol=1e-5)
    assert asked.once("a", lambda: 1) == asked.once("a", lambda: 2) == 1
    assert BATCHING is asked.data.batching
