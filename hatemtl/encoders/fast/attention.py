"""Computes attention as BERT does, and its gradient, for posts that stand one behind the other in groups of one length."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

# Softmax over fewer than 16 float32 numbers, one AVX-512 register, takes ten times as long a number.
LEAST_KEYS = 16
# Between these powers of the least and the greatest number, a sum of exponentials has not lost what counts, and what it
# weighs may be as large as 2³² (float32, bf16).
SAFE = 0.75


@dataclass(frozen=True)
class Group:
    """Rows begin:end hold n posts of T places each.

    mask: (n or 1, 1, 1 or T, T) float32, 0 for a token, as attention adds it.
    """

    begin: int
    end: int
    mask: Tensor

    @cached_property
    def factor(self) -> Tensor | None:
        """Gives the factor of an exponential where the mask would be added to its exponent; None where it is 1."""
        return self.mask.exp() if self.mask.any() else None


def attend(qkv: Tensor, groups: list[Group], heads: int) -> tuple[Tensor, list[Tensor]]:
    """Computes softmax(q·kᵀ/√d + mask)·v (Vaswani et al. 2017, eq. 1) of q, k, v, (M, 3·H·d); keeps what its gradient needs.

    The context is (M, H·d), zero in rows of no group. Kept of each are q (n·H, T, d), k and v (n·H, K, d) and the weights
    (n·H, T, K). K is T, but `LEAST_KEYS` at least; keys of nothing get no weight.
    """
    width = qkv.shape[-1] // (3 * heads)
    context, kept = qkv.new_empty(qkv.shape[0], heads * width), []
    for group in groups:
        length, mask = group.mask.shape[-1], group.mask
        keys = max(length, LEAST_KEYS)
        q, k, v = _apart(qkv, group, heads, keys)
        q = q[:, :length]
        p = _softmax(q, k, mask if keys == length else F.pad(mask, (0, keys - length), value=-math.inf), heads)
        into = context[group.begin : group.end].view(-1, length, heads, width)
        into.copy_(torch.bmm(p, v).view(-1, heads, length, width).transpose(1, 2))
        kept += [q, k, v, p]
    context[groups[-1].end :] = 0
    return context, kept


def attend_only(qkv: Tensor, groups: list[Group], heads: int) -> Tensor:
    """Computes the context alone, as `attend` gives it, in fewer passes over memory.

    Exponentials are taken of the scores as they are. Softmax takes a row's greatest off first, for which a CPU goes row by
    row; it is left to groups where some sum would be near the ends of what numbers can hold.
    """
    if waits(qkv.device):
        return attend(qkv, groups, heads)[0]
    width, numbers = qkv.shape[-1] // (3 * heads), torch.finfo(qkv.dtype)
    context = qkv.new_empty(qkv.shape[0], heads * width)
    for group in groups:
        length = group.mask.shape[-1]
        q, k, v = _apart(qkv, group, heads, length)
        # powers of two are the faster ones
        e = torch.baddbmm(q.new_empty(1), q, k.mT, beta=0, alpha=math.log2(math.e) * width**-0.5).exp2_()
        if group.factor is not None:
            e.view(-1, heads, length, length).mul_(group.factor.to(e.dtype))
        total = torch.mv(e.view(-1, length), e.new_ones(length))
        least, greatest = (float(end) for end in total.aminmax())
        if not numbers.tiny**SAFE < least <= greatest < numbers.max**SAFE:  # nor where one is no number
            e, total = _softmax(q, k, group.mask, heads), total.fill_(1)
        into = context[group.begin : group.end].view(-1, length, heads, width).transpose(1, 2)
        torch.div(torch.bmm(e, v, out=q).view(into.shape), total.view(-1, heads, length, 1), out=into)
    context[groups[-1].end :] = 0
    return context


def waits(device: torch.device) -> bool:
    """Tells whether whoever looks at what is on this device has to wait for it."""
    return device.type != "cpu"


def _apart(qkv: Tensor, group: Group, heads: int, keys: int) -> tuple[Tensor, ...]:
    """q, k and v of a group, each (n·H, K, d), zero beyond its T places, in memory of their own, never that of qkv."""
    length = group.mask.shape[-1]
    own = qkv[group.begin : group.end].view(-1, length, 3, heads, qkv.shape[-1] // (3 * heads)).permute(2, 0, 3, 1, 4)
    if keys == length:
        return own.clone(memory_format=torch.contiguous_format).flatten(1, 2).unbind()
    parts = own.new_zeros(*own.shape[:3], keys, own.shape[-1])
    parts[..., :length, :] = own
    return parts.flatten(1, 2).unbind()


def _softmax(q: Tensor, k: Tensor, mask: Tensor, heads: int) -> Tensor:
    """The weights, (n·H, T, K), of queries (n·H, T, d) and keys (n·H, K, d)."""
    scores = torch.bmm(q, k.transpose(1, 2))
    masked = torch.add(mask, scores.view(-1, heads, *scores.shape[1:]), alpha=q.shape[-1] ** -0.5)
    return torch.softmax(masked, dim=-1).to(q.dtype).view(scores.shape)


def attend_backward(dy: Tensor, groups: list[Group], kept: list[Tensor]) -> Tensor:
    """Computes the gradient (M, 3·H·d) of q, k and v, from that of the context, (M, H·d), and what `attend` kept."""
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
