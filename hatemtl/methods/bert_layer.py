"""The layer of BERT and its kin (ELECTRA, RoBERTa) with LoRAs, in as few passes over memory as its formula allows.

transformers projects queries, keys and values apart, scales and masks the scores in passes of their own, copies at every
transpose and computes padding like tokens. Here the three projections are one product, scale and mask one pass, the residual
is added in place, the whole layer is one step of autograd, and only attention sees padding.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.methods.lora_linear import Joint, LoRALinear

# transformers' layers of one form.
KINDS = ("BertLayer", "ElectraLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer")
# Softmax over fewer than 16 float32 numbers, one AVX-512 register, takes ten times as long a number.
LEAST_KEYS = 16
# oneDNN's products lose up to a third of their speed where 1 to 3 rows are left over from blocks of 8.
ROWS = 16


class _Layer(torch.autograd.Function):
    """A whole `BertLayer`, with gradients for its input (B, T, D) and its factors, named here so that they get theirs."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, mask: Tensor | None, layer: "BertLayer", *factors: Tensor) -> Tensor:
        tokens = Tokens.of(hidden, mask, runs=layer.runs)
        x = tokens.pack(hidden)
        y, low_1 = layer.projections.forward(x)
        context, *attention = _attend(y, tokens, layer.heads)
        y, low_2 = layer.context.forward(context)
        middle, norm_1 = layer.norms[0].forward(y.add_(x))
        inner, low_3 = layer.intermediate.forward(middle)
        outer = F.gelu(inner)
        y, low_4 = layer.output.forward(outer)
        last, norm_2 = layer.norms[1].forward(y.add_(middle))
        parts = ([x], low_1, attention, [context], low_2, norm_1, [middle], low_3, [inner, outer], low_4, norm_2)
        ctx.save_for_backward(*chain.from_iterable(parts))
        ctx.layer, ctx.sizes, ctx.tokens = layer, [len(part) for part in parts], tokens
        return tokens.unpack(last)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        kept, layer, (dy,) = iter(ctx.saved_tensors), ctx.layer, grads
        (x,), low_1, attention, (context,), low_2, norm_1, (middle,), low_3, (inner, outer), low_4, norm_2 = (
            list(islice(kept, size)) for size in ctx.sizes
        )
        below = ctx.needs_input_grad[0]
        projected = below or bool(layer.projections.loras)  # whether anything learns below the attention's weights
        dy_2 = layer.norms[1].backward(ctx.tokens.pack(dy), norm_2)
        dy, found_4 = layer.output.backward(dy_2, outer, low_4, dx=True)
        dy = torch.ops.aten.gelu_backward(dy, inner)
        dy, found_3 = layer.intermediate.backward(dy, middle, low_3, dx=True)
        dy_1 = layer.norms[0].backward(dy.add_(dy_2), norm_1)
        dy, found_2 = layer.context.backward(dy_1, context, low_2, dx=projected)
        if not projected:
            return None, None, None, *found_2, *found_3, *found_4
        dy = _attend_backward(dy, ctx.tokens, *attention)
        dy, found_1 = layer.projections.backward(dy, x, low_1, dx=below)
        dx = ctx.tokens.unpack(dy.add_(dy_1)) if below else None
        return dx, None, None, *found_1, *found_2, *found_3, *found_4


class _Norm:
    """A frozen layer norm, (M, D)."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.norm = norm

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The normed x, and what its gradient needs."""
        norm = self.norm
        y, mean, rstd = torch.native_layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return y, [x, mean, rstd]

    def backward(self, dy: Tensor, kept: list[Tensor]) -> Tensor:
        """The gradient of x."""
        x, mean, rstd = kept
        norm, which = self.norm, [True, False, False]
        return torch.ops.aten.native_layer_norm_backward(
            dy, x, norm.normalized_shape, mean, rstd, norm.weight, norm.bias, which
        )[0]


