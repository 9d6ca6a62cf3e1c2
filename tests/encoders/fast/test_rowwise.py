"""Norms, activations, gates and dropout, each row by itself, against their formulas by autograd."""

import math
from typing import Any

import pytest
import torch
from encoders.fast.test_dropout import noted
from encoders.fast.test_linear import off
from torch import Tensor, nn

from hatemtl.encoders.fast.rowwise import ACTIVATIONS, Activation, Drop, Gate, Norm
from hatemtl.encoders.fast.tape import Chain, Step, Tape

CPU = torch.device("cpu")
EXACT = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 0.01}  # relative, in the Euclidean norm
DTYPES = pytest.mark.parametrize("dtype", EXACT, ids=str)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


FORMULAS = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": gelu,
    "silu": lambda x: x / (1 + (-x).exp()),
    "swish": lambda x: x / (1 + (-x).exp()),
}


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(2).to(dtype)


def computed(step: Step, x: Tensor, dy: Tensor, *, dx: bool = True) -> tuple[Tensor, Any, list[Tensor], Tape]:
    """What a step makes of x, and of dy for x and for its factors."""
    tape = Tape([], CPU, records=True)
    with torch.no_grad():
        y, kept = step.forward(x.clone(), tape, dx)
        d = step.backward(dy.clone(), kept, tape, dx)
        return y, d, tape.gradients(step.factors), tape


