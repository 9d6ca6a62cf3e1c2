"""Computes attention over posts that stand one behind the other, a group at a time."""

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast.dropout import keep, keep_
from hatemtl.encoders.fast.positions import Distances
from hatemtl.encoders.fast.posts import Group, waits
from hatemtl.encoders.fast.tape import Step, Tape

# Softmax over fewer than 16 float32 numbers, one AVX-512 register, takes ten times as long a number.
LEAST_KEYS = 16
# Up to so many tokens of a single post torch's own kernel, one call, takes less time; of more tokens or posts it takes more.
SHORT = 48
# Between these powers of the least and the greatest number, a sum of exponentials has not lost what counts, and what it
# weighs may be as large as 2³² (float32, bf16).
SAFE = 0.75


class Attention(Step):
    """Computes softmax(q·kᵀ/√d + mask)·v (Vaswani et al. 2017, eq. 1) of q, k, v, (M, 3·H·d).

    The context is (M, H·d), zero in rows of no group. Kept of each are q (H·n, T, d), k and v (H·n, K, d), the weights
    (H·n, T, K) and the mask of dropout, if any. K is T, but `LEAST_KEYS` at least; keys of nothing get no weight.
    window: a place reads those at most so far away, or all where it is -1. distances: what adds to scores, if anything does.
    """

    def __init__(
        self, heads: int, dropout: nn.Dropout | None = None, *, window: int = -1, distances: Distances | None = None
    ) -> None:
        self.heads, self.dropout, self.window, self.distances = heads, dropout, window, distances
        self.terms = 1 if distances is None else 3  # that a score is the sum of

    def merge(self, dtype: torch.dtype, *, int8: bool) -> None:
        self.merged = True

    def forward(self, x: Tensor, tape: Tape, dx: bool) -> tuple[Tensor, Sequence[Tensor]]:
        groups, far = self._groups(tape), self.distances
        if self.merged and far is None and not waits(x.device):
            return attend_only(x, groups, self.heads), ()
        qkv, positions = (x, None) if far is None else far.split(x, tape, self.heads)
        p = tape.dropout.chance(self.dropout)
        context, kept = qkv.new_empty(len(qkv), qkv.shape[1] // 3), [] if positions is None else [positions]
        for group in groups:
            q, k, v = _apart(qkv, group, self.heads, max(group.length, LEAST_KEYS))
            q = q[:, : group.length]
            scores = torch.bmm(q, k.mT)
            if positions is not None:
                Distances.add(scores, q, k, positions)
            weights = _softmax(scores, group, self.heads, (self.terms * q.shape[-1]) ** -0.5)
            by_post = len(weights) // self.heads, self.heads, *weights.shape[1:]
            mask = [tape.dropout.mask(by_post, p, weights.dtype).transpose(0, 1)] if p else []
            mixed = torch.bmm(keep(weights, mask[0]), v).div_(1 - p) if mask else torch.bmm(weights, v)
            into = _places(context, group, self.heads, 1)[0]
            into.copy_(mixed.view(into.shape))
            kept += [q, k, v, weights, *mask] if tape.records else []
        context[groups[-1].end :] = 0
        return context, kept

    def backward(self, dy: Tensor, kept: Sequence[Tensor], tape: Tape, dx: bool) -> Any:
        groups, p, left = self._groups(tape), tape.dropout.chance(self.dropout), iter(kept)
        positions = None if self.distances is None else next(left)
        dqkv = dy.new_empty(len(dy) + (0 if positions is None else positions.shape[2]), 3 * dy.shape[1])
        dqkv[groups[-1].end :] = 0
        for group in groups:
            q, k, v, weights, *mask = islice(left, 5 if p else 4)
            do = _places(dy, group, self.heads, 1)[0].reshape(q.shape)
            dp, there = torch.bmm(do, v.mT), weights
            if p:
                dp, there, do = keep_(dp, mask[0]).div_(1 - p), keep(weights, mask[0]), do.div(1 - p)
            ds = torch._softmax_backward_data(dp.float(), weights.float(), -1, torch.float32)
            ds = ds.mul_((self.terms * q.shape[-1]) ** -0.5).to(q.dtype)
            dq, dk = torch.bmm(ds, k), torch.bmm(ds.mT, q)
            if positions is not None:
                Distances.back(ds, q, k, dq, dk, positions, dqkv[len(dy) :])
            for of, into in zip((dq, dk, torch.bmm(there.mT, do)), _places(dqkv, group, self.heads, 3), strict=True):
                into.copy_(of[:, : group.length].view(into.shape))
        return dqkv

    def _groups(self, tape: Tape) -> list[Group]:
        """Gives the groups, with masks (n, 1, T, T) of what is near where posts are long enough for it to matter."""
        if self.window < 0:
            return tape.groups
        return tape.once(("near", self.window), lambda: [_near(group, self.window) for group in tape.groups])


def _near(group: Group, window: int) -> Group:
    if group.length - 1 <= window:
        return group
    places = torch.arange(group.length, device=group.mask.device)
    far = (places[:, None] - places).abs() > window
    return Group(group.begin, group.end, group.mask.masked_fill(far, torch.finfo(group.mask.dtype).min))


def attend_only(qkv: Tensor, groups: list[Group], heads: int) -> Tensor:
    """Computes the context alone, in fewer passes over memory.

    Exponentials are taken of the scores as they are. Softmax takes a row's greatest off first, for which a CPU goes row by
    row; it is left to groups where some sum would be near the ends of what numbers can hold.
    """
    width, numbers = qkv.shape[-1] // (3 * heads), torch.finfo(qkv.dtype)
    context = qkv.new_empty(len(qkv), heads * width)
    for group in groups:
        length, into = group.length, _places(context, group, heads, 1)[0]
        own = qkv[group.begin : group.end]
        # of what is no number torch's makes one
        if len(own) == length <= SHORT and group.factor is None and math.isfinite(float(own.sum())):
            q, k, v = own.view(1, length, 3, heads, width).permute(2, 0, 3, 1, 4).unbind()
            into.copy_(F.scaled_dot_product_attention(q, k, v).transpose(0, 1))
            continue
        q, k, v = _apart(qkv, group, heads, length)
        # powers of two are the faster ones
        e = torch.baddbmm(q.new_empty(1), q, k.mT, beta=0, alpha=math.log2(math.e) * width**-0.5).exp2_()
        if group.factor is not None:
            e.view(heads, -1, length, length).mul_(group.factor.to(e.dtype).transpose(0, 1))
        total = torch.mv(e.view(-1, length), e.new_ones(length))
        least, greatest = (float(end) for end in total.aminmax())
        if not numbers.tiny**SAFE < least <= greatest < numbers.max**SAFE:  # nor where one is no number
            e, total = _softmax(torch.bmm(q, k.mT), group, heads, width**-0.5), total.fill_(1)
        torch.div(torch.bmm(e, v, out=q).view(into.shape), total.view(heads, -1, length, 1), out=into)
    context[groups[-1].end :] = 0
    return context


def _places(rows: Tensor, group: Group, heads: int, parts: int) -> Tensor:
    """Views a group's rows, (M, P·H·d), as its parts, (P, H, n, T, d)."""
    width = rows.shape[1] // (parts * heads)
    return rows[group.begin : group.end].view(-1, group.length, parts, heads, width).permute(2, 3, 0, 1, 4)


def _apart(qkv: Tensor, group: Group, heads: int, keys: int) -> tuple[Tensor, ...]:
    """Copies q, k and v of a group, each (H·n, K, d), zero beyond its T places."""
    own = _places(qkv, group, heads, 3)
    if keys == group.length:
        return own.clone(memory_format=torch.contiguous_format).flatten(1, 2).unbind()
    parts = own.new_zeros(*own.shape[:3], keys, own.shape[-1])
    parts[..., : group.length, :] = own
    return parts.flatten(1, 2).unbind()


def _softmax(scores: Tensor, group: Group, heads: int, scale: float) -> Tensor:
    """Gives a group's weights, (H·n, T, K), of its scores, yet to be scaled."""
    more = scores.shape[-1] - group.length
    mask = (F.pad(group.mask, (0, more), value=-math.inf) if more else group.mask).transpose(0, 1)
    masked = torch.add(mask, scores.view(heads, -1, *scores.shape[1:]), alpha=scale)
    return torch.softmax(masked, dim=-1).to(scores.dtype).view(scores.shape)
