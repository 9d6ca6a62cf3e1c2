"""Our layers are used where they say what the library says, and a model that was compared is as it was before."""

from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from encoders.fast.test_door import given, replaced
from encoders.fast.test_lora_linear import HALF, LIBRARIES, SHARED, adapted, encoder, every_kind, every_library, run, stored
from methods.test_base import KINDS, trained
from torch import nn
from torch.nn import functional as F

from hatemtl.encoders.fast import bert_layer, bert_stack, comparison, restore, verify
from hatemtl.encoders.fast.lora_linear import LoRALinear


@pytest.fixture(autouse=True)
def _first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "_verified", {})


def fresh(library: str, kind: str = "bert") -> Any:
    """As a method attaches it: every B is zero; frozen weights as large as pretrained ones."""
    body = encoder(kind)
    for layer in body.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data.mul_(10)
    return LIBRARIES[library](**SHARED).attach(body, name="run", seed=0).model


@every_kind
@every_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_that_was_compared_is_as_it_was_to_the_last_bit(library: str, kind: str, dtype: torch.dtype) -> None:
    model = stored(fresh(library, kind), dtype)
    next(m for m in model.modules() if isinstance(m, nn.Linear)).eval()  # modes may be mixed
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    forwards, modes, state = replaced(model), [m.training for m in model.modules()], torch.get_rng_state()
    assert verify(model) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert replaced(model) == forwards != {}
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    within = HALF if dtype is torch.bfloat16 else nullcontext
    others = stored(fresh(library, kind), dtype)
    (hidden, gradients), (expected, same) = run(model, within()), run(others, within())
    assert torch.equal(hidden, expected)
    assert all(torch.equal(gradient, same[name]) for name, gradient in gradients.items())


def wrong(model: Any, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes our layers compute something else than the library's, or nothing."""
    if how == "activation":
        monkeypatch.setattr(bert_layer, "F", SimpleNamespace(gelu=partial(F.gelu, approximate="tanh")))
    elif how == "norm":
        norm = bert_layer._norm
        monkeypatch.setattr(bert_layer, "_norm", lambda layer, x: norm(layer, x.clamp(max=3)))
    elif how == "gradient":
        gradients = bert_stack.gradients
        monkeypatch.setattr(bert_stack, "gradients", lambda *of: [1.001 * gradient for gradient in gradients(*of)])
    elif how == "merged":
        monkeypatch.setattr(LoRALinear, "merge", lambda step: setattr(step, "merged", step.layer.weight))
    else:
        monkeypatch.setattr(bert_stack.Posts, "pack", None)


@every_library
@pytest.mark.parametrize("how", ["activation", "norm", "gradient", "merged", "failure"])
def test_where_they_differ_the_library_computes_and_the_user_is_told(
    library: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh(library)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with monkeypatch.context() as patch:
        wrong(model, how, patch)
        note = verify(model)
        other = fresh(library)
        assert verify(other) == note  # which is as wrong
    assert note is not None and "trainer.fast=false" in note
    assert ("fail on this encoder" if how == "failure" else "differ from the library's") in note
    assert replaced(model) == replaced(other) == {}
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    plain = fresh(library)
    restore(plain)
    (hidden, gradients), (expected, others) = run(model), run(plain)
    assert torch.equal(hidden, expected)
    assert gradients.keys() == others.keys() == trained(plain).keys()
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())


def test_models_of_one_kind_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, difference = [], comparison._difference
    monkeypatch.setattr(comparison, "_difference", lambda *of: compared.append(of) or difference(*of))
    for _ in range(2):
        verify(fresh("peft"))
        verify(stored(fresh("peft"), torch.bfloat16))
    assert len(compared) == 2
    verify(fresh("adapterhub"))
    verify(fresh("peft", "electra"))
    assert len(compared) == 4


def test_what_the_library_computes_anyway_needs_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "_difference", None)
    assert verify(encoder()) is None
    model = adapted()
    assert given(model)
    restore(model)
    assert verify(model) is None
    assert verify(adapted(dropout=0.5)) is None


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_an_encoder_of_few_positions_is_compared_too(kind: str) -> None:
    cls, config = KINDS[kind]
    few = deepcopy(config)
    few.max_position_embeddings = 5
    model = cls(few).eval()
    model.pooler = None
    assert verify(LIBRARIES["peft"](**SHARED).attach(model, name="run", seed=0).model) is None
    assert [*comparison._verified.values()] == [""]
