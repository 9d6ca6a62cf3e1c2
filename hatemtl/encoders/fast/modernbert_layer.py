"""Computes the layer of ModernBERT: norms before, turned queries and keys, a gate beside GELU."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast.bert_layer import Attention, Group, Layer, joint
from hatemtl.encoders.fast.dropout import Dropout
from hatemtl.encoders.fast.trained import Norm


class Rotary(Attention):
    """Turns pairs of dimensions of q and k by angles that grow with their place (Su et al. 2021, arXiv:2104.09864, eq. 34).

    A place of a local layer reads those at most `window` away, one of a global layer, where it is -1, all.
    """

    def __init__(self, layer: Any, model: Any) -> None:
        if kind := getattr(layer, "attention_type", None):  # transformers 5 keeps the angles of all layers in the model
            self.rotary, self.frequencies = model.rotary_emb, f"{kind}_inv_freq"
            self.window = model.config.sliding_window if kind == "sliding_attention" else -1
        else:
            self.rotary, self.frequencies, self.window = layer.attn.rotary_emb, "inv_freq", layer.attn.local_attention[0]

    def forward(
        self, qkv: Tensor, groups: list[Group], heads: int, dropout: Dropout | None, p: float
    ) -> tuple[Tensor, list[Tensor]]:
        return super().forward(self._turn(qkv, groups, heads), self._near(groups), heads, dropout, p)

    def alone(self, project: Callable[[Tensor], Tensor], x: Tensor, groups: list[Group], heads: int) -> Tensor:
        return super().alone(lambda rows: self._turn(project(rows), groups, heads), x, self._near(groups), heads)

    def backward(self, dy: Tensor, groups: list[Group], kept: list[Tensor], p: float) -> Tensor:
        return self._turn(super().backward(dy, groups, kept, p), groups, dy.shape[-1] // kept[0].shape[-1], back=True)

    def _turn(self, qkv: Tensor, groups: list[Group], heads: int, *, back: bool = False) -> Tensor:
        """Turns q and k of (M, 3·H·d), in place."""
        longest = max(group.mask.shape[-1] for group in groups)
        frequencies = getattr(self.rotary, self.frequencies).float()
        angles = torch.outer(torch.arange(longest, device=qkv.device, dtype=torch.float32), frequencies)[:, None, None]
        cos, sin = angles.cos().to(qkv.dtype), angles.sin().to(qkv.dtype)
        for group in groups:
            length = group.mask.shape[-1]
            halves = qkv[group.begin : group.end].view(-1, length, 3, heads, 2, len(frequencies))[:, :, :2].unbind(4)
            x, y = reversed(halves) if back else halves
            across = y * sin[:length]
            y.mul_(cos[:length]).addcmul_(x, sin[:length])
            x.mul_(cos[:length]).sub_(across)
        return qkv

    def _near(self, groups: list[Group]) -> list[Group]:
        """Gives the groups with masks (n, 1, T, T) of what is near, where posts are long enough for it to matter."""
        return [self._masked(group) if 0 <= self.window < group.mask.shape[-1] - 1 else group for group in groups]

    def _masked(self, group: Group) -> Group:
        places = torch.arange(group.mask.shape[-1], device=group.mask.device)
        far = (places[:, None] - places).abs() > self.window
        return Group(group.begin, group.end, group.mask.masked_fill(far, torch.finfo(group.mask.dtype).min))


class ModernBertLayer(Layer):
    """Computes a layer of transformers' ModernBERT, whose weights it reads; of dropout it knows nothing."""

    def __init__(self, layer: Any, model: Any) -> None:
        self.heads, self.attention = model.config.num_attention_heads, Rotary(layer, model)
        self.joints = [joint(linear) for linear in (layer.attn.Wqkv, layer.attn.Wo, layer.mlp.Wi, layer.mlp.Wo)]
        # the lowest layer has one, for the embeddings are normed
        self.norms = [Norm(norm) for norm in (layer.attn_norm, layer.mlp_norm) if isinstance(norm, nn.LayerNorm)]
        self.parts = [*self.joints, *self.norms]

    def forward(
        self, x: Tensor, groups: list[Group], dropout: Dropout | None = None
    ) -> tuple[Tensor, list[list[Tensor]], tuple[float, ...]]:
        if self.merged is not None:
            (project, context, intermediate, output), [*first, second] = self.merged
            normed = first[0](x) if first else x
            y = context(self.attention.alone(project, normed, groups, self.heads)).add_(x)
            a, gate = intermediate(second(y)).chunk(2, dim=-1)
            return output(F.gelu(a).mul_(gate)).add_(y), [], ()
        normed, norm_1 = self.norms[0].forward(x) if len(self.norms) > 1 else (x, [])
        y, low_1 = self.joints[0].forward(normed)
        mixed, attention = self.attention.forward(y, groups, self.heads, None, 0.0)
        y, low_2 = self.joints[1].forward(mixed)
        middle = y.add_(x)
        entering, norm_2 = self.norms[-1].forward(middle)
        inner, low_3 = self.joints[2].forward(entering)
        a, gate = inner.chunk(2, dim=-1)
        outer = F.gelu(a).mul_(gate)
        y, low_4 = self.joints[3].forward(outer)
        kept = [norm_1, [normed], low_1, attention, [mixed], low_2, norm_2, [entering], low_3, [inner, outer], low_4]
        return y.add_(middle), kept, ()

    def backward(
        self, dy: Any, groups: list[Group], kept: list[list[Tensor]], chances: Sequence[float], *, dx: bool
    ) -> tuple[Tensor | None, list[list[Tensor]]]:
        norm_1, [normed], low_1, attention, [mixed], low_2, norm_2, [entering], low_3, [inner, outer], low_4 = kept
        below = dx or any(norm.factors for norm in self.norms[:-1])  # whether anything learns below the projections
        projected = below or bool(self.joints[0].factors)
        d: Any
        d, of_4 = self.joints[3].backward(dy, outer, low_4, dx=True)
        a, gate = inner.chunk(2, dim=-1)
        d_inner = torch.empty_like(inner)
        d_a, d_gate = d_inner.chunk(2, dim=-1)
        torch.mul(d, F.gelu(a), out=d_gate)
        torch.ops.aten.gelu_backward.grad_input(d.mul_(gate), a, grad_input=d_a)
        d, of_3 = self.joints[2].backward(d_inner, entering, low_3, dx=True)
        d, of_norm_2 = self.norms[-1].backward(d, norm_2)
        d_middle = d.add_(dy)
        d, of_2 = self.joints[1].backward(d_middle, mixed, low_2, dx=projected)
        of_1, of_norm_1 = list[Tensor](), list[list[Tensor]]([[]] * (len(self.norms) - 1))
        if projected:
            d = self.attention.backward(d, groups, attention, 0.0)
            d, of_1 = self.joints[0].backward(d, normed, low_1, dx=below)
        if below and len(self.norms) > 1:
            d, of_norm_1[0] = self.norms[0].backward(d, norm_1)
        return (d_middle.add_(d) if dx else None), [of_1, of_2, of_3, of_4, *of_norm_1, of_norm_2]
