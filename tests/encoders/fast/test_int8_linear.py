"""Int8Linear computes nearly what a linear layer computes, of each row by itself, also within whole layers."""

import pytest
import torch
from encoders.fast.test_linear import adapted, moved, stored
from encoders.fast.test_stack import tokens
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast import Int8Linear, merge, unmerge

EITHER = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["32", "bf16"])


def layer(bias: bool = True, *, gelu: bool = False) -> tuple[nn.Linear, Int8Linear]:
    torch.manual_seed(0)
    exact = nn.Linear(64, 48, bias=bias)
    return exact, Int8Linear(exact.weight, exact.bias, gelu=gelu)


def far(found: Tensor, exact: Tensor) -> float:
    """How far the rows lie from what they should be, relative to it, at most."""
    return float(((found.float() - exact).norm(dim=-1) / exact.norm(dim=-1)).max())


@EITHER
@pytest.mark.parametrize(("bias", "gelu"), [(True, True), (True, False), (False, False)])
def test_it_computes_nearly_the_same(dtype: torch.dtype, bias: bool, gelu: bool) -> None:
    exact, small = layer(bias, gelu=gelu)
    x = torch.randn(5, 9, 64).to(dtype)
    x[0] *= 100  # of one row: the others do not become coarse
    x[1, 0] = 0
    with torch.no_grad():
        expected, found = exact(x.float()), small(x)
    expected = F.gelu(expected) if gelu else expected
    assert found.shape == expected.shape and found.dtype is dtype
    there = expected.norm(dim=-1) > 0  # a row of zeros without a bias
    assert 0 < far(found[there], expected[there]) < 0.03
    assert not found[~there].any()


@pytest.mark.parametrize("steps", [127, 63])
def test_products_of_few_steps_are_those_of_whole_numbers(steps: int) -> None:
    """What is whole already when a row's largest number is so many steps is multiplied exactly, of either sign."""
    weight = torch.tensor([[127.0, -3.0, 64.0], [1.0, 127.0, -127.0]]) / 127
    small = Int8Linear(weight, torch.tensor([0.5, -0.5]))
    small.steps = steps
    x = torch.tensor([[steps, -steps, 1.0], [-steps, 2.0, 0.0], [-1.0, steps, 1.0 - steps]])
    torch.testing.assert_close(small(x), x @ weight.T + torch.tensor([0.5, -0.5]), atol=1e-4, rtol=1e-5)


@EITHER
def test_a_row_does_not_hang_on_those_beside_it(dtype: torch.dtype) -> None:
    _, small = layer()
    rows = torch.randn(7, 64).to(dtype)
    beside = torch.cat([1e3 * torch.randn(4, 64).to(dtype), rows])
    assert torch.equal(small(beside)[4:], small(rows))


@EITHER
def test_layers_that_are_merged_into_it_say_nearly_the_same(dtype: torch.dtype) -> None:
    model, batch = stored(moved(adapted("peft"), by=0.1), dtype).eval(), tokens(9)
    there = batch["attention_mask"].bool()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        exact = model(**batch).last_hidden_state[there].float()
        assert merge(model, dtype, int8=True)
        found = model(**batch).last_hidden_state[there]
        unmerge(model)
        assert torch.equal(model(**batch).last_hidden_state[there].float(), exact)
    assert 0 < far(found, exact) < 0.05
