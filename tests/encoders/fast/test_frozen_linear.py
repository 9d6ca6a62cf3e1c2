"""A frozen linear layer in any order of its weight is a linear layer."""

import pickle
from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from hatemtl.encoders.fast.frozen_linear import FrozenLinear
from hatemtl.machine.flops import matmul_flops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (48, 32)], ids=str)
@pytest.mark.parametrize("rows", [1, 16, 700])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_it_is_a_linear_layer(dtype: torch.dtype, shape: tuple[int, int], rows: int, gelu: bool, transposed: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=draw).to(dtype)
    weight = weight.mT if transposed else weight
    bias = None if transposed else torch.randn(len(weight), generator=draw).to(dtype)
    x = torch.randn(rows, weight.shape[1], generator=draw).to(dtype)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    expected = F.gelu(expected) if gelu else expected
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    layer = FrozenLinear(weight, bias, gelu=gelu)
    for each in (layer, deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        y = each(x)
        assert y.dtype is dtype
        torch.testing.assert_close(y.double(), expected, atol=tolerance * expected.abs().max().item(), rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_its_arithmetic_is_counted(dtype: torch.dtype) -> None:
    layer = FrozenLinear(torch.randn(8, 6).to(dtype), torch.zeros(8, dtype=dtype))
    assert matmul_flops(lambda: layer(torch.ones(10, 6, dtype=dtype))) == 2 * 10 * 6 * 8
