"""Attention over posts that stand one behind the other, and its gradient, against the formula by autograd."""

import pytest
import torch
from methods.test_bert_stack import padded_to
from torch import Tensor

from hatemtl.methods.attention import LEAST_KEYS, Group, attend, attend_backward

HEADS, WIDTH = 2, 4


def formula(qkv: Tensor, mask: Tensor) -> Tensor:
    length = mask.shape[-1]
    q, k, v = qkv.view(-1, length, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
    return ((q @ k.mT / WIDTH**0.5 + mask).softmax(dim=-1) @ v).transpose(1, 2).reshape(-1, HEADS * WIDTH)


@pytest.mark.parametrize(
    "lengths", [[[3, 2]], [[LEAST_KEYS + 1, 9]], [[20, 20, 20]], [[1], [5, 3, 3], [20, 11], [LEAST_KEYS]]], ids=str
)
@pytest.mark.parametrize("rest", [0, 5])
def test_values_and_gradient_are_those_of_the_formula(lengths: list[list[int]], rest: int) -> None:
    draw, groups, end = torch.Generator().manual_seed(0), [], 0
    for group in lengths:
        begin, end = end, end + len(group) * max(group)
        groups.append(Group(begin, end, padded_to(group, max(group))))
    qkv = torch.randn(end + rest, 3 * HEADS * WIDTH, generator=draw, requires_grad=True)
    expected = torch.cat([formula(qkv[group.begin : group.end], group.mask) for group in groups])
    context, kept = attend(qkv.detach(), groups, HEADS)
    torch.testing.assert_close(context[:end], expected, atol=1e-6, rtol=1e-5)
    assert not context[end:].any()
    towards = torch.randn(context.shape, generator=draw)
    (of_qkv,) = torch.autograd.grad(expected, qkv, towards[:end])
    gradient = attend_backward(towards, groups, kept)
    torch.testing.assert_close(gradient, of_qkv, atol=1e-5, rtol=1e-4)
    assert not gradient[end:].any()  # rows of no post must not reach the factors' gradients


def test_one_mask_may_serve_all_posts() -> None:
    qkv = torch.randn(2 * 7, 3 * HEADS * WIDTH, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 7, 7).masked_fill(~torch.ones(7, 7).tril().bool(), torch.finfo(torch.float32).min)
    torch.testing.assert_close(attend(qkv, [Group(0, 14, mask)], HEADS)[0], formula(qkv, mask))
