"""Computes the layer of BERT and its kin, in as few passes over memory as its formula allows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast.dropout import Dropout, keep, keep_
from hatemtl.encoders.fast.int8_linear import Int8Linear
from hatemtl.encoders.fast.lora_linear import FrozenLinear, Joint, LoRALinear
from hatemtl.encoders.fast.trained import Norm, TrainedLinear

# transformers' layers of one form.
KINDS = ("BertLayer", "ElectraLayer", "RobertaLayer", "XLMRobertaLayer")
# Softmax over fewer than 16 float32 numbers, one AVX-512 register, takes ten times as long a number.
LEAST_KEYS = 16
# Up to so many tokens of a single post torch's own kernel, one call, takes less time; of more tokens or posts it takes more.
SHORT = 48
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


def attend(
    qkv: Tensor, groups: list[Group], heads: int, dropout: Dropout | None = None, p: float = 0.0
) -> tuple[Tensor, list[Tensor]]:
    """Computes softmax(q·kᵀ/√d + mask)·v (Vaswani et al. 2017, eq. 1) of q, k, v, (M, 3·H·d); keeps what its gradient needs.

    The context is (M, H·d), zero in rows of no group. Kept of each are q (n·H, T, d), k and v (n·H, K, d), the weights
    (n·H, T, K) and the mask of dropout, if any, which leaves out with probability p. K is T, but `LEAST_KEYS` at least;
    keys of nothing get no weight.
    """
    width = qkv.shape[-1] // (3 * heads)
    context, kept = qkv.new_empty(qkv.shape[0], heads * width), []
    for group in groups:
        length, mask = group.mask.shape[-1], group.mask
        keys = max(length, LEAST_KEYS)
        q, k, v = _apart(qkv, group, heads, keys)
        q = q[:, :length]
        weights = _softmax(q, k, mask if keys == length else F.pad(mask, (0, keys - length), value=-math.inf), heads)
        kept_of = None if dropout is None else dropout.mask(weights.shape, p, weights.dtype)
        into = context[group.begin : group.end].view(-1, length, heads, width)
        mixed = torch.bmm(weights, v) if kept_of is None else torch.bmm(keep(weights, kept_of), v).div_(1 - p)
        into.copy_(mixed.view(-1, heads, length, width).transpose(1, 2))
        kept += [q, k, v, weights, weights if kept_of is None else kept_of]
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
        own = qkv[group.begin : group.end]
        # of what is no number torch's makes one
        if len(own) == length <= SHORT and group.factor is None and math.isfinite(float(own.sum())):
            q, k, v = own.view(1, length, 3, heads, width).permute(2, 0, 3, 1, 4).unbind()
            of_one = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            context[group.begin : group.end].view(1, length, heads, width).copy_(of_one)
            continue
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


def attend_backward(dy: Tensor, groups: list[Group], kept: list[Tensor], p: float = 0.0) -> Tensor:
    """Computes the gradient (M, 3·H·d) of q, k and v, from that of the context, (M, H·d), and what `attend` kept."""
    width = kept[0].shape[-1]
    heads, dqkv = dy.shape[-1] // width, dy.new_empty(dy.shape[0], 3 * dy.shape[-1])
    for group, q, k, v, weights, mask in zip(groups, *(kept[i::5] for i in range(5)), strict=True):
        length = q.shape[1]
        do = dy[group.begin : group.end].view(-1, length, heads, width).transpose(1, 2).reshape(-1, length, width)
        dp, there = torch.bmm(do, v.transpose(1, 2)), weights
        if p:
            dp, there, do = keep_(dp, mask).div_(1 - p), keep(weights, mask), do.div(1 - p)
        ds = torch._softmax_backward_data(dp.float(), weights.float(), -1, torch.float32).mul_(width**-0.5).to(q.dtype)
        into = dqkv[group.begin : group.end].view(-1, length, 3, heads, width)
        for i, (left, right) in enumerate(((ds, k), (ds.transpose(1, 2), q), (there.transpose(1, 2), do))):
            into[:, :, i] = torch.bmm(left, right)[:, :length].view(-1, heads, length, width).transpose(1, 2)
    dqkv[groups[-1].end :] = 0
    return dqkv


class Attention:
    """Computes what stands between q, k, v and the context in BERT; another may project more rows than the posts'."""

    names = "query", "key", "value"  # of the layers that project

    def enter(self, x: Tensor, groups: list[Group]) -> Tensor:
        """Gives the rows to be projected, the posts' (M, D) first."""
        return x

    def forward(
        self, qkv: Tensor, groups: list[Group], heads: int, dropout: Dropout | None, p: float
    ) -> tuple[Tensor, list[Tensor]]:
        return attend(qkv, groups, heads, dropout if p else None, p)

    def alone(self, project: Callable[[Tensor], Tensor], x: Tensor, groups: list[Group], heads: int) -> Tensor:
        return attend_only(project(x), groups, heads)

    def backward(self, dy: Tensor, groups: list[Group], kept: list[Tensor], p: float) -> Tensor:
        return attend_backward(dy, groups, kept, p)


