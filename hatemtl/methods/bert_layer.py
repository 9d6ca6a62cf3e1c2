"""The layer of BERT and its kin (ELECTRA, RoBERTa) with LoRAs, in as few passes over memory as its formula allows.

transformers projects queries, keys and values apart, scales and masks the scores in passes of their own and copies at every
transpose. Here the three projections are one product, scale and mask one pass, and the residual is added in place.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.methods.lora_linear import LoRALinear, each

# transformers' layers of one form.
KINDS = ("BertLayer", "ElectraLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer")
# Softmax over fewer than 16 float32 numbers, one AVX-512 register, takes ten times as long a number.
LEAST_KEYS = 16


class _Projections(torch.autograd.Function):
    """Layers of one input side by side, y = x·Wᵀ + b, (M, in) to (M, out), some with a LoRA: y[:, i] += s·(x·Aᵀ)·Bᵀ.

    Of N runs side by side, M / N rows are each one's. loras: for each layer with a LoRA where it begins in y, and s.
    factors: its A and B for every run, then those of the next layer. Gradients for x and these.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, loras: Sequence[tuple[int, float]], *factors: Tensor
    ) -> Tensor:
        y = F.linear(x, weight, bias)
        if not loras:
            ctx.save_for_backward(weight)
            return y
        both = len(factors) // len(loras)
        layers = [factors[i : i + both] for i in range(0, len(factors), both)]
        As, runs = [torch.stack(layer[::2]) for layer in layers], both // 2
        A, ranks = torch.cat(As, dim=1).to(x.dtype), [A.shape[1] for A in As]
        Bs = [(s * torch.stack(layer[1::2])).to(x.dtype) for (_, s), layer in zip(loras, layers, strict=True)]
        low = each(x, runs) @ A.mT
        for (begin, _), B, part in zip(loras, Bs, low.split(ranks, dim=2), strict=True):
            each(y, runs)[:, :, begin : begin + B.shape[1]].baddbmm_(part, B.mT)
        ctx.save_for_backward(weight, x, low, A, *Bs)
        ctx.loras, ctx.ranks = loras, ranks
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (dy,), (weight, *kept) = grads, ctx.saved_tensors
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        if not kept:
            return dx, None, None, None
        x, low, A, *Bs = kept
        runs = len(A)
        dlow, dBs = torch.empty_like(low), []
        parts = zip(ctx.loras, Bs, low.split(ctx.ranks, dim=2), dlow.split(ctx.ranks, dim=2), strict=True)
        for (begin, s), B, part, dpart in parts:
            mine = each(dy, runs)[:, :, begin : begin + B.shape[1]]
            torch.bmm(mine, B, out=dpart)
            dBs.append((part.mT @ mine).mT.float().mul_(s))  # a CPU takes three times as long for (mine.mT @ part)
        if dx is not None:
            each(dx, runs).baddbmm_(dlow, A)
        dAs = (dlow.mT @ each(x, runs)).float().split(ctx.ranks, dim=1)
        turns = (pair for dA, dB in zip(dAs, dBs, strict=True) for pair in zip(dA, dB, strict=True))
        return dx, None, None, None, *chain.from_iterable(turns)


