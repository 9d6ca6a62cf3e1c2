"""The frozen lowest layers, computed once: nothing that is learnt or predicted changes."""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composed import refused
from conftest import Outcome
from encoders.fast.test_linear import HALF, LIBRARIES, SHARED, moved, stored
from invented import BATCHING, TEXTS, as_posts, minilm
from methods.test_base import KINDS, trained
from torch import Tensor, nn

from hatemtl.batches.batch import Batch
from hatemtl.batches.tokenized_posts import TokenizedPosts
from hatemtl.encoders.fast.attention import Attention
from hatemtl.errors import UserError
from hatemtl.network.frozen_prefix import Prefix, frozen_layers
from hatemtl.saved_runs.saved_run import SavedRun

DEPTH = 3
every_kind = pytest.mark.parametrize("kind", KINDS)


def encoder(kind: str = "bert", leave_out: list[int] | None = None, library: str = "adapterhub", **other: Any) -> Any:
    """Three narrow layers under MiniLM's vocabulary, without dropout, and a LoRA that has learnt something."""
    cls, config = KINDS[kind]
    config = deepcopy(config)
    config.vocab_size, config.num_hidden_layers, config.pad_token_id = minilm().vocab_size, DEPTH, 0
    if hasattr(config, "layer_types"):
        config.layer_types = [config.layer_types[i % len(config.layer_types)] for i in range(DEPTH)]
    torch.manual_seed(0)
    model = cls(config)
    model.pooler = None
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    method = LIBRARIES[library](**{**SHARED, **other, "leave_out": leave_out if leave_out is not None else [0]})
    return moved(method.attach(model, name="run", seed=0).model)


def pool(texts: list[str] = TEXTS) -> TokenizedPosts:
    return TokenizedPosts(minilm(), 16, [as_posts(texts)])


def filled(model: Any, posts: TokenizedPosts, folder: Path, mark: str = "mark") -> Prefix:
    prefix = Prefix(model)
    prefix.fill(posts, BATCHING.in_order(posts.lengths), folder, mark)
    return prefix


