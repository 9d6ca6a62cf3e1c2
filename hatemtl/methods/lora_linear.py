"""A frozen linear layer with a LoRA on it, in as few passes over memory as its formula allows.

The libraries compute x·Aᵀ·Bᵀ, scale it and add it, a new tensor each time, and autocast casts the frozen weight at every
step. Here the frozen weight already has the type of the computation, and the update is accumulated into the layer's output.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.errors import UserError


class _LoRA(torch.autograd.Function):
    """y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ (Hu et al. 2022, arXiv:2106.09685, eq. 3), with gradients for x, A and B.

    x: (M, in), of N runs side by side M / N rows each, for N LoRAs. factors: their A (r, in) and B (out, r) by turns.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, *factors: Tensor) -> Tensor:
        a, b = torch.stack(factors[::2]).to(x.dtype), (scale * torch.stack(factors[1::2])).to(x.dtype)
        low = each(x, len(a)) @ a.mT
        y = F.linear(x, weight, bias)
        each(y, len(a)).baddbmm_(low, b.mT)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, weight, a, b, low = ctx.saved_tensors
        mine = each(dy, len(a))
        dlow = mine @ b
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        if dx is not None:
            each(dx, len(a)).baddbmm_(dlow, a)
        dA = (dlow.mT @ each(x, len(a))).float()
        dB = (low.mT @ mine).mT.float().mul_(ctx.scale)  # a CPU takes five times as long for (mine.mT @ low)
        return dx, None, None, None, *chain.from_iterable(zip(dA, dB, strict=True))


def each(x: Tensor, runs: int) -> Tensor:
    """(M, D) of several runs side by side as (runs, M / runs, D)."""
    return x.view(runs, len(x) // runs, x.shape[-1])


class LoRALinear:
    """Takes the place of `forward` in a library's LoRA layer; the library keeps the parameters, and saves them.

    layer: holds the frozen weight (out, in) and bias. A: (r, in), B: (out, r), trained in float32.
    merged: W + scale·B·A while nothing is trained, so that the LoRA costs nothing.
    beside: while several runs train side by side, their LoRAs of this layer, this one among them, in the order of the rows.
    """

    def __init__(self, layer: nn.Linear, A: nn.Parameter, B: nn.Parameter, scale: float) -> None:
        self.layer, self.A, self.B, self.scale = layer, A, B, scale
        self.merged: Tensor | None = None
        self.beside: Sequence[LoRALinear] = (self,)

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        x = x.to(weight.dtype)
        if self.merged is not None:
            return F.linear(x, self.merged, bias)
        if torch.compiler.is_compiling():  # the compiler fuses the plain formula by itself
            return F.linear(x, weight, bias) + F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype)) * self.scale
        if len(x) % len(self.beside):  # DeBERTa projects positions, which no run owns, with the weights of q and k
            raise UserError("it has a layer that reads something else than posts")
        factors = chain.from_iterable((lora.A, lora.B) for lora in self.beside)
        y = _LoRA.apply(x.reshape(-1, x.shape[-1]), weight, bias, self.scale, *factors)
        return y.view(*x.shape[:-1], y.shape[-1])

    @torch.no_grad()
    def merge(self) -> None:
        """Computes the merged weight, in float32, then in the type of the frozen one."""
        weight = self.layer.weight
        self.merged = torch.addmm(weight.float(), self.B.float(), self.A.float(), alpha=self.scale).to(weight.dtype)


def loras(model: nn.Module) -> dict[str, LoRALinear]:
    """Every LoRA of the model that is computed here, by the path of its layer."""
    return {path: module.forward for path, module in model.named_modules() if isinstance(module.forward, LoRALinear)}


@contextmanager
def side_by_side(models: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, the first model reads the posts of all, each with its own LoRAs: as many rows of the batch for each, in order.

    models: of one encoder, whose LoRAs adapt the same layers.
    """
    found = [loras(model) for model in models]
    try:
        for path, lora in found[0].items():
            lora.beside = [others[path] for others in found]
        yield
    finally:
        for lora in found[0].values():
            lora.beside = (lora,)
