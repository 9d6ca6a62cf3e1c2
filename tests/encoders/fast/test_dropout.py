"""Dropout in our layers is the library's: the same places, the same scale, the same gradients, another draw each pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from encoders.fast import test_trained
from encoders.fast.test_linear import adapted, by_library
from encoders.fast.test_stack import FUSED, step, tokens
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast.dropout import Dropout, keep

CPU = torch.device("cpu")
LENGTH = 20  # above the least number of keys, so that weights are (posts·heads, T, T)


def dropping(model: Any, p: float) -> Any:
    """The model with dropout in its layers."""
    for module in model.encoder.modules() if hasattr(model, "encoder") else model.base_model.model.encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
    return model


def replaying(drawn: list[Tensor]) -> Callable[..., Tensor]:
    """Gives what takes the place of torch's dropout, by which modules do it, and transformers 5 without one."""

    def again(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Leaves out what was left out before."""
        return x.masked_fill(drawn.pop(0).view(x.shape) == 0, 0) / (1 - p) if training and p else x

    return again


@FUSED
@pytest.mark.parametrize("what", ["full", "adapterhub", "peft"])
def test_with_the_same_numbers_left_out_all_is_the_librarys(kind: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p, drawn, mask = 0.3, [], Dropout.mask

    def kept(own: Dropout, *of: Any) -> Tensor:
        drawn.append(mask(own, *of))
        return drawn[-1]

    monkeypatch.setattr(Dropout, "mask", kept)
    model = dropping(test_trained.full(kind) if what == "full" else adapted(what, kind), p)
    batch = tokens(LENGTH, padded=False)
    hidden, gradients = step(model, batch)
    assert len(drawn) == 6  # three a layer

    monkeypatch.setattr(F, "dropout", replaying(drawn))
    expected, others = step(by_library(model), batch)
    assert not drawn
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_so_many_are_left_out_as_asked_for(p: float, dtype: torch.dtype) -> None:
    mask = Dropout(CPU).mask((301, 333), p, dtype)
    assert mask.shape == (301, 333) and mask.dtype.itemsize == dtype.itemsize
    out = mask == 0
    assert torch.equal(keep(torch.full(out.shape, 1.7, dtype=dtype), mask), torch.where(out, 0, 1.7).to(dtype))
    share = out.float().mean()
    assert abs(share - p) < 5 * (p * (1 - p) / out.numel()) ** 0.5
    rows = out.float().mean(1)  # and no row or column stands out
    assert rows.std() < 1.3 * (p * (1 - p) / 333) ** 0.5


def test_a_draw_hangs_on_torchs_state_alone_and_the_next_is_another() -> None:
    state = torch.get_rng_state()
    dropout = Dropout(CPU)
    first, second = dropout.mask((40, 50), 0.5, torch.bfloat16), dropout.mask((40, 50), 0.5, torch.bfloat16)
    assert not torch.equal(first, second)
    other = Dropout(CPU).mask((40, 50), 0.5, torch.bfloat16)
    assert not torch.equal(first, other)
    torch.set_rng_state(state)
    again = Dropout(CPU)
    assert torch.equal(again.mask((40, 50), 0.5, torch.bfloat16), first)
    assert torch.equal(again.mask((40, 50), 0.5, torch.bfloat16), second)


def test_nothing_is_drawn_without_dropout_and_none_left_out_in_evaluation() -> None:
    batch = tokens(LENGTH)
    model = test_trained.full()
    state = torch.get_rng_state()
    step(model, batch)
    assert torch.equal(torch.get_rng_state(), state)
    dropping(model, 0.5).eval()
    with torch.no_grad():
        first, second = (model(**batch).last_hidden_state for _ in range(2))
        assert torch.equal(first, second)
        third = model.train()(**batch).last_hidden_state
        assert not torch.equal(third, first)  # as the library's, which drops without gradients too
