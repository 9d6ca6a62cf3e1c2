"""Computes layers whose own weights are trained, in the type of the computation, with gradients in float32."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast.int8_linear import Int8Linear
from hatemtl.encoders.fast.lora_linear import FrozenLinear


class TrainedLinear:
    """Linear layers of one input side by side, without LoRAs: y = x·Wᵀ + b, (M, in) to (M, out), as `Joint` computes it.

    Every forward casts their weights anew, a hundredth of its products' time: who moves a weight need not tell.
    """

    loras = ()

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.layers = layers

    @property
    def factors(self) -> list[nn.Parameter]:
        """Lists what asks for a gradient: first weights, then biases."""
        own: list[Any] = [layer.weight for layer in self.layers]
        own += [layer.bias for layer in self.layers if layer.bias is not None]
        return [parameter for parameter in own if parameter.requires_grad]

    @property
    def scales(self) -> list[float]:
        return [1.0] * len(self.factors)

    def join(self, dtype: torch.dtype) -> None:
        """Makes one weight (out, in) and one bias (out,) of the layers', of this type."""
        self.weight, self.bias = self._joined(dtype)

    def _joined(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        rows = [layer.out_features for layer in self.layers]
        first = self.layers[0]
        if len(rows) == 1 and first.weight.dtype is dtype:
            return first.weight.detach(), None if first.bias is None else first.bias.detach()
        weight = first.weight.new_empty(sum(rows), first.in_features, dtype=dtype)
        bias = None if first.bias is None else weight.new_empty(sum(rows))
        torch._foreach_copy_([*weight.split(rows)], [layer.weight.detach() for layer in self.layers])
        if bias is not None:
            torch._foreach_copy_([*bias.split(rows)], [layer.bias.detach() for layer in self.layers])
        return weight, bias

    @torch.no_grad()
    def merged(self, dtype: torch.dtype, *, gelu: bool, int8: bool) -> FrozenLinear | Int8Linear:
        """Gives the layers as they compute while nothing is trained."""
        weight, bias = self._joined(dtype)
        return Int8Linear(weight, bias, gelu=gelu) if int8 else FrozenLinear(weight, bias, gelu=gelu, stays=True)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Computes y, and gives the weight, which its gradient needs besides x. `join` must come first."""
        return F.linear(x, self.weight, self.bias), [self.weight]

    def backward(self, dy: Tensor, x: Tensor, kept: list[Tensor], *, dx: bool) -> tuple[Tensor | None, list[Tensor]]:
        """Computes the gradient of x, if asked for, and those of `factors`."""
        found: list[Tensor] = []
        rows = [layer.out_features for layer in self.layers]
        if any(layer.weight.requires_grad for layer in self.layers):
            parts = zip(self.layers, (dy.mT @ x).split(rows), strict=True)
            found += [part for layer, part in parts if layer.weight.requires_grad]
        if any(layer.bias is not None and layer.bias.requires_grad for layer in self.layers):
            parts = zip(self.layers, dy.sum(0, dtype=torch.float32).split(rows), strict=True)
            found += [part for layer, part in parts if layer.bias.requires_grad]
        return (dy @ kept[0] if dx else None), found

    def apart(self, found: list[Tensor]) -> list[Tensor]:
        """Gives the gradient of each of `factors`, of what `backward` found."""
        return found


class Norm:
    """Computes a layer norm of x, (M, D), with gradients for its weight and bias where they ask for one."""

    loras, joints, bottleneck = (), (), None

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.norm = norm

    @property
    def factors(self) -> list[nn.Parameter]:
        return [p for p in (self.norm.weight, self.norm.bias) if p is not None and p.requires_grad]

    @property
    def scales(self) -> list[float]:
        return [1.0] * len(self.factors)

    def numbers(self) -> tuple[Any, Tensor, Tensor, float]:
        """Gives its shape, weight, bias and epsilon."""
        # with float32 weights torch keeps a bf16 input's mean and deviation in float32 too: more exact, and a quarter faster
        norm = self.norm
        own = norm.weight, torch.zeros_like(norm.weight) if norm.bias is None else norm.bias
        weight, bias = (w.detach().to(torch.promote_types(w.dtype, torch.float32)) for w in own)
        return norm.normalized_shape, weight, bias, norm.eps

    def merged(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """Gives what computes it while nothing is trained."""
        numbers = self.numbers()
        return lambda x: torch.native_layer_norm(x, *numbers)[0]

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Computes the norm, and what its gradient needs."""
        shape, weight, bias, eps = self.numbers()
        y, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
        return y, [x, mean, rstd, weight, bias]

    def backward(self, dy: Tensor, kept: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Computes the gradient of x, and those of `factors`."""
        x, *rest = kept
        asked = [True, self.norm.weight.requires_grad, self.norm.bias is not None and self.norm.bias.requires_grad]
        dx, *found = torch.ops.aten.native_layer_norm_backward(dy, x, x.shape[-1:], *rest, asked)
        return dx, [part for part, wanted in zip(found, asked[1:], strict=True) if wanted]

    def apart(self, found: list[Tensor]) -> list[Tensor]:
        return found
