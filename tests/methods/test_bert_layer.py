"""BertLayer computes what transformers' own layer computes, at any length, in training and merged, or lets it compute."""

from typing import Any

import pytest
import torch
from methods.test_base import encoder as with_dropout
from methods.test_lora_linear import LIBRARIES, SHARED, adapted, by_library, every_library, moved, off, stored
from torch import Tensor, nn

from hatemtl.methods import adapter_hub, ah_library
from hatemtl.methods.bert_layer import LEAST_KEYS, ROWS, BertLayer, Tokens, _attend, _attend_backward, merged

FUSED = pytest.mark.parametrize("kind", ["bert", "electra", "roberta"])
LENGTHS = pytest.mark.parametrize("length", [1, 5, LEAST_KEYS - 1, LEAST_KEYS, LEAST_KEYS + 1, 28])


def fused(model: nn.Module) -> list[BertLayer]:
    return [m.forward for m in model.modules() if isinstance(m.forward, BertLayer)]


def tokens(length: int, *, padded: bool = True) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(length)
    mask = torch.ones(3, length, dtype=torch.long)
    if padded:
        mask[1, -(-length // 2) :] = 0
    return {"input_ids": torch.randint(3, 20, (3, length), generator=draw), "attention_mask": mask}


def step(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.train().zero_grad()
    hidden = model(**batch).last_hidden_state[batch["attention_mask"].bool()]
    towards = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2))
    (hidden.float() * towards).sum().backward()
    return hidden.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@FUSED
@every_library
@LENGTHS
@pytest.mark.parametrize("padded", [True, False])
def test_values_and_gradients_are_those_of_the_library(library: str, kind: str, length: int, padded: bool) -> None:
    model, batch = adapted(library, kind), tokens(length, padded=padded)
    assert len(fused(model)) == 2
    (hidden, gradients), (expected, others) = step(model, batch), step(by_library(model), batch)
    torch.testing.assert_close(hidden, expected, atol=5e-6, rtol=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], atol=5e-5, rtol=1e-4)


@FUSED
@every_library
@LENGTHS
def test_merged_gives_what_unmerged_gives_and_goes_without_a_trace(library: str, kind: str, length: int) -> None:
    model, batch = adapted(library, kind).eval(), tokens(length)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with torch.inference_mode():
        apart = model(**batch).last_hidden_state
        with merged(model):
            together = model(**batch).last_hidden_state
            assert all(layer.merged is not None for layer in fused(model))
        again = model(**batch).last_hidden_state
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)
    assert torch.equal(again, apart)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@every_library
@LENGTHS
def test_in_bf16_merged_errs_about_as_unmerged(library: str, length: int) -> None:
    batch = tokens(length)
    exact = adapted(library).eval()(**batch).last_hidden_state.detach()
    model = stored(adapted(library), torch.bfloat16).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        apart = off(model(**batch).last_hidden_state, exact)
        with merged(model):
            together = off(model(**batch).last_hidden_state, exact)
    assert together < 1.5 * apart < 0.04


def test_loras_on_some_layers_and_projections_only() -> None:
    batch = tokens(20)
    parts = ({"attention": ["q", "v"], "intermediate": False}, {"attention": ["k"]}, {"attention": []})
    for changes in ({"leave_out": [0]}, *parts):
        model = moved(adapter_hub.LoRA(**_lora(**changes)).attach(_encoder(), name="run", seed=0))
        (hidden, gradients), (expected, others) = step(model, batch), step(by_library(model), batch)
        torch.testing.assert_close(hidden, expected, atol=5e-6, rtol=1e-5)
        assert gradients.keys() == others.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, others[name], atol=5e-5, rtol=1e-4)
        with torch.inference_mode(), merged(model.eval()):
            torch.testing.assert_close(
                model(**batch).last_hidden_state[batch["attention_mask"].bool()], hidden, atol=1e-5, rtol=1e-4
            )


def _lora(**changes: Any) -> dict[str, Any]:
    return {**SHARED, "attention": ["q", "k", "v"], "intermediate": True, "output": True, **changes}


def _encoder() -> Any:
    model = with_dropout("bert")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def padded_to(lengths: list[int], length: int) -> Tensor:
    """A mask as transformers gives it, for posts of these lengths."""
    there = torch.arange(length) < torch.tensor(lengths)[:, None]
    return torch.zeros(len(lengths), 1, 1, length).masked_fill(~there[:, None, None], torch.finfo(torch.float32).min)


