"""A frozen linear layer with a LoRA on it, in as few passes over memory as its formula allows.

The libraries compute x·Aᵀ·Bᵀ, scale it and add it, a new tensor each time, and autocast casts the frozen weight at every
step. Here the frozen weight already has the type of the computation, and the update is accumulated into the layer's output.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _LoRA(torch.autograd.Function):
    """y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ (Hu et al. 2022, arXiv:2106.09685, eq. 3), with gradients for x, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        a, b = A.to(x.dtype), (scale * B).to(x.dtype)
        low = x @ a.T
        y = F.linear(x, weight, bias)
        y.addmm_(low, b.T)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, weight, a, b, low = ctx.saved_tensors
        dlow = dy @ b
        dx = (dy @ weight).addmm_(dlow, a) if ctx.needs_input_grad[0] else None
        dA = (dlow.T @ x).float()
        dB = (dy.T @ low).float().mul_(ctx.scale)
        return dx, None, None, dA, dB, None


class LoRALinear:
    """Takes the place of `forward` in a library's LoRA layer; the library keeps the parameters, and saves them.

    layer: holds the frozen weight (out, in) and bias. A: (r, in), B: (out, r), trained in float32.
    merged: W + scale·B·A while nothing is trained, so that the LoRA costs nothing.
    """

    def __init__(self, layer: nn.Linear, A: nn.Parameter, B: nn.Parameter, scale: float) -> None:
        self.layer, self.A, self.B, self.scale = layer, A, B, scale
        self.merged: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        x = x.to(weight.dtype)
        if self.merged is not None:
            return F.linear(x, self.merged, bias)
        if torch.compiler.is_compiling():  # the compiler fuses the plain formula by itself
            return F.linear(x, weight, bias) + F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype)) * self.scale
        y = _LoRA.apply(x.reshape(-1, x.shape[-1]), weight, bias, self.A, self.B, self.scale)
        return y.view(*x.shape[:-1], y.shape[-1])

    @torch.no_grad()
    def merge(self) -> None:
        """Computes the merged weight, in float32, then in the type of the frozen one."""
        weight = self.layer.weight
        self.merged = torch.addmm(weight.float(), self.B.float(), self.A.float(), alpha=self.scale).to(weight.dtype)
