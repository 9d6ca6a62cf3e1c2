"""BertLayer computes what transformers' own layer computes, at any length, in training and merged, or lets it compute."""

from functools import partial
from typing import Any

import pytest
import torch
from methods.test_base import encoder as with_dropout
from methods.test_lora_linear import LIBRARIES, SHARED, adapted, by_library, every_library, moved, off, stored
from torch import Tensor, nn

from hatemtl.methods import adapter_hub, ah_library
from hatemtl.methods.bert_layer import LEAST_KEYS, BertLayer, _attend, _Attention, _Projections, merged

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
    for changes in ({"leave_out": [0]}, {"attention": ["q", "v"], "intermediate": False}, {"attention": ["k"]}):
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


def test_gradients_are_those_of_differences() -> None:
    draw = torch.Generator().manual_seed(0)
    rand = partial(torch.randn, generator=draw, dtype=torch.float64)
    x, weight, bias, A, B = rand(4, 5), rand(9, 5), rand(9), rand(2, 5), rand(3, 2)
    for tensor in (x, A, B):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, A, B: _Projections.apply(x, weight, bias, [(0, 0.7), (6, 1.3)], A, B, 2 * A, B), (x, A, B)
    )
    assert torch.autograd.gradcheck(  # two runs, two rows each
        lambda x, A, B: _Projections.apply(x, weight, bias, [(0, 0.7), (6, 1.3)], A, B, -A, 3 * B, 2 * A, B, A, -B),
        (x, A, B),
    )


@pytest.mark.parametrize("length", [3, LEAST_KEYS + 1])
def test_the_attentions_gradient_is_that_of_its_formula(length: int) -> None:
    draw = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, length, 3, 2, 4, generator=draw).requires_grad_()
    mask = torch.zeros(2, 1, 1, length)
    mask[1, ..., length // 2 :] = torch.finfo(torch.float32).min
    towards = torch.randn(2, length, 8, generator=draw)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    formula = ((q @ k.mT / 2 + mask).softmax(dim=-1) @ v).transpose(1, 2).reshape(2, length, 8)
    ours = _Attention.apply(qkv, mask)
    torch.testing.assert_close(ours, formula, atol=1e-6, rtol=1e-5)
    (expected,) = torch.autograd.grad(formula, qkv, towards)
    torch.testing.assert_close(torch.autograd.grad(ours, qkv, towards)[0], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(_attend(qkv, None)[0], ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).reshape(2, length, 8))


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
