"""Attention as BERT computes it, and its gradient, for posts that stand one behind the other in groups of one length."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Softmax over fewer than 16 float32 numbers, one AVX-512 register, takes ten times as long a number.
LEAST_KEYS = 16


@dataclass(frozen=True)
class Group:
    """Rows begin:end hold n posts of T places each.

    mask: (n or 1, 1, 1 or T, T) float32, 0 for a token, as attention adds it.
    """

    begin: int
    end: int
    mask: Tensor


def attend(qkv: Tensor, groups: list[Group], heads: int) -> tuple[Tensor, list[Tensor]]:
    """softmax(q·kᵀ/√d + mask)·v (Vaswani et al. 2017, eq. 1), of q, k and v, (M, 3·H·d), and what its gradient needs.

    The context is (M, H·d), zero in rows of no group. Its gradient needs of each group q (n·H, T, d), k and v (n·H, K, d)
    and the weights (n·H, T, K). K is T, but `LEAST_KEYS` at least; keys of nothing get no weight.
    """
    width = qkv.shape[-1] // (3 * heads)
    context, kept = qkv.new_empty(qkv.shape[0], heads * width), []
    for group in groups:
        length, mask = group.mask.shape[-1], group.mask
        keys = max(length, LEAST_KEYS)
        own = qkv[group.begin : group.end].view(-1, length, 3, heads, width).permute(2, 0, 3, 1, 4)
        if keys == length:
            parts = own.contiguous()
        else:
            parts = own.new_zeros(*own.shape[:3], keys, width)
            parts[..., :length, :] = own
            mask = F.pad(mask, (0, keys - length), value=-math.inf)
        q, k, v = parts.flatten(1, 2).unbind()
        q = q[:, :length]
        scores = torch.bmm(q, k.transpose(1, 2)).view(-1, heads, length, keys)
        p = torch.softmax(torch.add(mask, scores, alpha=width**-0.5), dim=-1).to(q.dtype).view(-1, length, keys)
        into = context[group.begin : group.end].view(-1, length, heads, width)
        into.copy_(torch.bmm(p, v).view(-1, heads, length, width).transpose(1, 2))
        kept += [q, k, v, p]
    context[groups[-1].end :] = 0
    return context, kept


def attend_backward(dy: Tensor, groups: list[Group], kept: list[Tensor]) -> Tensor:
    """The gradient (M, 3·H·d) of q, k and v, from that of the context, (M, H·d), and from what `attend` kept."""
    width = kept[0].shape[-1]
    heads, dqkv = dy.shape[-1] // width, dy.new_empty(dy.shape[0], 3 * dy.shape[-1])
    for group, q, k, v, p in zip(groups, *(kept[i::4] for i in range(4)), strict=True):
        length = q.shape[1]
        do = dy[group.begin : group.end].view(-1, length, heads, width).transpose(1, 2).reshape(-1, length, width)
        dp = torch.bmm(do, v.transpose(1, 2)).float()
        ds = torch._softmax_backward_data(dp, p.float(), -1, torch.float32).mul_(width**-0.5).to(q.dtype)
        into = dqkv[group.begin : group.end].view(-1, length, 3, heads, width)
        for i, (left, right) in enumerate(((ds, k), (ds.transpose(1, 2), q), (p.transpose(1, 2), do))):
            into[:, :, i] = torch.bmm(left, right)[:, :length].view(-1, heads, length, width).transpose(1, 2)
    dqkv[groups[-1].end :] = 0
    return dqkv
