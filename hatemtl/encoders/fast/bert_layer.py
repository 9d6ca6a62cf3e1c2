"""Computes the layer of BERT and its kin, in as few passes over memory as its formula allows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import or_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast.dropout import Dropout, keep, keep_
from hatemtl.encoders.fast.int8_linear import Int8Linear
from hatemtl.encoders.fast.lora_linear import FrozenLinear, Joint, LoRALinear
from hatemtl.encoders.fast.sublayer_end import Bottleneck, SublayerEnd
from hatemtl.encoders.fast.trained import TrainedLinear

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
    norms: Sequence[Any]  # and what computes with them, if anything
    parts: list[Any]
    activated: Any = None  # the joint that GELU follows
    # joints with LoRAs in, and norms, while nothing is trained
    merged: tuple[list[FrozenLinear | Int8Linear], list[Any]] | None = None

    @property
    def factors(self) -> list[nn.Parameter]:
        return [factor for part in self.parts for factor in part.factors]

    @property
    def linears(self) -> list[Any]:
        """Lists all that must be joined before it computes: `joints`, and those of adapters beside them."""
        return [*self.joints, *(joint for norm in self.norms for joint in norm.joints)]

    @property
    def bottlenecks(self) -> list[Bottleneck]:
        return [norm.bottleneck for norm in self.norms if norm.bottleneck is not None]

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
        self.merged = joints, [norm.merged(dtype) for norm in self.norms]


class BertLayer(Layer):
    """Computes a layer of transformers' BERT, ELECTRA or RoBERTa, whose weights it reads.

    bottlenecks: those that it may have, by the ids of their owners.
    """

    def __init__(
        self, layer: Any, attention: Attention | None = None, bottlenecks: Mapping[int, Bottleneck] | None = None
    ) -> None:
        self.attention, own, feed_forward = attention or Attention(), layer.attention, layer.output
        self.heads, self.own_dropout, known = own.self.num_attention_heads, own.self.dropout, bottlenecks or {}
        projections, context = joint(*(getattr(own.self, name) for name in self.attention.names)), joint(own.output.dense)
        intermediate, output = joint(layer.intermediate.dense), joint(feed_forward.dense)
        self.joints, self.activated = [projections, context, intermediate, output], intermediate
        first, second = self.norms = [SublayerEnd(end, known.get(id(end))) for end in (own.output, feed_forward)]
        self.parts = [projections, context, first, intermediate, output, second]

    def chances(self) -> tuple[float, ...]:
        return tuple(m.p if m.training else 0.0 for m in (self.own_dropout, *(end.dropout for end in self.norms)))

    def forward(
        self, x: Tensor, groups: list[Group], dropout: Dropout | None = None
    ) -> tuple[Tensor, list[list[Tensor]], tuple[float, ...]]:
        if self.merged is not None:
            (project, context, intermediate, output), (first, second) = self.merged
            y = first(context(self.attention.alone(project, x, groups, self.heads)), x)
            return second(output(intermediate(y)), y), [], ()
        chances = (0.0, 0.0, 0.0) if dropout is None else self.chances()
        entering = self.attention.enter(x, groups)
        y, low_1 = self.joints[0].forward(entering)
        mixed, attention = self.attention.forward(y, groups, self.heads, dropout, chances[0])
        y, low_2 = self.joints[1].forward(mixed)
        middle, end_1 = self.norms[0].forward(y, x, dropout, chances[1])
        inner, low_3 = self.joints[2].forward(middle)
        outer = F.gelu(inner)
        y, low_4 = self.joints[3].forward(outer)
        last, end_2 = self.norms[1].forward(y, middle, dropout, chances[2])
        first = [[entering], low_1, attention, [mixed], low_2, *end_1]
        return last, [*first, [middle], low_3, [inner, outer], low_4, *end_2], chances

    def backward(
        self, dy: Any, groups: list[Group], kept: list[list[Tensor]], chances: Sequence[float], *, dx: bool
    ) -> tuple[Tensor | None, list[list[Tensor]]]:
        [entering], low_1, attention, [mixed], low_2, *rest = kept
        end_1, ([middle], low_3, [inner, outer], low_4, *end_2) = rest[:3], rest[3:]
        # whether anything learns below each of the parts
        below = [*accumulate((bool(part.factors) for part in self.parts), or_, initial=dx)]
        found: list[list[Tensor]] = [[] for _ in self.parts]
        dy, across, found[5] = self.norms[1].backward(dy, end_2, chances[2], dx=below[5])
        if below[5]:
            dy, found[4] = self.joints[3].backward(dy, outer, low_4, dx=below[4])
        if below[4]:
            dy, found[3] = self.joints[2].backward(torch.ops.aten.gelu_backward(dy, inner), middle, low_3, dx=below[3])
        if below[3]:
            dy, across, found[2] = self.norms[0].backward(dy.add_(across), end_1, chances[1], dx=below[2])
        if below[2]:
            dy, found[1] = self.joints[1].backward(dy, mixed, low_2, dx=below[1])
        if below[1]:
            dy, found[0] = self.joints[0].backward(
                self.attention.backward(dy, groups, attention, chances[0]), entering, low_1, dx=dx
            )
        return (across.add_(dy[: len(across)]) if dx else None), found


def joint(*layers: Any) -> Joint | TrainedLinear:
    """Gives layers of one input as one, with their LoRAs, or with their own weights where these are trained."""
    loras = [layer.forward if isinstance(layer.forward, LoRALinear) else None for layer in layers]
    own = [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
    if any(loras) or not any(p.requires_grad for p in own):
        return Joint([*zip(layers, loras, strict=True)])
    return TrainedLinear(layers)
