"""Computes frozen linear layers with an adapter that a weight can hold: LoRA, DoRA, (IA)³."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast.linear import Linear, prepare
from hatemtl.encoders.fast.posts import Posts
from hatemtl.encoders.fast.rowwise import Activation
from hatemtl.encoders.fast.scale import Scale
from hatemtl.encoders.fast.tape import Step, compute


@dataclass(eq=False)
class Adapted:
    """A frozen linear layer with an adapter that a weight can hold.

    owner: the library's module whose `forward` it takes the place of. before: an own `forward` that the owner had, if any.
    merged: the weight, and the bias if it has another, that compute the same while nothing is trained.
    factors: what it learns, in float32. sizes: how large numbers they hold in a comparison.
    """

    owner: nn.Module
    layer: nn.Linear
    merged: tuple[Tensor, Tensor | None] | None = field(default=None, init=False)
    before: Any = field(default=None, init=False)
    factors: list[nn.Parameter] = field(init=False)
    sizes: list[float] = field(init=False)
    has_lora: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.steps = product((self.layer, self))

    def whole(self) -> Tensor:
        """Computes the weight, (out, in), that it comes to, in float32."""
        raise NotImplementedError

    def formula(self, x: Tensor) -> Tensor:
        """Computes the layer in plain torch, which a compiler fuses by itself."""
        raise NotImplementedError

    @torch.no_grad()
    def merge(self, dtype: torch.dtype, *, int8: bool) -> None:
        self.merged = self.whole().to(self.layer.weight.dtype), None

    def unmerge(self) -> None:
        self.merged = None

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.layer.weight.dtype)
        if self.merged is not None:
            weight, bias = self.merged
            return F.linear(x, weight, self.layer.bias if bias is None else bias)
        if torch.compiler.is_compiling():
            return self.formula(x)
        prepare(self.steps, x.dtype)
        return compute(self.steps, x, Posts(x.shape[:-1], []))


@dataclass(eq=False)
class LoRALinear(Adapted):
    """A frozen linear layer with a plain LoRA: y = x·Wᵀ + b + scale·(x·Aᵀ)·Bᵀ, A (r, in) and B (out, r).

    parts: equal ones of the outputs, as q, k and v of one weight, with a LoRA each; A's and B's stand one upon the other.
    """

    A: nn.Parameter
    B: nn.Parameter
    scale: float
    parts: int = 1
    has_lora: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.factors, self.sizes = [self.A, self.B], [self.A.shape[1] ** -0.5, 0.1 / (self.scale or 1)]

    def formula(self, x: Tensor) -> Tensor:
        B = torch.block_diag(*self.B.to(x.dtype).chunk(self.parts))
        return F.linear(x, self.layer.weight, self.layer.bias) + F.linear(F.linear(x, self.A.to(x.dtype)), B) * self.scale

    def whole(self) -> Tensor:
        weight, B, A = (x.float().unflatten(0, (self.parts, -1)) for x in (self.layer.weight, self.B, self.A))
        with torch.autocast(weight.device.type, enabled=False):  # which would round the product
            return torch.baddbmm(weight, B, A, alpha=self.scale).flatten(0, 1)


@dataclass(eq=False)
class DoRALinear(LoRALinear):
    """A frozen linear layer with DoRA: y = magnitude/‖V‖ ⊙ x·Vᵀ + b, V = W + scale·B·A, with the norm of each of its rows.

    That is Liu et al. 2024, arXiv:2402.09353, eq. 5; the norm is a constant in the gradient (ibid., §4.3).
    scaler: the magnitude, out numbers of any shape.
    """

    scaler: nn.Parameter = field(kw_only=True)
    enters: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.unscaled = self.layer.bias
        super().__post_init__()
        self.factors.append(self.scaler)
        self.sizes.append(float(self.layer.weight.detach().float().norm(dim=1).mean()))

    @property
    @torch.no_grad()
    def constant(self) -> Tensor:
        """Computes 1/‖V‖, (out,), in float32."""
        return 1 / torch.linalg.vector_norm(super().whole(), dim=1)

    def formula(self, x: Tensor) -> Tensor:
        y, bias = super().formula(x), 0 if self.layer.bias is None else self.layer.bias
        return (y - bias) * (self.constant * self.scaler.flatten()).to(x.dtype) + bias

    def whole(self) -> Tensor:
        return F.normalize(super().whole(), dim=1, eps=0) * self.scaler.view(-1, 1)


@dataclass(eq=False)
class ScaledLinear(Adapted):
    """A frozen linear layer with (IA)³: y = l ⊙ (x·Wᵀ + b) or, where it enters, y = (l ⊙ x)·Wᵀ + b, l = constant·scaler.

    That is Liu et al. 2022, arXiv:2205.05638, eq. 1. scaler: out, or in, numbers of any shape.
    """

    scaler: nn.Parameter
    constant: float = 1.0
    enters: bool = False
    unscaled: ClassVar[None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.factors, self.sizes = [self.scaler], [1 / (self.constant or 1)]

    def formula(self, x: Tensor) -> Tensor:
        by = (self.constant * self.scaler.flatten()).to(x.dtype)
        y = F.linear(x * by if self.enters else x, self.layer.weight, self.layer.bias)
        return y if self.enters else y * by

    @torch.no_grad()
    def merge(self, dtype: torch.dtype, *, int8: bool) -> None:
        weight, bias, by = self.layer.weight, self.layer.bias, self.constant * self.scaler.flatten()
        whole = (weight.float() * (by if self.enters else by[:, None])).to(weight.dtype)
        self.merged = whole, None if self.enters or bias is None else (bias.float() * by).to(bias.dtype)


def product(*layers: tuple[nn.Linear, Adapted | None], gelu: bool = False) -> list[Step]:
    """Gives the steps of layers of one input side by side, each with what adapts it, and of GELU if it follows."""
    linear = Linear([layer for layer, _ in layers], [adapted for _, adapted in layers], gelu=gelu)
    scaled = [(place, found) for place, found in linear.adapters if isinstance(found, ScaledLinear | DoRALinear)]
    enter = [(slice(None), found) for _, found in scaled if found.enters]
    leave = [(place, found) for place, found in scaled if not found.enters]
    steps: list[Step] = [Scale(enter, linear.layers[0].in_features, linear)] if enter else []
    steps += [linear, *([Scale(leave, sum(linear.sizes), linear)] if leave else [])]
    return [*steps, Activation("gelu", linear)] if gelu else steps