def step(model: Any, batch: Batch, within: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states of the tokens and the gradients of a training step."""
    model.train().zero_grad()
    with within or nullcontext():
        hidden = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    hidden = hidden[batch.attention_mask.bool()]
    (hidden.float() * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    return hidden.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# The same results


@every_kind
@pytest.mark.parametrize("leave_out", [[0], [0, 1]], ids=str)
@pytest.mark.parametrize("library", LIBRARIES)
def test_with_the_prefix_all_is_as_without(library: str, leave_out: list[int], kind: str, tmp_path: Path) -> None:
    """For batches of other posts, in another order and otherwise padded than those that filled it."""
    model, posts = encoder(kind, leave_out, library), pool()
    plain = deepcopy(model)
    prefix = filled(model, posts, tmp_path)
    prefix.install()
    assert len(prefix.layers) == len(leave_out)
    for rows in ([9, 0], [3, 3, 7], [9], [*range(len(posts))][::-1]):
        batch = posts[np.array(rows)]
        assert batch.prefix is not None
        prefix.current = batch.prefix
        (hidden, gradients), (expected, others) = step(model, batch), step(plain, batch)
        torch.testing.assert_close(hidden, expected, atol=1e-6, rtol=1e-5)
        assert gradients.keys() == others.keys() == trained(plain).keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, others[name], atol=1e-5, rtol=1e-4)


def test_with_second_texts_and_choices_all_is_as_without(tmp_path: Path) -> None:
    pairs: list[tuple[str, ...]] = [("so it is", "never here", "x"), (), ("ok then",)] * len(TEXTS)
    model, posts = encoder(), TokenizedPosts(minilm(), 16, [replace(as_posts(TEXTS), pairs=pairs[: len(TEXTS)])])
    plain = deepcopy(model)
    prefix = filled(model, posts, tmp_path)
    prefix.install()
    for rows in ([3, 1], [0, 2, 3], [1], [*range(len(posts))][::-1]):
        batch = posts[np.array(rows)]
        prefix.current = batch.prefix
        with torch.no_grad():
            hidden, expected = (
                some(**batch.inputs).last_hidden_state[batch.attention_mask.bool()] for some in (model, plain)
            )
        torch.testing.assert_close(hidden, expected, atol=1e-6, rtol=1e-5)
    alone = TokenizedPosts(minilm(), 16, [as_posts(TEXTS)])
    filled(plain, alone, tmp_path)
    assert len(files(tmp_path)) == 2


@every_kind
def test_in_bf16_it_differs_by_rounding_alone(kind: str, tmp_path: Path) -> None:
    model, posts = stored(encoder(kind, [0, 1]), torch.bfloat16), pool()
    plain = deepcopy(model)
    prefix = filled(model, posts, tmp_path)
    prefix.install()
    assert posts.prefix is not None
    assert posts.prefix.dtype is torch.bfloat16
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == len(posts.tokens) * 32 * 2
    batch = posts[np.array([9, 0, 4])]
    assert batch.prefix is not None
    prefix.current = batch.prefix
    (hidden, gradients), (expected, others) = step(model, batch, HALF()), step(plain, batch, HALF())
    assert (hidden.float() - expected.float()).norm() < 0.01 * expected.float().norm()
    for name, gradient in gradients.items():
        assert (gradient - others[name]).norm() < 0.03 * others[name].norm(), name


def test_filling_leaves_encoder_and_posts_as_they_were(tmp_path: Path) -> None:
    model, posts = encoder(), pool()
    plain = deepcopy(model)
    before, state = posts[np.array([0, 4])], torch.get_rng_state()
    for training in (True, False):
        model.train(training)
        filled(model, posts, tmp_path / str(training))
        assert model.training is training
    assert torch.equal(state, torch.get_rng_state())
    (hidden, gradients), (expected, others) = step(model, before), step(plain, before)  # nothing is installed yet
    assert torch.equal(hidden, expected)
    assert all(torch.equal(gradients[name], others[name]) for name in others)
    assert [len(m._forward_hooks) for m in model.modules()] == [len(m._forward_hooks) for m in plain.modules()]
    after = posts[np.array([0, 4])]
    assert torch.equal(after.input_ids, before.input_ids)


def test_the_frozen_layers_and_only_they_are_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, posts = encoder(leave_out=[0, 1]), pool()
    prefix = filled(model, posts, tmp_path)
    prefix.install()
    calls: list[Attention] = []
    compute = Attention.forward

    def counted(self: Attention, *given: Any, **rest: Any) -> Any:
        calls.append(self)
        return compute(self, *given, **rest)

    monkeypatch.setattr(Attention, "forward", counted)
    batch = posts[np.array([0])]
    assert batch.prefix is not None
    prefix.current = batch.prefix
    step(model, batch)
    assert len(calls) == 1 and calls[0] in model.encoder.forward.layers[2][1].leaves


def test_a_batch_without_its_hidden_states_is_computed(tmp_path: Path) -> None:
    """As where an evaluation asks the network about other posts, or about some tokens of one."""
    model, posts = encoder(), pool()
    plain = deepcopy(model)
    prefix = filled(model, posts, tmp_path)
    prefix.install()
    first, other = posts[np.array([0, 4])], posts[np.array([0, 4])]
    other.input_ids = other.input_ids.flip(0)
    assert first.prefix is not None
    prefix.current = first.prefix
    torch.testing.assert_close(step(model, first)[0], step(plain, first)[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(step(model, other)[0], step(plain, other)[0], atol=1e-6, rtol=1e-5)  # nothing was kept


# The file


def test_a_file_is_used_again_and_made_anew_where_it_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, posts = encoder(), pool()
    filled(model, posts, tmp_path)
    (path,) = tmp_path.iterdir()
    content, stamp = path.read_bytes(), path.stat().st_mtime_ns
    computed: list[int] = []
    below = Prefix._below
    monkeypatch.setattr(Prefix, "_below", lambda self, batch: (computed.append(len(batch)), below(self, batch))[1])
    again = pool()
    filled(encoder(), again, tmp_path)
    assert len(computed) == 1  # to see what a layer gives
    assert path.stat().st_mtime_ns == stamp
    assert posts.prefix is not None
    assert again.prefix is not None
    assert torch.equal(again.prefix, posts.prefix)

    for broken in (content[:-4], b"", content + b"0000"):
        path.unlink()  # the first pool still looks into the former file
        path.write_bytes(broken)
        filled(encoder(), again, tmp_path)
        assert path.read_bytes() == content
    assert files(tmp_path) == [path.name]


def test_another_encoder_depth_type_or_corpus_has_another_file(tmp_path: Path) -> None:
    posts = pool()
    filled(encoder(), posts, tmp_path, mark="one")
    filled(encoder(), pool(TEXTS[::-1]), tmp_path, mark="one")
    filled(encoder(), pool(TEXTS[:-1]), tmp_path, mark="one")
    filled(encoder(), pool([*TEXTS[:-1], "another last one"]), tmp_path, mark="one")
    filled(encoder(), posts, tmp_path, mark="two")
    filled(encoder(leave_out=[0, 1]), posts, tmp_path, mark="one")
    filled(stored(encoder(), torch.bfloat16), posts, tmp_path, mark="one")
    assert len(files(tmp_path)) == 7
    filled(encoder(), posts, tmp_path, mark="one")
    filled(encoder(leave_out=[0, 2]), posts, tmp_path, mark="one")  # layer 1 is trained, so nothing above it is kept
    filled(encoder(rank=2), posts, tmp_path, mark="one")
    assert len(files(tmp_path)) == 7


def test_posts_cut_alike_but_told_apart_elsewhere_have_another_file(tmp_path: Path) -> None:
    """The same token ids in a row, and other borders between posts."""
    ids = minilm()("you dronk hi there").input_ids[1:-1]
    posts = [pool(["x", "x"]) for _ in range(2)]
    for each, cut in zip(posts, (1, 3), strict=True):
        each.tokens, each.offsets = np.array(ids, each.tokens.dtype), np.array([0, cut, len(ids)], each.offsets.dtype)
        filled(encoder(), each, tmp_path)
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("at", [0, 1, 2])
def test_after_an_error_nothing_is_left_in_the_folder(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below, calls = Prefix._below, []

    def fail(self: Prefix, batch: Batch) -> Tensor:
        calls.append(batch)
        if len(calls) > at:
            raise KeyboardInterrupt
        return below(self, batch)

    model, posts = encoder(), pool()
    with monkeypatch.context() as patch:
        patch.setattr(Prefix, "_below", fail)
        with pytest.raises(KeyboardInterrupt):
            filled(model, posts, tmp_path / "cache")
    assert files(tmp_path / "cache") == []
    assert posts.prefix is None
    filled(model, posts, tmp_path / "cache")
    assert len(files(tmp_path / "cache")) == 1


def test_what_is_changed_in_memory_does_not_reach_the_file(tmp_path: Path) -> None:
    posts = pool()
    filled(encoder(), posts, tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    assert posts.prefix is not None
    posts.prefix.zero_()
    assert path.read_bytes() == content


# Which layers, and what is refused


@every_kind
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("leave_out", "frozen"), [([], 0), ([0], 1), ([0, 1], 2), ([1], 0), ([0, 2], 1), ([1, 2], 0)], ids=str
)
def test_layers_are_frozen_up_to_the_first_that_is_trained(
    leave_out: list[int], frozen: int, library: str, kind: str
) -> None:
    model = encoder(kind, leave_out, library)
    found = frozen_layers(model)
    names = {name for name, module in model.named_modules() if any(module is layer for layer in found)}
    assert {name.split(".")[-1] for name in names} == {str(i) for i in range(frozen)}
    if not frozen:
        with pytest.raises(UserError, match=r"lowest layer is trained.*method.leave_out=\[0,1,2\]"):
            Prefix(model)


def test_where_the_embeddings_are_trained_nothing_stays_the_same() -> None:
    model = encoder()
    model.embeddings.LayerNorm.bias.requires_grad_(True)
    assert frozen_layers(model) == []


@every_kind
def test_dropout_below_is_refused(kind: str) -> None:
    model = encoder(kind)
    for module in frozen_layers(model)[0].modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
            with pytest.raises(UserError, match="type method.body_dropout=false"):
                Prefix(model)
            return
    assert kind == "modernbert"  # which has none where its probability is zero


def test_dropout_of_the_embeddings_is_refused() -> None:
    model = encoder()
    model.embeddings.dropout.p = 0.1
    with pytest.raises(UserError, match="type method.body_dropout=false"):
        Prefix(model)


# A whole run


Cli = Callable[..., Outcome]
RUN = ["method.leave_out=[0]", "action=[train,test]", "optimization.epochs=2", "method.learning_rate=5e-3"]


@pytest.mark.parametrize(
    ("precision", "off", "method"),
    [
        ("32", 1e-6, "ah_lora16"),
        pytest.param("bf16", 0.05, "ah_lora16", marks=pytest.mark.slow),
        pytest.param("32", 1e-6, "peft_lora16", marks=pytest.mark.slow),
    ],
)
def test_a_run_ends_as_without_the_prefix(
    precision: str, off: float, method: str, cli: Cli, sample: list[str], tmp_path: Path
) -> None:
    rows = []
    for cached in ("false", "true"):
        options = [*sample, *RUN, f"method={method}", f"trainer.precision={precision}", f"data.cache={tmp_path / 'cache'}"]
        run = cli(*options, f"data.cache_prefix={cached}", f"save_path={tmp_path / cached}")
        assert run.code == 0, run.err
        rows.append(SavedRun(tmp_path / cached).results)
        assert any(name.startswith("prefix-") for name in files(tmp_path / "cache")) is (cached == "true")
    without, with_prefix = rows
    assert without.keys() == with_prefix.keys()
    for name, value in without.items():
        if "_f1" in name or "loss" in name or "accuracy" in name:
            assert with_prefix[name] == pytest.approx(value, abs=off), name
    load = {"ah_lora16": "ah_load", "peft_lora16": "peft_load"}[method]
    tested = cli(
        *sample, f"method={load}", f"trainer.precision={precision}", "action=test", "heads.load=true",
        f"load_path={tmp_path / 'true'}",
    )  # fmt: skip
    assert tested.code == 0, tested.err
    for name, value in SavedRun(tmp_path / "true").results.items():
        if name.startswith("test_") and "_f1" in name:
            assert value == pytest.approx(with_prefix[name], abs=off), name  # computed whole by the saved run


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["method.leave_out=[]"], "data.cache_prefix=true: the lowest layer is trained"),
        (["method=full"], "data.cache_prefix=true: the lowest layer is trained"),
        (["method.leave_out=[1]"], "data.cache_prefix=true: the lowest layer is trained"),
        (["method.leave_out=[0]", "method.body_dropout=true"], "type method.body_dropout=false"),
        (["method.leave_out=[0]", "data.cache=null"], "data.cache_prefix=true needs a folder to keep"),
        (
            ["method.leave_out=[0,1]"],
            r"method.leave_out=[0, 1]: expected a list of some of this encoder's layers, 0 to 1, not all",
        ),
        (["method.leave_out=[7]"], "method.leave_out=[7]: expected a list of some of this encoder's layers"),
    ],
    ids=str,
)
def test_what_leaves_nothing_to_keep_is_told(options: list[str], says: str, sample: list[str], tmp_path: Path) -> None:
    assert says in refused(*sample, "data.cache_prefix=true", *options, f"save_path={tmp_path / 'run'}")
    assert files(tmp_path) == []


def test_a_word_is_not_taken_for_true(sample: list[str]) -> None:
    assert "data.cache_prefix=no: expected true or false" in refused(*sample, "data.cache_prefix=no")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("[true]", "whole numbers"),
        ("[1.0]", "whole numbers"),
        ("[-1]", "some of this encoder's layers"),
        ("[0,1]", "not all"),
    ],
)
def test_what_is_no_list_of_layers_is_told(sample: list[str], tmp_path: Path, given: str, said: str) -> None:
    error = refused(*sample, f"method.leave_out={given}", f"save_path={tmp_path / 'run'}")
    assert "expected a list of" in error and said in error


@pytest.mark.parametrize(
    "given", ["data.cache=[]", "data.cache=3", "data.cache=''", "data.workers=x", "trainer.compile=yes"]
)
def test_bad_settings_of_data_and_trainer_are_told(sample: list[str], tmp_path: Path, given: str) -> None:
    assert given.split("=")[0] in refused(*sample, given, f"save_path={tmp_path / 'run'}")
    assert files(tmp_path) == []


def test_another_encoder_of_the_same_weights_has_other_states(tmp_path: Path) -> None:
    """Heads of attention, which no weight's shape tells, are among what the file's name stands for."""
    for heads in (2, 4):
        model = encoder()
        model.config.num_attention_heads = heads
        filled(model, pool(), tmp_path)
    assert len(files(tmp_path)) == 2
