"""Computes the layer of BERT and its kin with LoRAs, in as few passes over memory as its formula allows."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast.int8_linear import Int8Linear
from hatemtl.encoders.fast.lora_linear import FrozenLinear, Joint, LoRALinear

# transformers' layers of one form.
KINDS = ("BertLayer", "ElectraLayer", "RobertaLayer", "XLMRobertaLayer")
# Softmax over fewer than 16 float32 numbers, one AVX-512 register, takes ten times as long a number.
LEAST_KEYS = 16
Norm = tuple[tuple[int, ...], Tensor, Tensor, float]  # its shape, weight, bias and epsilon
# Between these powers of the least and the greatest number, a sum of exponentials has not lost what counts, and what it
# weighs may be as large as 2³² (float32, bf16).
SAFE = 0.75


@dataclass(frozen=True)
class Group:
    """Rows begin:end hold n posts of T places. mask: (n or 1, 1, 1 or T, T) float32, 0 for a token, as attention adds it."""

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


def _norm(norm: nn.LayerNorm, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Computes a frozen layer norm of x, (M, D), and keeps what its gradient needs."""
    shape, weight, bias, eps = _numbers(norm)
    y, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
    return y, [x, mean, rstd, weight, bias]


def _numbers(norm: nn.LayerNorm) -> Norm:
    # with float32 weights torch keeps a bf16 input's mean and deviation in float32 too: more exact, and a quarter faster
    weight, bias = (w.detach().to(torch.promote_types(w.dtype, torch.float32)) for w in (norm.weight, norm.bias))
    return norm.normalized_shape, weight, bias, norm.eps


def _norm_backward(dy: Tensor, kept: list[Tensor]) -> Tensor:
    x, *rest = kept
    return torch.ops.aten.native_layer_norm_backward(dy, x, x.shape[-1:], *rest, [True, False, False])[0]


class BertLayer:
    """Computes a layer of transformers' BERT, ELECTRA or RoBERTa, whose weights it reads, for hidden states (M, D)."""

    def __init__(self, layer: Any) -> None:
        attention, feed_forward = layer.attention, layer.output
        self.heads: int = attention.self.num_attention_heads
        self.projections = _joint(attention.self.query, attention.self.key, attention.self.value)
        self.context, self.intermediate = _joint(attention.output.dense), _joint(layer.intermediate.dense)
        self.output = _joint(feed_forward.dense)
        self.joints = [self.projections, self.context, self.intermediate, self.output]  # in the order of their computation
        self.norms = attention.output.LayerNorm, feed_forward.LayerNorm
        # joints with LoRAs in, and what the norms compute with, while nothing is trained
        self.merged: tuple[list[FrozenLinear | Int8Linear], list[Norm]] | None = None

    @property
    def factors(self) -> list[nn.Parameter]:
        return [factor for joint in self.joints for factor in joint.factors]

    def forward(self, x: Tensor, groups: list[Group]) -> tuple[Tensor, list[list[Tensor]]]:
        """Computes the next hidden states, and what their gradient needs. Unless merged, `prepare` must come first."""
        if self.merged is not None:
            (project, context, intermediate, output), (first, second) = self.merged
            y = torch.native_layer_norm(context(attend_only(project(x), groups, self.heads)).add_(x), *first)[0]
            return torch.native_layer_norm(output(intermediate(y)).add_(y), *second)[0], []
        y, low_1 = self.projections.forward(x)
        mixed, attention = attend(y, groups, self.heads)
        y, low_2 = self.context.forward(mixed)
        middle, norm_1 = _norm(self.norms[0], y.add_(x))
        inner, low_3 = self.intermediate.forward(middle)
        outer = F.gelu(inner)
        y, low_4 = self.output.forward(outer)
        last, norm_2 = _norm(self.norms[1], y.add_(middle))
        return last, [[x], low_1, attention, [mixed], low_2, norm_1, [middle], low_3, [inner, outer], low_4, norm_2]

    def backward(
        self, dy: Any, groups: list[Group], kept: list[list[Tensor]], *, dx: bool
    ) -> tuple[Tensor | None, list[list[Tensor]]]:
        """Computes the gradient of x, if asked for, and each joint's as `Joint.backward` does. kept: what `forward` gave."""
        [x], low_1, attention, [mixed], low_2, norm_1, [middle], low_3, [inner, outer], low_4, norm_2 = kept
        projected = dx or bool(self.projections.loras)  # whether anything learns below the attention's weights
        dy_2 = _norm_backward(dy, norm_2)
        dy, found_4 = self.output.backward(dy_2, outer, low_4, dx=True)
        dy = torch.ops.aten.gelu_backward(dy, inner)
        dy, found_3 = self.intermediate.backward(dy, middle, low_3, dx=True)
        dy_1 = _norm_backward(dy.add_(dy_2), norm_1)
        dy, found_2 = self.context.backward(dy_1, mixed, low_2, dx=projected)
        if not projected:
            return None, [[], found_2, found_3, found_4]
        dy, found_1 = self.projections.backward(attend_backward(dy, groups, attention), x, low_1, dx=dx)
        return (dy.add_(dy_1) if dx else None), [found_1, found_2, found_3, found_4]

    @torch.no_grad()
    def merge(self, *, int8: bool) -> None:
        joints = [joint.merged(gelu=joint is self.intermediate, int8=int8) for joint in self.joints]
        self.merged = joints, [*map(_numbers, self.norms)]


def _joint(*layers: Any) -> Joint:
    return Joint([(layer, layer.forward if isinstance(layer.forward, LoRALinear) else None) for layer in layers])
