"""The arithmetic of a step, against numbers by hand, and of the machine."""

import math
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hatemtl.encoders.fast.adapted import LoRALinear
from hatemtl.machine import flops
from hatemtl.machine.flops import matmul_flops, matmul_peak

N, K, M, R = 10, 6, 8, 3  # rows, in, out, rank
ONE = 2 * N * K * M  # a multiplication and an addition for each


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(N, K), (2, N // 2, K)], ids=str)
@pytest.mark.parametrize(("input_learns", "weight_learns", "times"), [(True, True, 3), (True, False, 2), (False, True, 2)])
def test_a_linear_layer_costs_a_product_forward_and_one_a_gradient(
    input_learns: bool, weight_learns: bool, times: int, shape: tuple[int, ...], bias: bool
) -> None:
    layer, x = nn.Linear(K, M, bias=bias), torch.randn(shape, requires_grad=input_learns)
    layer.weight.requires_grad_(weight_learns)
    assert matmul_flops(lambda: layer(x).sum().backward()) == times * ONE
    with torch.no_grad():
        assert matmul_flops(lambda: layer(x)) == ONE


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("input_learns", [True, False])
def test_a_lora_costs_its_two_narrow_products_more_and_four_for_their_gradients(input_learns: bool, bias: bool) -> None:
    """The update is added in place, which torch's own counter overlooks."""
    layer = nn.Linear(K, M, bias=bias).requires_grad_(False)
    step = LoRALinear(layer, layer, nn.Parameter(torch.randn(R, K)), nn.Parameter(torch.randn(M, R)), 2.0)
    x = torch.randn(N, K, requires_grad=input_learns)
    down, up = 2 * N * K * R, 2 * N * R * M
    forward = ONE + down + up
    assert matmul_flops(lambda: step(x)) == forward
    to_factors = up + down + up  # the gradient of x·Aᵀ, and with it of A, and of B
    to_input = ONE + down if input_learns else 0
    assert matmul_flops(lambda: step(x).sum().backward()) == forward + to_factors + to_input
    with torch.inference_mode():
        assert matmul_flops(lambda: step(x)) == forward
        step.merge(torch.float32, int8=False)
        assert matmul_flops(lambda: step(x)) == ONE


def test_it_costs_as_much_as_by_the_plain_formula() -> None:
    layer, x = nn.Linear(K, M).requires_grad_(False), torch.randn(2, 5, K, requires_grad=True)
    A, B = nn.Parameter(torch.randn(R, K)), nn.Parameter(torch.randn(M, R))
    plain = matmul_flops(lambda: (layer(x) + (x @ A.T @ B.T) * 2.0).sum().backward())
    assert matmul_flops(lambda: LoRALinear(layer, layer, A, B, 2.0)(x).sum().backward()) == plain


def test_what_multiplies_no_matrices_counts_for_nothing() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    assert matmul_flops(lambda: (x.exp() * x).sum().backward()) == 0


def test_an_error_in_the_step_comes_out_and_counting_goes_on_working() -> None:
    def fail() -> None:
        raise ValueError("soup")

    with pytest.raises(ValueError, match="soup"):
        matmul_flops(fail)
    assert matmul_flops(lambda: torch.ones(2, 3) @ torch.ones(3, 4)) == 48


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_peak_is_what_a_processor_may_do(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "PEAK_SIZES", {"cpu": (128, 256)})
    monkeypatch.setattr(flops, "PEAK_SECONDS", 0.05)
    started, state = time.process_time(), torch.get_rng_state()  # not the time that other processes take
    peak = matmul_peak(torch.device("cpu"), dtype)
    assert time.process_time() - started < 5
    assert isinstance(peak, float)
    assert math.isfinite(peak)
    assert 1e7 < peak < 1e14
    assert torch.equal(state, torch.get_rng_state())


def test_the_peak_is_that_of_the_best_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that says 2, 1 and 4 seconds for three products of 4 by 4 matrices: 128 operations in one second."""
    ticks = iter([0.0, *(t for i, took in enumerate((2, 1, 4)) for t in (10.0 * i, 10.0 * i, 10.0 * i + took)), 99.0])
    monkeypatch.setattr(flops, "PEAK_SIZES", {"cpu": (4,)})
    monkeypatch.setattr(flops, "PEAK_SECONDS", 50.0)
    monkeypatch.setattr(flops, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))  # the clock of no one else
    assert matmul_peak(torch.device("cpu"), torch.float32) == 2 * 4**3