class _Attention(torch.autograd.Function):
    """softmax(q·kᵀ/√d + mask)·v (Vaswani et al. 2017, eq. 1): (B, T, 3, H, d) of q, k, v, to (B, T, H·d)."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, mask: Tensor | None) -> Tensor:
        context, *kept = _attend(qkv, mask)
        ctx.save_for_backward(*kept)
        return context

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (dy,) = grads
        q, k, v, p = ctx.saved_tensors
        posts, length, _ = dy.shape
        heads, width = len(q) // posts, q.shape[2]
        do = dy.view(posts, length, heads, width).transpose(1, 2).reshape(-1, length, width)
        dp = torch.bmm(do, v.transpose(1, 2)).float()
        ds = torch._softmax_backward_data(dp, p.float(), -1, torch.float32).mul_(width**-0.5).to(q.dtype)
        dqkv = dy.new_empty(posts, length, 3, heads, width)
        for i, (left, right) in enumerate(((ds, k), (ds.transpose(1, 2), q), (p.transpose(1, 2), do))):
            dqkv[:, :, i] = torch.bmm(left, right)[:, :length].view(posts, heads, length, width).transpose(1, 2)
        return dqkv, None


def _attend(qkv: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The context (B, T, H·d), and what its gradient needs: q (B·H, T, d), k and v (B·H, K, d), the weights (B·H, T, K).

    K is T, but `LEAST_KEYS` at least; keys of nothing get no weight. mask: (B or 1, 1, 1, T) float32, 0 for a token.
    """
    posts, length, _, heads, width = qkv.shape
    keys = max(length, LEAST_KEYS)
    if mask is None:
        mask = qkv.new_zeros(1, 1, 1, length, dtype=torch.float32)
    if keys == length:
        parts = qkv.permute(2, 0, 3, 1, 4).contiguous()
    else:
        parts = qkv.new_zeros(3, posts, heads, keys, width)
        parts[..., :length, :] = qkv.permute(2, 0, 3, 1, 4)
        mask = F.pad(mask, (0, keys - length), value=-math.inf)
    q, k, v = parts.view(3, posts * heads, keys, width).unbind()
    q = q[:, :length]
    scores = torch.bmm(q, k.transpose(1, 2)).view(posts, heads, length, keys)
    p = torch.softmax(torch.add(mask, scores, alpha=width**-0.5), dim=-1).to(q.dtype).view(-1, length, keys)
    context = torch.bmm(p, v).view(posts, heads, length, width).transpose(1, 2).reshape(posts, length, -1)
    return context, q, k, v, p


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
        self.projections: list[nn.Linear] = [attention.self.query, attention.self.key, attention.self.value]
        self.context, self.norm = attention.output.dense, attention.output.LayerNorm
        self.intermediate, self.output, self.last_norm = layer.intermediate.dense, feed_forward.dense, feed_forward.LayerNorm
        self.weight = self.bias = torch.empty(0)
        self.merged: list[_Packed | _Plain] | None = None

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
        self._join()
        x = hidden.to(self.weight.dtype)
        posts, length, width = x.shape
        shape = posts, length, 3, self.heads, width // self.heads
        if self.merged is not None:
            project, context, intermediate, output = self.merged
            x = self.norm(context(_attend(project(x).view(shape), attention_mask)[0]).add_(x))
            return (self.last_norm(output(intermediate(x)).add_(x)),)
        steps = [(i * width, m.forward) for i, m in enumerate(self.projections) if isinstance(m.forward, LoRALinear)]
        loras = [(begin, lora.scale) for begin, lora in steps]
        factors = [factor for _, lora in steps for run in lora.beside for factor in (run.A, run.B)]
        y = _Projections.apply(x.reshape(-1, width), self.weight, self.bias, loras, *factors)
        x = self.norm(self.context(_Attention.apply(y.view(shape), attention_mask)).add_(x))
        return (self.last_norm(self.output(F.gelu(self.intermediate(x))).add_(x)),)

    def _join(self) -> None:
        """Makes one weight (3·D, D) and one bias of the three projections', which become views of them."""
        if self.weight.data_ptr() == self.projections[0].weight.data_ptr():  # else first called, or moved since
            return
        with torch.inference_mode(False):  # they serve training too, whoever comes first
            self.weight = torch.cat([step.weight.data for step in self.projections])
            self.bias = torch.cat([step.bias.data for step in self.projections])
            for step, weight, bias in zip(self.projections, self.weight.chunk(3), self.bias.chunk(3), strict=True):
                step.weight.data, step.bias.data = weight, bias

    @torch.no_grad()
    def merge(self) -> None:
        """Takes over the merged weights of the LoRAs in it, which were merged before."""

        def merged(step: nn.Linear) -> Tensor:
            found = step.forward.merged if isinstance(step.forward, LoRALinear) else None
            return step.weight if found is None else found

        self._join()
        weight = torch.cat([merged(step) for step in self.projections])
        kind = _Packed if _Packed.fits(weight) else _Plain
        self.merged = [
            kind(weight, self.bias),
            kind(merged(self.context), self.context.bias),
            kind(merged(self.intermediate), self.intermediate.bias, gelu=True),
            kind(merged(self.output), self.output.bias),
        ]


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