@pytest.mark.parametrize("lengths", [[3, 2], [LEAST_KEYS + 1, 9], [20, 20, 20], [20, 11, 5]], ids=str)
def test_the_attentions_gradient_is_that_of_its_formula(lengths: list[int]) -> None:
    draw, posts, length = torch.Generator().manual_seed(0), len(lengths), max(lengths)
    full, mask = torch.randn(posts * length, 24, generator=draw), padded_to(lengths, length)
    places = Tokens.of(full.view(posts, length, 24), mask)
    qkv = places.pack(full).requires_grad_()
    q, k, v = places.unpack(qkv).view(posts, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
    formula = places.pack(((q @ k.mT / 2 + mask).softmax(dim=-1) @ v).transpose(1, 2).reshape(posts, length, 8))
    ours, *kept = _attend(qkv, places, 2)
    count = sum(lengths)
    torch.testing.assert_close(ours[:count], formula[:count], atol=1e-6, rtol=1e-5)
    towards = torch.randn(ours.shape, generator=draw)
    towards[count:] = 0
    (expected,) = torch.autograd.grad(formula, qkv, towards)
    gradient = _attend_backward(towards, places, *kept)
    torch.testing.assert_close(gradient[:count], expected[:count], atol=1e-5, rtol=1e-4)
    assert not gradient[count:].any()  # what stands beyond the tokens must not reach the factors' gradients


def test_without_a_mask_every_place_holds_a_token() -> None:
    qkv = torch.randn(2 * 7, 24, generator=torch.Generator().manual_seed(0))
    q, k, v = qkv.view(2, 7, 3, 2, 4).permute(2, 0, 3, 1, 4)
    expected = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).reshape(14, 8)
    torch.testing.assert_close(_attend(qkv, Tokens.of(qkv.view(2, 7, 24), None), 2)[0], expected)


@pytest.mark.parametrize("lengths", [[1], [16, 16], [20, 20, 20], [5, 20, 1], [20, 19], [17, 40, 3, 3]], ids=str)
def test_padding_is_left_out_and_comes_back_as_zero(lengths: list[int]) -> None:
    length = max(lengths)
    hidden, mask = torch.randn(len(lengths), length, 6), padded_to(lengths, length)
    there = (mask == 0)[:, 0, 0]
    places = Tokens.of(hidden, mask)
    packed = places.pack(hidden)
    if len(packed) == hidden[..., 0].numel():  # nothing to gain
        assert torch.equal(packed, hidden.flatten(0, 1))
    else:
        assert len(packed) % ROWS == 0 and 0 <= len(packed) - sum(lengths) < ROWS
        assert torch.equal(packed[: sum(lengths)], hidden[there]) and not packed[sum(lengths) :].any()
        assert not places.unpack(packed)[~there].any()
    assert torch.equal(places.unpack(packed)[there], hidden[there])


def test_the_places_of_a_batch_are_found_once_and_those_of_the_next_anew() -> None:
    first, second = padded_to([20, 3], 20), padded_to([3, 20], 20)
    hidden = torch.zeros(2, 20, 4)
    assert Tokens.of(hidden, first) is Tokens.of(hidden, first)
    assert not torch.equal(*(Tokens.of(hidden, mask).pack(torch.arange(160.0).view(2, 20, 4)) for mask in (first, second)))


@every_library
def test_dropout_and_attention_maps_are_left_to_the_library(library: str) -> None:
    model, batch = adapted(library), tokens(20)
    maps = model.eval()(**batch, output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in maps] == 2 * [(3, 4, 20, 20)]
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    first, _ = step(model, batch)
    assert not torch.equal(first, step(model, batch)[0])
    with torch.no_grad():  # none of it in evaluation
        torch.testing.assert_close(
            model.eval()(**batch).last_hidden_state,
            by_library(model).eval()(**batch).last_hidden_state,
            atol=5e-6,
            rtol=1e-5,
        )


@pytest.mark.parametrize("kind", ["deberta", "modernbert"])
@every_library
def test_other_layers_keep_their_own_way(library: str, kind: str) -> None:
    assert not fused(adapted(library, kind))


def test_a_lora_that_is_not_plain_keeps_its_layers_from_it() -> None:
    for library in LIBRARIES:
        assert not fused(adapted(library, dropout=0.1))
    model = ah_library.enable(with_dropout("bert"))
    model.add_adapter("run", config="seq_bn")
    assert not fused(ah_library.train(model, "run"))


def test_what_was_joined_in_one_type_is_joined_anew_in_another() -> None:
    model, batch = adapted(), tokens(20)
    expected, _ = step(model, batch)
    stored(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        hidden, _ = step(model, batch)
    assert hidden.dtype is torch.bfloat16 and off(hidden, expected) < 0.02


def test_a_first_call_in_inference_mode_does_not_keep_training_from_it() -> None:
    model, batch = adapted(), tokens(20)
    with torch.inference_mode():
        model.eval()(**batch)
    _, gradients = step(model, batch)
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
