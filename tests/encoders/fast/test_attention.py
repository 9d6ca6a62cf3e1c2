"""Attention over posts that stand one behind the other, and a layer of BERT, against the formula by autograd."""

import math
from collections.abc import Sequence

import pytest
import torch
from encoders.fast.test_linear import adapted, off
from encoders.fast.test_stack import fused, padded_to
from torch import Tensor

from hatemtl.encoders.fast import attention
from hatemtl.encoders.fast.attention import LEAST_KEYS, Attention, attend_only
from hatemtl.encoders.fast.linear import Linear, prepare
from hatemtl.encoders.fast.posts import Group
from hatemtl.encoders.fast.tape import Tape

HEADS, WIDTH = 2, 4
CPU = torch.device("cpu")


def formula(qkv: Tensor, mask: Tensor) -> Tensor:
    length = mask.shape[-1]
    q, k, v = qkv.view(-1, length, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
    return ((q @ k.mT / WIDTH**0.5 + mask).softmax(dim=-1) @ v).transpose(1, 2).reshape(-1, HEADS * WIDTH)


def attend(qkv: Tensor, groups: list[Group]) -> tuple[Tensor, Sequence[Tensor]]:
    return Attention(HEADS).forward(qkv, Tape(groups, CPU, records=True), dx=True)


@pytest.fixture
def softmaxes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Each call of what `attend_only` does without, unless it must."""
    found, softmax = list[object](), attention._softmax
    monkeypatch.setattr(attention, "_softmax", lambda *given: found.append(given) or softmax(*given))
    return found


@pytest.mark.parametrize(
    "lengths", [[[3, 2]], [[LEAST_KEYS + 1, 9]], [[20, 20, 20]], [[1], [5, 3, 3], [20, 11], [LEAST_KEYS]]], ids=str
)
@pytest.mark.parametrize("rest", [0, 5])
@pytest.mark.parametrize(
    ("dtype", "values", "of_qkv"), [(torch.float32, 1e-6, 1e-6), (torch.bfloat16, 0.005, 0.01)], ids=str
)
def test_values_and_gradient_are_those_of_the_formula(
    lengths: list[list[int]], rest: int, dtype: torch.dtype, values: float, of_qkv: float
) -> None:
    """The farthest off that each is, relative to it, in the Euclidean norm."""
    draw, groups, end = torch.Generator().manual_seed(0), [], 0
    for group in lengths:
        begin, end = end, end + len(group) * max(group)
        groups.append(Group(begin, end, padded_to(group, max(group))))
    qkv = torch.randn(end + rest, 3 * HEADS * WIDTH, generator=draw).to(dtype)
    exact = qkv.double().requires_grad_()
    expected = torch.cat([formula(exact[group.begin : group.end], group.mask.double()) for group in groups])
    context, kept = attend(qkv, groups)
    assert context.dtype is dtype and off(context[:end], expected.detach()) < values
    assert not context[end:].any()
    before = qkv.clone()
    alone = attend_only(qkv, groups, HEADS)
    assert torch.equal(qkv, before)  # which one post of one token tempts it to write over
    assert alone.dtype is dtype and off(alone[:end], expected.detach()) < values
    assert not alone[end:].any()
    towards = torch.randn(context.shape, generator=draw).to(dtype)
    (true,) = torch.autograd.grad(expected, exact, towards[:end].double())
    gradient = Attention(HEADS).backward(towards, kept, Tape(groups, CPU, records=True), dx=True)
    assert gradient.dtype is dtype and off(gradient, true) < of_qkv
    assert not gradient[end:].any()  # rows of no post must not reach the factors' gradients


def test_one_mask_may_serve_all_posts(softmaxes: list[object]) -> None:
    qkv = torch.randn(2 * 7, 3 * HEADS * WIDTH, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 7, 7).masked_fill(~torch.ones(7, 7).tril().bool(), torch.finfo(torch.float32).min)
    torch.testing.assert_close(attend_only(qkv, [Group(0, 14, mask)], HEADS), formula(qkv, mask))
    assert not softmaxes
    torch.testing.assert_close(attend(qkv, [Group(0, 14, mask)])[0], formula(qkv, mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("score", [0.0, 40.0, 60.0, -40.0, -60.0, 80.0, -80.0, 200.0, -200.0, 1e4, math.nan])
def test_sums_beyond_what_numbers_hold_are_left_to_softmax(
    score: float, dtype: torch.dtype, softmaxes: list[object]
) -> None:
    qkv = torch.randn(2, 5, 3, HEADS, WIDTH, generator=torch.Generator().manual_seed(0))
    qkv[1, :, 0], qkv[1, :, 1, :, 0] = 0, WIDTH**0.5  # of the second post every query says the same of every key
    qkv[1, :, 0, :, 0] = score
    qkv = qkv.view(10, -1).to(dtype)
    groups, mask = [Group(0, 5, padded_to([5], 5)), Group(5, 10, padded_to([3], 5))], padded_to([5, 3], 5)
    context = attend_only(qkv, groups, HEADS)
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 0.02, "rtol": 0.01}
    torch.testing.assert_close(context.float(), formula(qkv.float(), mask), equal_nan=True, **tolerance)
    assert len(softmaxes) == (not abs(score) <= 60)  # of one group, for one post's sake


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=str)
def test_what_memory_held_before_does_not_matter(dtype: torch.dtype, tolerance: float, softmaxes: list[object]) -> None:
    lengths = 10 * [25, 30]  # enough for oneDNN
    qkv = torch.randn(20 * 30, 3 * HEADS * WIDTH, generator=torch.Generator().manual_seed(0))
    groups, mask = [Group(0, 20 * 30, padded_to(lengths, 30))], padded_to(lengths, 30)
    torch.use_deterministic_algorithms(True)  # which fills empty tensors with what is no number
    try:
        assert torch.empty(1).isnan()
        context = attend_only(qkv.to(dtype), groups, HEADS)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not softmaxes  # which would hide it
    torch.testing.assert_close(context.float(), formula(qkv, mask), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("lengths", [[20], 10 * [25, 30], [250, 300], [1000]], ids=["one", "short", "long", "longest"])
@pytest.mark.parametrize("seed", range(3))
def test_alone_a_context_is_rounded_hardly_more_than_with_its_gradient(
    seed: int, lengths: list[int], softmaxes: list[object]
) -> None:
    length, draw = max(lengths), torch.Generator().manual_seed(seed)
    qkv = torch.randn(len(lengths) * length, 3 * HEADS * WIDTH, generator=draw).mul(2).bfloat16()
    groups = [Group(0, len(qkv), padded_to(lengths, length))]
    exact = formula(qkv.double(), groups[0].mask.double())
    alone = (attend_only(qkv, groups, HEADS).double() - exact).norm()
    assert not softmaxes
    assert alone < 1.3 * (attend(qkv, groups)[0].double() - exact).norm()


@pytest.mark.parametrize("without", [[], [0], [0, 1], [0, 1, 2, 3]], ids=str)
def test_the_factors_gradients_do_not_depend_on_whether_the_inputs_is_asked_for(without: list[int]) -> None:
    model = adapted()
    layer, groups, draw = fused(model)[0], [Group(0, 12, padded_to([6, 4], 6))], torch.Generator().manual_seed(3)
    linears = [leaf for leaf in layer.leaves if isinstance(leaf, Linear)]
    for i in without:
        linears[i].loras = []
    prepare(linears, torch.float32)
    x, dy = (torch.randn(12, linears[3].sizes[0], generator=draw) for _ in range(2))
    gradients = []
    with torch.no_grad():
        for asked in (True, False):
            tape = Tape(groups, CPU, records=True)
            layer.forward(x, tape, asked)
            dx = layer.backward(dy, (), tape, asked)
            assert not tape.kept and (not asked or dx.abs().sum() > 0)
            gradients.append(tape.gradients(layer.factors))
    assert len(gradients[0]) == 2 * sum(len(linear.loras) for linear in linears)
    for gradient, other in zip(*gradients, strict=True):
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(other, gradient)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_short_post_of_what_is_no_number_has_no_number(wrong: float) -> None:
    qkv = torch.randn(6, 3 * HEADS * WIDTH)
    qkv[2, :WIDTH] = wrong
    group = Group(0, 6, padded_to([6], 6))
    assert not attend_only(qkv, [group], HEADS).isfinite().all()