class Layer:
    """Computes a layer of hidden states (M, D), of linear layers `joints`, `norms`, and their `parts` in a given order."""

    attention: Attention
    heads: int
    joints: list[Joint | TrainedLinear]  # in the order of their computation
    norms: Sequence[Norm]
    parts: list[Any]
    activated: Any = None  # the joint that GELU follows
    # joints with LoRAs in, and what the norms compute with, while nothing is trained
    merged: tuple[list[FrozenLinear | Int8Linear], list[Any]] | None = None

    @property
    def factors(self) -> list[nn.Parameter]:
        return [factor for part in self.parts for factor in part.factors]

    def chances(self) -> tuple[float, ...]:
        """Gives how likely dropout leaves out a weight of attention, a number of its output, one of the layer's."""
        return ()

    def forward(
        self, x: Tensor, groups: list[Group], dropout: Dropout | None = None
    ) -> tuple[Tensor, list[list[Tensor]], tuple[float, ...]]:
        """Computes the next hidden states, what their gradient needs, and the dropout's `chances`.

        Unless merged, `prepare` must come first. dropout: of this pass; None where there is none.
        """
        raise NotImplementedError

    def backward(
        self, dy: Any, groups: list[Group], kept: list[list[Tensor]], chances: Sequence[float], *, dx: bool
    ) -> tuple[Tensor | None, list[list[Tensor]]]:
        """Computes the gradient of x, if asked for, and those of each of `parts`. kept, chances: what `forward` gave."""
        raise NotImplementedError

    @torch.no_grad()
    def merge(self, dtype: torch.dtype, *, int8: bool) -> None:
        joints = [joint.merged(dtype, gelu=joint is self.activated, int8=int8) for joint in self.joints]
        self.merged = joints, [norm.numbers() for norm in self.norms]