@dataclass(frozen=True)
class Tokens:
    """Which places of a padded batch (B, T) hold a token: what is computed token by token leaves the padding out.

    mask: (B or 1, 1, 1, T) float32, 0 for a token, as attention adds it. count: how many tokens there are; M is the next
    multiple of `ROWS`. places: (M,) where the tokens stand among the B·T. sources: (B·T,) which token stands at each place,
    anyone's at padding. padding: where that is. These are None where M is B·T, or on a GPU, which would be waited for.
    """

    shape: tuple[int, int]
    mask: Tensor | None
    count: int = 0
    places: Tensor | None = None
    sources: Tensor | None = None
    padding: Tensor | None = None

    @staticmethod
    def of(hidden: Tensor, mask: Tensor | None, *, runs: int = 1) -> "Tokens":
        """Those of a batch's hidden states (B, T, D); padding stays where several runs own as many rows each."""
        posts, length, _ = hidden.shape
        if mask is None or runs > 1 or waits(hidden.device) or mask.shape != (posts, 1, 1, length):
            return Tokens((posts, length), mask)
        return _tokens(mask)  # every layer asks

    def pack(self, hidden: Tensor) -> Tensor:
        """(B, T, D) or (B·T, D) to (M, D), the last of which are zero."""
        hidden = hidden.reshape(-1, hidden.shape[-1])
        if self.places is None:
            return hidden
        x = hidden.index_select(0, self.places)
        x[self.count :] = 0
        return x

    def unpack(self, x: Tensor) -> Tensor:
        """(M, D) to (B, T, D), zero at padding."""
        if self.sources is not None and self.padding is not None:
            x = x.index_select(0, self.sources).index_fill_(0, self.padding, 0.0)
        return x.view(*self.shape, -1)


def waits(device: torch.device) -> bool:
    """Whether to count what is on this device would have to wait for it."""
    return device.type != "cpu"


