"""Computes what stands between a layer's products, each row by itself: norms, activations, gates, dropout."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast.dropout import keep, keep_
from hatemtl.encoders.fast.tape import Step, Tape

aten: Any = torch.ops.aten
# Each with the gradient of what it is taken of, of its own and of that.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "relu": (F.relu, lambda dy, z: aten.threshold_backward(dy, z, 0)),
    "gelu": (F.gelu, aten.gelu_backward),
    "silu": (F.silu, aten.silu_backward),
    "swish": (F.silu, aten.silu_backward),
}


class Activation(Step):
    """Computes one of `ACTIVATIONS`. product: the step before it where that one computes it too while merged."""

    def __init__(self, name: str, product: Step | None = None) -> None:
        self.name, self.product = name, product

    def forward(self, x: Tensor, tape: Tape, dx: bool) -> tuple[Tensor, Sequence[Tensor]]:
        if self.product is not None and self.product.merged is not None:
            return x, ()
        return ACTIVATIONS[self.name][0](x), (x,)

    def backward(self, dy: Tensor, kept: Sequence[Tensor], tape: Tape, dx: bool) -> Any:
        return ACTIVATIONS[self.name][1](dy, *kept)


class Gate(Step):
    """Computes gelu(a)·b of rows (a, b) (Shazeer 2020, arXiv:2002.05202, eq. 6)."""

    def forward(self, x: Tensor, tape: Tape, dx: bool) -> tuple[Tensor, Sequence[Tensor]]:
        a, b = x.chunk(2, dim=-1)
        return F.gelu(a).mul_(b), (x,)

    def backward(self, dy: Tensor, kept: Sequence[Tensor], tape: Tape, dx: bool) -> Any:
        (x,) = kept
        d = torch.empty_like(x)
        (a, b), (of_a, of_b) = x.chunk(2, dim=-1), d.chunk(2, dim=-1)
        torch.mul(dy, F.gelu(a), out=of_b)
        aten.gelu_backward.grad_input(dy.mul_(b), a, grad_input=of_a)  # dy is the next product's alone
        return d


class Drop(Step):
    """Leaves out what the library's dropout would, in x's place. scales: whether it scales the rest, or a sum after it."""

    def __init__(self, module: nn.Dropout, *, scales: bool) -> None:
        self.module, self.scales = module, scales

    def forward(self, x: Tensor, tape: Tape, dx: bool) -> tuple[Tensor, Sequence[Tensor]]:
        if not (p := tape.dropout.chance(self.module)):
            return x, ()
        mask = tape.dropout.mask(x.shape, p, x.dtype)
        keep_(x, mask)
        return x.div_(1 - p) if self.scales else x, (mask,)

    def backward(self, dy: Tensor, kept: Sequence[Tensor], tape: Tape, dx: bool) -> Any:
        return keep(dy, kept[0]).div_(1 - tape.dropout.chance(self.module)) if kept else dy


class Norm(Step):
    """Computes a layer norm, with gradients for its weight and bias where they ask for one."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.norm = norm

    @property
    def factors(self) -> list[nn.Parameter]:
        return [p for p in (self.norm.weight, self.norm.bias) if p is not None and p.requires_grad]

    def _numbers(self, dtype: torch.dtype) -> tuple[Any, Tensor, Tensor, float]:
        """Gives its shape, weight, bias and epsilon; dtype: of what is normed."""
        norm = self.norm
        own = norm.weight, torch.zeros_like(norm.weight) if norm.bias is None else norm.bias
        # with float32 weights a CPU keeps a bf16 input's mean and deviation in float32 too: more exact, a quarter faster;
        # others do so anyway, and take no weights of another type
        kept = torch.promote_types(dtype, torch.float32) if norm.weight.device.type == "cpu" else dtype
        weight, bias = (w.detach().to(kept) for w in own)
        return norm.normalized_shape, weight, bias, norm.eps

    def merge(self, dtype: torch.dtype, *, int8: bool) -> None:
        self.merged = self._numbers(dtype)

    def forward(self, x: Tensor, tape: Tape, dx: bool) -> tuple[Tensor, Sequence[Tensor]]:
        shape, weight, bias, eps = self.merged or self._numbers(x.dtype)
        y, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
        return y, (x, mean, rstd, weight, bias)

    def backward(self, dy: Tensor, kept: Sequence[Tensor], tape: Tape, dx: bool) -> Any:
        x, *rest = kept
        asked = [dx, self.norm.weight.requires_grad, self.norm.bias is not None and self.norm.bias.requires_grad]
        d, *found = aten.native_layer_norm_backward(dy, x, x.shape[-1:], *rest, asked)
        tape.learn(self.factors, [part for part, wanted in zip(found, asked[1:], strict=True) if wanted])
        return d
