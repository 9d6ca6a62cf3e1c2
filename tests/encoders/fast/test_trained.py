"""Layers whose own weights are trained compute what the library's compute, with its gradients, in training and merged."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders.fast.test_linear import HALF, by_library, encoder, moved, off
from encoders.fast.test_stack import EXACT, FUSED, LENGTHS, compared, flat, step, tokens
from encoders.test_pretrained import at, save
from gpu_stand_in import as_on_a_gpu
from methods.test_base import RATES, trained
from torch import nn

from hatemtl.encoders.fast import door, is_fast, merge, merged, unmerge, verify
from hatemtl.encoders.fast.rowwise import Norm
from hatemtl.errors import UserError
from hatemtl.methods.full import Full


def full(kind: str = "bert") -> Any:
    """An encoder all of which is trained."""
    return Full(path=None, **RATES).attach(encoder(kind), name="run", seed=0).model


@pytest.mark.parametrize("kind", ["bert", "electra", "roberta", "xlm-roberta", "modernbert"])
@LENGTHS
def test_values_and_gradients_are_those_of_the_library(kind: str, length: int) -> None:
    model, batch = full(kind), tokens(length)
    assert is_fast(model)
    _, gradients = compared(model, batch)
    assert gradients.keys() == trained(model).keys()


@pytest.mark.parametrize("kind", ["xlm-roberta", "camembert"])
def test_robertas_kin_as_a_run_loads_it_is_what_its_own_class_computes(kind: str, tmp_path: Path) -> None:
    theirs = save(kind, tmp_path)
    for module in theirs.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):  # of attention by one call of torch's
            module.dropout_prob = 0.0
    model = Full(path=None, **RATES).attach(at(tmp_path).model(dropout=False, seed=0), name="run", seed=0).model
    assert is_fast(model)
    batch = tokens(28)
    batch["input_ids"] = batch["input_ids"].clamp(max=model.config.vocab_size - 1)
    (hidden, gradients), (expected, others) = step(model, batch), step(theirs, batch)
    assert off(hidden, expected) < EXACT
    assert gradients.keys() == others.keys() and off(flat(gradients), flat(others)) < EXACT


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
@LENGTHS
def test_as_on_a_gpu_where_posts_stay_padded_all_is_the_librarys(
    kind: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch)
    model, batch = full(kind), tokens(length)
    expected, _ = compared(model, batch)
    with torch.inference_mode(), merged(model.eval()):
        assert off(model(**batch).last_hidden_state[batch["attention_mask"].bool()], expected) < EXACT


@pytest.mark.parametrize("kind", ["bert", "electra", "roberta", "modernbert"])
def test_in_bf16_they_are_rounded_as_numbers_of_sixteen_bits_are(kind: str) -> None:
    model, batch = moved(full(kind)), tokens(28)
    hidden, gradients = step(by_library(model), batch)
    with HALF():
        (ours, of_ours), (theirs, of_theirs) = step(model, batch), step(by_library(model), batch)
    assert off(ours, hidden) < 0.02 and off(theirs, hidden) < 0.02  # whose sums between layers are of float32
    together = [torch.cat([of[name].flatten() for name in gradients]) for of in (of_ours, of_theirs, gradients)]
    assert off(together[0], together[2]) < 0.02 and off(together[1], together[2]) < 0.02
    assert all(gradient.dtype is torch.float32 for gradient in of_ours.values())


@pytest.mark.parametrize(
    "frozen", ["embeddings", "layer.0", "layer.1", "weight", "bias", "LayerNorm", "query", "encoder", "output.dense"]
)
def test_what_a_stage_freezes_gets_no_gradient_and_changes_no_other(frozen: str) -> None:
    model, batch = full(), tokens(12)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = frozen not in name
    _, gradients = compared(model, batch)
    assert gradients.keys() == {name for name, _ in model.named_parameters() if frozen not in name}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_weight_that_moved_is_read_anew_however_it_was_moved(dtype: torch.dtype) -> None:
    model, batch = full().eval(), tokens(9)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        for how in ("in place", "behind torch's back", "another tensor"):
            for parameter in model.encoder.parameters():
                if how == "in place":
                    parameter.mul_(1.1)
                elif how == "behind torch's back":
                    parameter.data.mul_(1.1)
                else:
                    parameter.data = parameter.data * 0.9
            expected = by_library(model)(**batch).last_hidden_state[batch["attention_mask"].bool()]
            for within in (False, True):
                with merged(model, dtype) if within else torch.no_grad():
                    found = model(**batch).last_hidden_state[batch["attention_mask"].bool()]
                assert off(found, expected) < (1e-5 if dtype is torch.float32 else 0.02)


def test_merged_in_int8_it_says_nearly_the_same() -> None:
    model, batch = full().eval(), tokens(9)
    with torch.inference_mode():
        exact = model(**batch).last_hidden_state
        assert merge(model, int8=True)
        found = model(**batch).last_hidden_state
        unmerge(model)
        assert torch.equal(model(**batch).last_hidden_state, exact)
    assert 0 < off(found, exact) < 0.05


def test_steps_lead_where_the_librarys_lead() -> None:
    ours = full()
    theirs = by_library(ours)
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
        for length in (5, 17, 12, 5):
            step(model, tokens(length))
            optimizer.step()
    assert is_fast(ours) and not is_fast(theirs)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, theirs.get_parameter(name), atol=1e-5, rtol=1e-4)


@FUSED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_they_are_compared_with_the_librarys_before_they_are_used(kind: str, dtype: torch.dtype) -> None:
    model = full(kind)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert verify(model, dtype) is None and is_fast(model)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_where_they_differ_the_library_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_verified", {})
    forward = Norm.forward
    monkeypatch.setattr(Norm, "forward", lambda own, x, *of: forward(own, x.clamp(max=1), *of))
    model = full()
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data.mul_(10)
    note = verify(model, torch.float32)
    assert note is not None and "differ from the library's" in note and not is_fast(model)


def test_other_layers_keep_their_own_way() -> None:
    model = full("deberta")
    assert not is_fast(model) and verify(model, torch.float32) is None


def test_a_gradient_of_gradients_is_refused() -> None:
    model = full()
    with pytest.raises(UserError, match="type trainer.fast=false"):
        torch.autograd.grad(
            model(**tokens(5)).last_hidden_state.sin().sum(), list(trained(model).values()), create_graph=True
        )


def test_a_copy_has_weights_of_its_own() -> None:
    model, batch = full().eval(), tokens(9)
    with torch.no_grad():
        before = model(**batch).last_hidden_state
        copy = deepcopy(model)
        for parameter in copy.parameters():
            parameter.mul_(2)
        assert torch.equal(model(**batch).last_hidden_state, before)
        assert not torch.equal(copy(**batch).last_hidden_state, before)