@lru_cache(maxsize=1)
def _tokens(mask: Tensor) -> Tokens:
    real, shape = mask.flatten() == 0, (len(mask), mask.shape[-1])
    places = real.nonzero()[:, 0]
    count = len(places)
    if -(-count // ROWS) * ROWS >= len(real):
        return Tokens(shape, mask)
    sources = real.cumsum(0).sub_(1).clamp_(min=0)
    return Tokens(shape, mask, count, F.pad(places, (0, -count % ROWS)), sources, (~real).nonzero()[:, 0])


def _attend(qkv: Tensor, tokens: Tokens, heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """softmax(q·kᵀ/√d + mask)·v (Vaswani et al. 2017, eq. 1), of (M, 3·H·d) of q, k and v, and what its gradient needs.

    The context (M, H·d); q (B·H, T, d), k and v (B·H, K, d), the weights (B·H, T, K). K is T, but `LEAST_KEYS` at least;
    keys of nothing get no weight.
    """
    (posts, length), mask = tokens.shape, tokens.mask
    keys = max(length, LEAST_KEYS)
    if mask is None:
        mask = qkv.new_zeros(1, 1, 1, length, dtype=torch.float32)
    if tokens.sources is not None:  # the mask hides what stands at padding
        qkv = qkv.index_select(0, tokens.sources)
    qkv = qkv.view(posts, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    if keys == length:
        parts = qkv.contiguous()
    else:
        parts = qkv.new_zeros(3, posts, heads, keys, qkv.shape[-1])
        parts[..., :length, :] = qkv
        mask = F.pad(mask, (0, keys - length), value=-math.inf)
    q, k, v = parts.flatten(1, 2).unbind()
    q = q[:, :length]
    scores = torch.bmm(q, k.transpose(1, 2)).view(posts, heads, length, keys)
    p = torch.softmax(torch.add(mask, scores, alpha=q.shape[-1] ** -0.5), dim=-1).to(q.dtype).view(-1, length, keys)
    context = torch.bmm(p, v).view(posts, heads, length, -1).transpose(1, 2).reshape(posts * length, -1)
    return tokens.pack(context), q, k, v, p


def _attend_backward(dy: Tensor, tokens: Tokens, q: Tensor, k: Tensor, v: Tensor, p: Tensor) -> Tensor:
    """The gradient (M, 3·H·d) of q, k and v, from that of the context, (M, H·d), and from what `_attend` kept."""
    (posts, length), width = tokens.shape, q.shape[-1]
    heads = len(q) // posts
    do = tokens.unpack(dy).view(posts, length, heads, width).transpose(1, 2).reshape(-1, length, width)
    dp = torch.bmm(do, v.transpose(1, 2)).float()
    ds = torch._softmax_backward_data(dp, p.float(), -1, torch.float32).mul_(width**-0.5).to(q.dtype)
    dqkv = dy.new_empty(posts, length, 3, heads, width)
    for i, (left, right) in enumerate(((ds, k), (ds.transpose(1, 2), q), (p.transpose(1, 2), do))):
        dqkv[:, :, i] = torch.bmm(left, right)[:, :length].view(posts, heads, length, width).transpose(1, 2)
    return tokens.pack(dqkv.view(posts * length, -1))


class _Packed:
    """A frozen linear layer in the order in which oneDNN multiplies fastest, GELU included where it follows."""

    def __init__(self, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> None:
        self.weight, self.bias, self.gelu = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1), bias, gelu

    @staticmethod
    def fits(weight: Tensor) -> bool:
        """Whether oneDNN has an order of its own for such a weight."""
        here = weight.dtype is torch.bfloat16 and weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        return here and hasattr(torch.ops.mkldnn, "_linear_pointwise")

    def __call__(self, x: Tensor) -> Tensor:
        after: tuple[Any, ...] = ("gelu", [], "none") if self.gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *after)


class _Plain:
    """A frozen linear layer, GELU included where it follows."""

    def __init__(self, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> None:
        self.weight, self.bias, self.gelu = weight, bias, gelu

    def __call__(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y) if self.gelu else y


class BertLayer:
    """Takes the place of `forward` in a layer of transformers' BERT, ELECTRA or RoBERTa, whose weights it reads.

    Dropout in the body and compiled code go the layer's own way. merged: the four linear layers with their LoRAs in them
    while nothing is trained: projections, attention's output, and the two of the feed-forward.
    """

    def __init__(self, layer: Any) -> None:
        attention, feed_forward = layer.attention, layer.output
        self.own, self.dropouts = layer.forward, [m for m in layer.modules() if isinstance(m, nn.Dropout)]
        self.heads: int = attention.self.num_attention_heads
        self.projections = _joint(attention.self.query, attention.self.key, attention.self.value)
        self.context, self.intermediate = _joint(attention.output.dense), _joint(layer.intermediate.dense)
        self.output = _joint(feed_forward.dense)
        self.norms = _Norm(attention.output.LayerNorm), _Norm(feed_forward.LayerNorm)
        self.merged: list[_Packed | _Plain] | None = None

    @property
    def joints(self) -> list[Joint]:
        """The linear layers, in the order in which they are computed."""
        return [self.projections, self.context, self.intermediate, self.output]

    def __call__(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None = None,
        *rest: Any,
        output_attentions: bool = False,
        **more: Any,
    ) -> tuple[Tensor, ...]:
        dropout = any(m.training and m.p > 0 for m in self.dropouts)
        if dropout or output_attentions or torch.compiler.is_compiling():
            return self.own(hidden, attention_mask, *rest, output_attentions=output_attentions, **more)
        hidden = hidden.to(self.context.layers[0].weight.dtype)
        if self.merged is None:
            factors = chain.from_iterable(joint.factors for joint in self.joints)
            return (_Layer.apply(hidden, attention_mask, self, *factors),)
        tokens, (project, context, intermediate, output) = Tokens.of(hidden, attention_mask), self.merged
        x = tokens.pack(hidden)
        x = self.norms[0].norm(context(_attend(project(x), tokens, self.heads)[0]).add_(x))
        return (tokens.unpack(self.norms[1].norm(output(intermediate(x)).add_(x))),)

    @property
    def runs(self) -> int:
        """How many are read side by side."""
        return max((len(lora.beside) for joint in self.joints for *_, lora in joint.loras), default=1)

    @torch.no_grad()
    def merge(self) -> None:
        """Takes over the merged weights of the LoRAs in it, which were merged before."""
        self.merged = []
        for joint in self.joints:
            joint.join()
            weight = joint.weight
            if joint.loras:
                weight = weight.clone()
                for begin, end, lora in joint.loras:
                    assert lora.merged is not None
                    weight[begin:end] = lora.merged
            kind = _Packed if _Packed.fits(weight) else _Plain
            self.merged.append(kind(weight, joint.bias, gelu=joint is self.intermediate))


def _joint(*layers: Any) -> Joint:
    return Joint([(layer, layer.forward if isinstance(layer.forward, LoRALinear) else None) for layer in layers])


def fuse(model: nn.Module) -> None:
    """Lets every layer of the model that is one of BERT's be computed by `BertLayer`.

    To be called where nothing but LoRAs is trained, each computed by LoRALinear.
    """
    config: Any = model.config
    eager, absolute = config._attn_implementation == "eager", getattr(config, "position_embedding_type", "") == "absolute"
    if eager and absolute and getattr(config, "hidden_act", "") == "gelu" and not getattr(config, "is_decoder", False):
        for layer in model.modules():
            if type(layer).__name__ in KINDS:
                layer.forward = BertLayer(layer)


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Inside, every LoRA of the model is merged into the weight under it; afterwards all is as before, to the last bit."""
    forwards = [module.forward for module in model.modules()]
    steps = [f for f in forwards if isinstance(f, LoRALinear)] + [f for f in forwards if isinstance(f, BertLayer)]
    try:
        for step in steps:
            step.merge()
        yield
    finally:
        for step in steps:
            step.merged = None
