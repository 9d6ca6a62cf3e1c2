"""Layers with plain bottlenecks compute what AdapterHub computes; those with others AdapterHub computes itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from encoders.fast.test_dropout import LENGTH, dropping, noted, replaying
from encoders.fast.test_linear import HALF, by_library, encoder, loras, moved, off, stored
from encoders.fast.test_stack import compared, flat, fused, step, tokens
from methods.test_base import RATES, trained
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast import accelerate, door, is_fast, merge, merged, restore, unmerge, verify
from hatemtl.encoders.fast.attention import Attention
from hatemtl.encoders.fast.linear import Linear
from hatemtl.encoders.fast.rowwise import ACTIVATIONS
from hatemtl.methods.adapterhub.train_and_load import AdapterHubAdapter

RELU = ACTIVATIONS["relu"]
every_kind = pytest.mark.parametrize("kind", ["bert", "electra", "roberta", "deberta"])
# after the norm, after each product, beside the feed-forward; scaled; elsewhere too; with other activations
PLAIN = pytest.mark.parametrize(
    "config",
    ["seq_bn", "double_seq_bn", "par_bn", "lora[r=4]|par_bn", "seq_bn[mh_adapter=True,non_linearity='gelu',scaling=2.0]"],
)


def adapted(config: str, kind: str = "bert", **more: Any) -> Any:
    """An encoder with a bottleneck that has learnt something."""
    method = AdapterHubAdapter(config=config, reduction_factor=4, **{"leave_out": [], **more}, **RATES)
    return moved(method.attach(encoder(kind), name="run", seed=0).model)


def same(model: Any, batch: dict[str, Any]) -> None:
    assert compared(model, batch, values=1e-6)[1].keys() == trained(model).keys()


@every_kind
@PLAIN
@pytest.mark.parametrize("length", [1, 20])
def test_values_and_gradients_are_those_of_the_library(config: str, kind: str, length: int) -> None:
    model = adapted(config, kind)
    assert is_fast(model)
    same(model, tokens(length))


@PLAIN
@pytest.mark.parametrize("leave_out", [[0], [1]], ids=str)
def test_so_are_those_of_some_layers(config: str, leave_out: list[int]) -> None:
    model = adapted(config, leave_out=leave_out)
    assert is_fast(model) and len(trained(model)) == len(trained(adapted(config))) // 2
    same(model, tokens(LENGTH))


@every_kind
@PLAIN
def test_without_gradients_the_same_is_said_and_goes_without_a_trace(config: str, kind: str) -> None:
    model, batch = adapted(config, kind).eval(), tokens(LENGTH)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        apart = model(**batch).last_hidden_state
        with merged(model):
            together = model(**batch).last_hidden_state
        assert torch.equal(model(**batch).last_hidden_state, apart)
        assert off(together, apart) < 1e-6
        assert merge(model, int8=True)
        assert 0 < off(model(**batch).last_hidden_state, apart) < 0.05
        unmerge(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    restore(model)
    assert not is_fast(model)
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("kind", ["bert", "deberta"])
@PLAIN
def test_in_bf16_they_are_rounded_as_numbers_of_sixteen_bits_are(config: str, kind: str) -> None:
    batch = tokens(28)
    hidden, gradients = step(by_library(adapted(config, kind)), batch)
    model = stored(adapted(config, kind), torch.bfloat16)
    assert is_fast(model)
    with HALF():
        (ours, of_ours), (_, of_theirs) = step(model, batch), step(by_library(model), batch)
        with torch.inference_mode(), merged(model.eval(), torch.bfloat16):
            together = model(**batch).last_hidden_state[batch["attention_mask"].bool()]
    assert off(ours, hidden) < 0.02 and off(together, hidden) < 0.02
    theirs = off(flat(of_theirs), flat(gradients))  # a ReLU of nearly nothing learns or does not, whoever rounds
    assert off(flat(of_ours), flat(gradients)) < max(0.05, 1.2 * theirs) < 0.1
    assert all(gradient.dtype is torch.float32 for gradient in of_ours.values())


@PLAIN
@pytest.mark.parametrize(
    ("dtype", "values", "of_gradients"), [(torch.float32, 1e-6, 1e-5), (torch.bfloat16, 0.02, 0.1)], ids=str
)
def test_with_the_same_numbers_left_out_all_is_the_librarys(
    config: str,
    dtype: torch.dtype,
    values: float,
    of_gradients: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the library in float32, whatever the masks were drawn for: of gradients, a wrong scale would be .3 off."""
    drawn, batch = noted(monkeypatch), tokens(LENGTH, padded=False)

    def model() -> Any:
        made = dropping(adapted(config), 0.3)
        for module in [m for name, m in made.named_modules() if ".adapters." in name and isinstance(m, nn.Dropout)]:
            module.p = 0.0
        return made

    ours = stored(model(), dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        hidden, gradients = step(ours, batch)
    monkeypatch.setattr(F, "dropout", replaying(drawn))
    expected, others = step(by_library(model()), batch)
    assert not drawn and hidden.dtype is dtype and off(hidden, expected) < values
    assert off(flat(gradients), flat(others)) < of_gradients


def test_below_the_lowest_adapter_nothing_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the feed-forward of the lowest layer would pass down nobody asks for."""
    model = adapted("seq_bn")
    *_, output = [leaf for leaf in fused(model)[0].leaves if isinstance(leaf, Linear) and not leaf.trained]
    monkeypatch.setattr(output, "backward", None)
    attention = next(leaf for leaf in fused(model)[0].leaves if isinstance(leaf, Attention))
    monkeypatch.setattr(attention, "backward", None)
    same_gradients = step(model, tokens(LENGTH))[1]
    assert all(gradient.abs().sum() > 0 for gradient in same_gradients.values())


@pytest.mark.parametrize(
    "config",
    [
        "seq_bn_inv", "compacter", "seq_bn[scaling='learned']", "seq_bn[use_gating=True]", "seq_bn[dropout=0.5]",
        "seq_bn[ln_before=True]", "double_seq_bn[ln_after=True]", "seq_bn[residual_before_ln='post_add']",
        "seq_bn[residual_before_ln=False]", "seq_bn[original_ln_after=False]", "seq_bn[non_linearity='leakyrelu']", "mam",
    ],
)  # fmt: skip
def test_one_that_is_not_plain_is_the_librarys(config: str) -> None:
    model = adapted(config)
    assert not is_fast(model) and verify(model, torch.float32) is None


def test_where_one_is_of_an_unknown_layer_the_others_are_the_librarys_too() -> None:
    model: Any = adapted("double_seq_bn")
    accelerate(model, [*loras(model).values()], model.encoder.forward.bottlenecks[:2])
    assert not is_fast(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@PLAIN
def test_they_are_compared_with_the_librarys_and_as_they_were_to_the_last_bit(config: str, dtype: torch.dtype) -> None:
    model = stored(adapted(config), dtype)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert verify(model, dtype) is None and is_fast(model)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def _slower(dy: Tensor, z: Tensor) -> Tensor:
    return 0.99 * RELU[1](dy, z)


@pytest.mark.parametrize(("act", "back"), [(F.gelu, None), (None, _slower)], ids=["value", "gradient"])
def test_where_they_differ_the_library_computes(
    act: Callable[..., Any] | None, back: Callable[..., Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "_verified", {})
    monkeypatch.setitem(ACTIVATIONS, "relu", (act or RELU[0], back or RELU[1]))
    model = adapted("seq_bn")
    note = verify(model, torch.float32)
    assert note is not None and "differ from the library's" in note and not is_fast(model)
    same(model, tokens(LENGTH))