class BertLayer(Layer):
    """Computes a layer of transformers' BERT, ELECTRA or RoBERTa, whose weights it reads."""

    def __init__(self, layer: Any, attention: Attention | None = None) -> None:
        self.attention, own, feed_forward = attention or Attention(), layer.attention, layer.output
        self.heads = own.self.num_attention_heads
        self.projections = joint(*(getattr(own.self, name) for name in self.attention.names))
        self.context, self.intermediate = joint(own.output.dense), joint(layer.intermediate.dense)
        self.output = joint(feed_forward.dense)
        self.joints, self.activated = [self.projections, self.context, self.intermediate, self.output], self.intermediate
        self.norms = Norm(own.output.LayerNorm), Norm(feed_forward.LayerNorm)
        self.parts = [self.projections, self.context, self.norms[0], self.intermediate, self.output, self.norms[1]]
        self.dropouts = own.self.dropout, own.output.dropout, feed_forward.dropout

    def chances(self) -> tuple[float, ...]:
        return tuple(m.p if m.training else 0.0 for m in self.dropouts)

    def forward(
        self, x: Tensor, groups: list[Group], dropout: Dropout | None = None
    ) -> tuple[Tensor, list[list[Tensor]], tuple[float, ...]]:
        if self.merged is not None:
            (project, context, intermediate, output), (first, second) = self.merged
            y = context(self.attention.alone(project, x, groups, self.heads)).add_(x)
            y = torch.native_layer_norm(y, *first)[0]
            return torch.native_layer_norm(output(intermediate(y)).add_(y), *second)[0], [], ()
        chances = (0.0, 0.0, 0.0) if dropout is None else self.chances()
        entering = self.attention.enter(x, groups)
        y, low_1 = self.projections.forward(entering)
        mixed, attention = self.attention.forward(y, groups, self.heads, dropout, chances[0])
        y, low_2 = self.context.forward(mixed)
        y, mask_1 = _add(y, x, dropout, chances[1])
        middle, norm_1 = self.norms[0].forward(y)
        inner, low_3 = self.intermediate.forward(middle)
        outer = F.gelu(inner)
        y, low_4 = self.output.forward(outer)
        y, mask_2 = _add(y, middle, dropout, chances[2])
        last, norm_2 = self.norms[1].forward(y)
        first = [[entering], low_1, attention, [mixed], low_2, mask_1, norm_1]
        kept = [*first, [middle], low_3, [inner, outer], low_4, mask_2, norm_2]
        return last, kept, chances

    def backward(
        self, dy: Any, groups: list[Group], kept: list[list[Tensor]], chances: Sequence[float], *, dx: bool
    ) -> tuple[Tensor | None, list[list[Tensor]]]:
        [entering], low_1, attention, [mixed], low_2, mask_1, norm_1, *rest = kept
        [middle], low_3, [inner, outer], low_4, mask_2, norm_2 = rest
        projected = dx or bool(self.projections.factors)  # whether anything learns below the attention's weights
        dy_2, of_norm_2 = self.norms[1].backward(dy, norm_2)
        dy, found_4 = self.output.backward(_kept(dy_2, mask_2, chances[2]), outer, low_4, dx=True)
        dy = torch.ops.aten.gelu_backward(dy, inner)
        dy, found_3 = self.intermediate.backward(dy, middle, low_3, dx=True)
        dy_1, of_norm_1 = self.norms[0].backward(dy.add_(dy_2), norm_1)
        dy, found_2 = self.context.backward(_kept(dy_1, mask_1, chances[1]), mixed, low_2, dx=projected)
        found_1: list[Tensor] = []
        if projected:
            dy = self.attention.backward(dy, groups, attention, chances[0])
            dy, found_1 = self.projections.backward(dy, entering, low_1, dx=dx)
        return (dy_1.add_(dy[: len(dy_1)]) if dx else None), [found_1, found_2, of_norm_1, found_3, found_4, of_norm_2]


def _add(y: Tensor, x: Tensor, dropout: Dropout | None, p: float) -> tuple[Tensor, list[Tensor]]:
    """Adds x to y in its place, of which dropout leaves some out with probability p; gives its mask too."""
    if dropout is None or not p:
        return y.add_(x), []
    mask = dropout.mask(y.shape, p, y.dtype)
    return torch.add(x, keep_(y, mask), alpha=1 / (1 - p), out=y), [mask]


def _kept(dy: Tensor, mask: list[Tensor], p: float) -> Tensor:
    """The gradient (M, D) of what dropout took numbers from: of these it is 0."""
    return keep(dy, mask[0]).div_(1 - p) if mask else dy


def joint(*layers: Any) -> Joint | TrainedLinear:
    """Gives layers of one input as one, with their LoRAs, or with their own weights where these are trained."""
    loras = [layer.forward if isinstance(layer.forward, LoRALinear) else None for layer in layers]
    own = [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
    if any(loras) or not any(p.requires_grad for p in own):
        return Joint([*zip(layers, loras, strict=True)])
    return TrainedLinear(layers)