def same(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype is dtype and off(found, expected) < EXACT[dtype]


@DTYPES
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_its_formula(name: str, dtype: torch.dtype) -> None:
    x, dy = drawn(40, 6, dtype=dtype), drawn(40, 6, dtype=dtype, seed=1)
    x[:3] = torch.tensor([0.0, -30.0, 30.0])[:, None]  # where it bends and where it is straight
    exact = x.double().requires_grad_()
    expected = FORMULAS[name](exact)
    y, d, _, _ = computed(Activation(name), x, dy)
    same(y, expected.detach(), dtype)
    of_zero = d[0].double() / dy[0]  # where ReLU has no gradient, and torch says 0, clamp's is 1
    assert torch.equal(of_zero, torch.full_like(of_zero, 0.0 if name == "relu" else 0.5))
    same(d[1:], torch.autograd.grad(expected, exact, dy.double())[0][1:], dtype)


def test_every_activation_has_its_formula_here() -> None:
    assert ACTIVATIONS.keys() == FORMULAS.keys()


def test_an_activation_that_the_product_before_it_computes_is_left_to_it() -> None:
    before, x = Step(), drawn(4, 6)
    step = Activation("gelu", before)
    assert off(computed(step, x, x)[0], gelu(x)) < EXACT[torch.float64]
    before.merged = True
    assert torch.equal(step.forward(x, Tape([], CPU, records=False), dx=False)[0], x)


@DTYPES
def test_a_gate_is_its_formula(dtype: torch.dtype) -> None:
    x, dy = drawn(40, 12, dtype=dtype), drawn(40, 6, dtype=dtype, seed=1)
    exact = x.double().requires_grad_()
    expected = gelu(exact[:, :6]) * exact[:, 6:]
    y, d, _, _ = computed(Gate(), x, dy)
    same(y, expected.detach(), dtype)
    same(d, torch.autograd.grad(expected, exact, dy.double())[0], dtype)


@DTYPES
@pytest.mark.parametrize("learns", [("weight", "bias"), ("weight",), ("bias",), ()], ids=str)
@pytest.mark.parametrize("dx", [True, False])
def test_a_norm_is_its_formula(learns: tuple[str, ...], dx: bool, dtype: torch.dtype) -> None:
    """In bf16 as a run has it: rows of sixteen bits, and what is trained in float32."""
    own = torch.promote_types(dtype, torch.float32)
    norm = nn.LayerNorm(6, eps=0.01, dtype=own)
    for i, (name, parameter) in enumerate(norm.named_parameters()):
        parameter.data, parameter.requires_grad = drawn(6, dtype=own, seed=2 + i), name in learns
    x, dy = drawn(40, 6, dtype=dtype), drawn(40, 6, dtype=dtype, seed=1)
    exact, weight, bias = (p.detach().double().requires_grad_() for p in (x, norm.weight, norm.bias))
    centred = exact - exact.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt() * weight + bias
    y, d, gradients, _ = computed(Norm(norm), x, dy, dx=dx)
    same(y, expected.detach(), dtype)
    of_x, *of = torch.autograd.grad(expected, [exact, weight, bias], dy.double())
    assert dx == (d is not None)
    if dx:
        same(d, of_x, dtype)
    asked = [gradient for name, gradient in zip(("weight", "bias"), of, strict=True) if name in learns]
    assert len(gradients) == len(asked)
    for gradient, other in zip(gradients, asked, strict=True):
        assert gradient.dtype is own and off(gradient, other) < EXACT[dtype]


def test_a_norm_may_have_no_bias_and_merged_it_says_the_same() -> None:
    norm, x, dy = nn.LayerNorm(6, bias=False, dtype=torch.float64), drawn(40, 6), drawn(40, 6, seed=1)
    norm.weight.data = drawn(6, seed=2)
    step, exact = Norm(norm), x.clone().requires_grad_()
    expected = norm(exact)
    y, d, [of_weight], _ = computed(step, x, dy)
    of_x, other = torch.autograd.grad(expected, [exact, norm.weight], dy)
    for found, true in ((y, expected.detach()), (d, of_x), (of_weight, other)):
        same(found, true, torch.float64)
    step.merge(torch.float64, int8=False)
    norm.weight.data = 2 * norm.weight  # another tensor: what is merged stays
    assert torch.equal(step.forward(x, Tape([], CPU, records=False), dx=False)[0], y)


@DTYPES
@pytest.mark.parametrize("within", [False, True], ids=["alone", "before a sum"])
def test_dropout_leaves_out_and_scales_the_rest_by_itself_or_in_the_sum_after_it(
    within: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sum, x + dropout(gelu(x)), whose scale takes it in."""
    masks = noted(monkeypatch)
    module, x, dy = nn.Dropout(0.3).train(), drawn(40, 6, dtype=dtype), drawn(40, 6, dtype=dtype, seed=1)
    drop = Drop(module, scales=not within)
    step = Chain([Activation("gelu"), drop], past=[], drops=module) if within else drop
    y, d, _, _ = computed(step, x, dy)
    exact = x.double().requires_grad_()
    there = (masks[0] != 0).double()
    assert len(masks) == 1 and 0 < there.mean() < 1
    expected = exact + gelu(exact) * there / 0.7 if within else exact * there / 0.7
    same(y, expected.detach(), dtype)
    same(d, torch.autograd.grad(expected, exact, dy.double())[0], dtype)


@pytest.mark.parametrize("module", [nn.Dropout(0.0).train(), nn.Dropout(0.3).eval()], ids=["of nothing", "in evaluation"])
def test_where_nothing_is_left_out_all_stays(module: nn.Dropout) -> None:
    state, x, dy = torch.get_rng_state(), drawn(4, 6), drawn(4, 6, seed=1)
    y, d, _, _ = computed(Drop(module, scales=True), x, dy)
    assert torch.equal(y, x) and torch.equal(d, dy) and torch.equal(torch.get_rng_state(), state)


def test_on_its_way_back_dropout_is_what_it_was_whatever_the_mode_by_then() -> None:
    """As where a pass is evaluated between a batch's two."""
    module, x, dy = nn.Dropout(0.3).train(), drawn(40, 6), drawn(40, 6, seed=1)
    step, tape = Drop(module, scales=True), Tape([], CPU, records=True)
    y, kept = step.forward(x.clone(), tape, dx=True)
    module.eval()
    torch.testing.assert_close(step.backward(dy, kept, tape, dx=True), torch.where(y == 0, 0.0, dy / 0.7))


@pytest.mark.parametrize(
    "step",
    [*map(Activation, ACTIVATIONS), Drop(nn.Dropout(0.3), scales=True), Norm(nn.LayerNorm(6))],
    ids=lambda step: getattr(step, "name", type(step).__name__),
)
def test_the_gradient_that_comes_in_stays_as_it_is(step: Step) -> None:
    """For what goes past a step has the same; a gate stands between two products alone."""
    x, dy, tape = drawn(40, 6, dtype=torch.float32), drawn(40, 6, dtype=torch.float32, seed=1), Tape([], CPU, records=True)
    before = dy.clone()
    with torch.no_grad():
        step.backward(dy, step.forward(x, tape, dx=True)[1], tape, dx=True)
    assert torch.equal(dy, before)
