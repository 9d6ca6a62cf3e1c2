"""Computes the layer of BERT and its kin (ELECTRA, RoBERTa) with LoRAs, in as few passes over memory as its formula allows.

transformers projects queries, keys and values apart, scales and masks the scores in passes of their own, and copies at every
transpose. Here the three projections are one product, scale and mask one pass, and the residual is added in place.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast.attention import Group, attend, attend_backward, attend_only
from hatemtl.encoders.fast.lora_linear import FrozenLinear, Joint, LoRALinear

# transformers' layers of one form.
KINDS = ("BertLayer", "ElectraLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer")


def _norm(norm: nn.LayerNorm, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Computes a frozen layer norm of x, (M, D), and keeps what its gradient needs."""
    # with float32 weights torch keeps a bf16 input's mean and deviation in float32 too: more exact, and a quarter faster
    weight, bias = (w.to(torch.promote_types(w.dtype, torch.float32)) for w in (norm.weight, norm.bias))
    y, mean, rstd = torch.native_layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
    return y, [x, mean, rstd, weight, bias]


def _norm_backward(dy: Tensor, kept: list[Tensor]) -> Tensor:
    """Computes the gradient of x."""
    x, *rest = kept
    return torch.ops.aten.native_layer_norm_backward(dy, x, x.shape[-1:], *rest, [True, False, False])[0]


class BertLayer:
    """Computes a layer of transformers' BERT, ELECTRA or RoBERTa, whose weights it reads, for hidden states (M, D).

    merged: its `joints` with their LoRAs in them while nothing is trained.
    """

    def __init__(self, layer: Any) -> None:
        attention, feed_forward = layer.attention, layer.output
        self.heads: int = attention.self.num_attention_heads
        self.projections = _joint(attention.self.query, attention.self.key, attention.self.value)
        self.context, self.intermediate = _joint(attention.output.dense), _joint(layer.intermediate.dense)
        self.output = _joint(feed_forward.dense)
        self.joints = [self.projections, self.context, self.intermediate, self.output]  # in the order of their computation
        self.norms = attention.output.LayerNorm, feed_forward.LayerNorm
        self.merged: list[FrozenLinear] | None = None

    @property
    def factors(self) -> list[nn.Parameter]:
        return [factor for joint in self.joints for factor in joint.factors]

    def forward(self, x: Tensor, groups: list[Group]) -> tuple[Tensor, list[list[Tensor]]]:
        """Computes the next hidden states, and what their gradient needs. Unless merged, `prepare` must come first."""
        if self.merged is not None:
            project, context, intermediate, output = self.merged
            y = _norm(self.norms[0], context(attend_only(project(x), groups, self.heads)).add_(x))[0]
            return _norm(self.norms[1], output(intermediate(y)).add_(y))[0], []
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
    def merge(self) -> None:
        self.merged = [joint.merged(gelu=joint is self.intermediate) for joint in self.joints]


def _joint(*layers: Any) -> Joint:
    return Joint([(layer, layer.forward if isinstance(layer.forward, LoRALinear) else None) for layer in layers])
