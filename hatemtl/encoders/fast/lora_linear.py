"""Computes a frozen linear layer with a LoRA on it, in as few passes over memory as its formula allows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors
from torch.nn import functional as F

from hatemtl.encoders.fast.int8_linear import Int8Linear
from hatemtl.errors import UserError

ROWS = 512  # for which oneDNN orders a weight: of 32 and more all get one order, a tenth faster than that for a single one


class FrozenLinear:
    """y = x·Wᵀ + b, (M, in) to (M, out), followed by GELU if asked for.

    On a CPU it keeps a copy of a bf16 weight, and of one that stays, in oneDNN's order, which W's changes do not reach.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False, stays: bool = False) -> None:
        self.weight, self.bias, self.gelu = weight, bias, gelu
        kept = weight.dtype is torch.bfloat16 or (stays and torch.get_float32_matmul_precision() == "medium")
        here = kept and weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        self.ordered: Tensor | None = None
        if here and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            self.ordered = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(FrozenLinear, gelu=self.gelu), (self.weight, self.bias)  # what oneDNN has ordered cannot be copied

    def __call__(self, x: Tensor) -> Tensor:
        if self.ordered is not None:
            after: tuple[Any, ...] = ("gelu", [], "none") if self.gelu else ("none", [], "")
            return torch.ops.mkldnn._linear_pointwise(x, self.ordered, self.bias, *after)
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y) if self.gelu else y


class Joint:
    """Frozen layers of one input side by side, and their LoRAs as one: y = x·Wᵀ + b + (x·Aᵀ)·Bᵀ, (M, in) to (M, out).

    That is Hu et al. 2022, arXiv:2106.09685, eq. 3, with the scale in B. A: (R, in), the layers' one upon the other.
    B: (out, R), theirs on the diagonal, or (P, out / P, R / P) where all P layers have one of the same shape.
    pairs: each layer with its LoRA, if it has one. Their weights become views of a joint one.
    """

    transposed: FrozenLinear | None
    A: Tensor | None = None
    B: Tensor | None = None

    def __init__(self, pairs: Sequence[tuple[nn.Linear, "LoRALinear | None"]]) -> None:
        self.pairs, self.layers = pairs, [layer for layer, _ in pairs]
        self.joined: list[tuple[int, int]] = []  # the weights that the rest was made of, as `_found` tells
        self.loras: list[tuple[int, int, LoRALinear]] = []  # with the part of y that each adds to
        end = 0
        for layer, lora in pairs:
            begin, end = end, end + layer.out_features
            if lora is not None:
                self.loras.append((begin, end, lora))

    @property
    def factors(self) -> list[nn.Parameter]:
        return [factor for *_, lora in self.loras for factor in (lora.A, lora.B)]

    @property
    def scales(self) -> list[float]:
        """Lists by what the gradient of each of `factors` is yet to be multiplied."""
        return [scale for *_, lora in self.loras for scale in (1.0, lora.scale)]

    def join(self, dtype: torch.dtype) -> None:
        """Makes one weight and one bias of the layers', unless they are. Raises RuntimeError where dtype is another."""
        if (own := self.layers[0].weight.dtype) is not dtype:
            raise RuntimeError(f"frozen weights of dtype {own} in a run of {dtype}")
        if self.joined == self._found():  # else first called, moved or changed since
            return
        first = self.layers[0]
        with torch.inference_mode(False):  # they serve training too, whoever comes first
            self.weight, self.bias = first.weight.data, None if first.bias is None else first.bias.data
            if len(self.layers) > 1:
                self.weight = torch.cat([layer.weight.data for layer in self.layers])
                self.bias = torch.cat([layer.bias.data for layer in self.layers])
                sizes = [layer.out_features for layer in self.layers]
                for layer, weight, bias in zip(self.layers, self.weight.split(sizes), self.bias.split(sizes), strict=True):
                    layer.weight.data, layer.bias.data = weight, bias
            self.product, self.transposed = FrozenLinear(self.weight, self.bias), None
        self.joined = self._found()

    def _found(self) -> list[tuple[int, int]]:
        """Tells where the layers' weights are and how often they were changed there."""
        return [(layer.weight.data_ptr(), layer.weight._version) for layer in self.layers]

    def merged(self, dtype: torch.dtype, *, gelu: bool, int8: bool) -> FrozenLinear | Int8Linear:
        """Gives the layers with their LoRAs in them, which were merged before."""
        self.join(self.layers[0].weight.dtype)  # what is frozen has the type of the computation
        weights: Any = [layer.weight if lora is None else lora.merged for layer, lora in self.pairs]
        weight = torch.cat(weights) if self.loras else self.weight
        return Int8Linear(weight, self.bias, gelu=gelu) if int8 else FrozenLinear(weight, self.bias, gelu=gelu, stays=True)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Computes y, and what its gradient needs besides x: nothing without a LoRA, else x·Aᵀ, A and B. See `prepare`."""
        y = self.product(x)
        if self.A is None or self.B is None:
            return y, []
        low, into = x @ self.A.mT, _outputs(y, self.B)
        add = into.addmm_ if self.B.ndim == 2 else into.baddbmm_
        add(_outputs(low, self.B), self.B.mT)
        return y, [low, self.A, self.B]

    def backward(self, dy: Tensor, x: Tensor, kept: list[Tensor], *, dx: bool) -> tuple[Tensor | None, list[Tensor]]:
        """Computes the gradient of x, if asked for, and those of A and Bᵀ, if there are any. kept: what `forward` gave."""
        gradient = None
        if dx:  # dy·W
            self.transposed = self.transposed or FrozenLinear(self.weight.mT, None)
            gradient = self.transposed(dy)
        if not kept:
            return gradient, []
        low, A, B = kept
        mine = _outputs(dy, B)
        dlow = mine @ B
        if B.ndim == 3:
            dlow = dlow.transpose(0, 1).reshape(low.shape)
        if gradient is not None:
            gradient.addmm_(dlow, A)
        # a CPU takes several times as long for dyᵀ·(x·Aᵀ) as for its transpose
        return gradient, [dlow.mT @ x, _outputs(low, B).mT @ mine]

    def apart(self, found: list[Tensor]) -> list[Tensor]:
        """Gives the gradient of each of `factors`, but for `scales`, of what `backward` found."""
        return self.parts(found[0], found[1].mT) if found else []

    def parts(self, A: Tensor, B: Tensor) -> list[Tensor]:
        """Gives the part of A and B, or of what is shaped as they, where each of `factors` stands."""
        if B.ndim == 3:
            return [part for pair in zip(A.chunk(B.shape[0]), B.unbind(), strict=True) for part in pair]
        row, found = 0, []
        for begin, end, lora in self.loras:
            rows = slice(row, row := row + lora.A.shape[0])
            found += [A[rows], B[begin:end, rows]]
        return found


@torch.no_grad()
def prepare(joints: Sequence[Any], dtype: torch.dtype) -> None:
    """Makes the factors of these layers ready for `Joint.forward`, and their weights; needed when they may have changed."""
    for joint in joints:
        joint.join(dtype)
    if not (trained := [joint for joint in joints if joint.loras]):
        return
    loras = [lora for joint in trained for *_, lora in joint.loras]
    factors = [factor for x in loras for factor in (x.A, x.B if x.scale == 1 else x.scale * x.B)]
    # in one tensor and cast in one go: one by one takes three times as long
    shapes: list[tuple[int, ...]] = []  # of each joint's A and B
    for joint in trained:
        (out, width), rank, several = joint.weight.shape, sum(lora.A.shape[0] for *_, lora in joint.loras), len(joint.loras)
        alike = len({lora.B.shape for *_, lora in joint.loras}) == 1 < several == len(joint.layers)
        shapes += [(rank, width), (several, *joint.loras[0][2].B.shape) if alike else (out, rank)]
    sizes = [math.prod(shape) for shape in shapes]
    room = trained[0].weight.new_zeros(sum(sizes), dtype=dtype)
    found = [part.view(shape) for part, shape in zip(room.split(sizes), shapes, strict=True)]
    into = []
    for joint, joint.A, joint.B in zip(trained, found[::2], found[1::2], strict=True):
        into += joint.parts(joint.A, joint.B)
    torch._foreach_copy_(into, factors)


def gradients(layers: Sequence[Any], found: Sequence[list[Tensor]]) -> list[Tensor]:
    """Gives those of the factors of all these layers, in their order and type, from what `backward` gave of each."""
    pairs = [(layer, of) for layer, of in zip(layers, found, strict=True) if of]
    parts = [part for layer, of in pairs for part in layer.apart(of)]
    if not parts:
        return []
    into = [*_unflatten_dense_tensors(pairs[0][0].factors[0].new_empty(sum(part.numel() for part in parts)), parts)]
    torch._foreach_copy_(into, parts)
    for part, scale in zip(into, [scale for layer, _ in pairs for scale in layer.scales], strict=True):
        if scale != 1:
            part.mul_(scale)
    return into


def check_once() -> None:
    """Raises UserError where a gradient that is computed now is to be differentiated itself."""
    # torch's `once_differentiable` tells only who calls `backward()`; `torch.autograd.grad` loses the LoRAs' part
    if torch.is_grad_enabled():
        raise UserError("a gradient of gradients is more than hatemtl's own layers compute; type trainer.fast=false")


class _Linear(torch.autograd.Function):
    """Computes a `Joint` with gradients for x and its factors, which are named so that they get theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, joint: Joint, *factors: Tensor) -> Tensor:
        prepare([joint], x.dtype)
        y, kept = joint.forward(x)
        ctx.save_for_backward(x, *kept)
        ctx.joint = joint
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        check_once()
        x, *kept = ctx.saved_tensors
        dx, found = ctx.joint.backward(grads[0], x, kept, dx=ctx.needs_input_grad[0])
        return dx, None, *gradients([ctx.joint], [found])


def _outputs(y: Tensor, B: Tensor) -> Tensor:
    """(M, D), as `B` takes it: (P, M, D / P) where it has a block for each of P layers, whose LoRAs are of one shape."""
    return y if B.ndim == 2 else y.view(y.shape[0], B.shape[0], -1).transpose(0, 1)


@dataclass(eq=False)
class LoRALinear:
    """A frozen linear layer with a plain LoRA: y = x·Wᵀ + b + scale·(x·Aᵀ)·Bᵀ, A (r, in) and B (out, r) in float32.

    owner: the library's module whose `forward` it takes the place of. before: an own `forward` that the owner had, if any.
    merged: W + scale·B·A while nothing is trained, so that the LoRA costs nothing.
    """

    owner: nn.Module
    layer: nn.Linear
    A: nn.Parameter
    B: nn.Parameter
    scale: float
    merged: Tensor | None = field(default=None, init=False)
    before: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.joint = Joint([(self.layer, self)])

    @property
    def factors(self) -> list[nn.Parameter]:
        return [self.A, self.B]

    @property
    def sizes(self) -> list[float]:
        """Lists how large numbers `factors` hold in a comparison."""
        return [self.A.shape[1] ** -0.5, 0.1 / (self.scale or 1)]

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        x = x.to(weight.dtype)
        if self.merged is not None:
            return F.linear(x, self.merged, bias)
        if torch.compiler.is_compiling():  # the compiler fuses the plain formula by itself
            return F.linear(x, weight, bias) + F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype)) * self.scale
        y = _Linear.apply(x.reshape(-1, x.shape[-1]), self.joint, *self.joint.factors)
        return y.view(*x.shape[:-1], y.shape[-1])

    @torch.no_grad()
    def merge(self) -> None:
        """Computes the merged weight, in float32, then in the type of the frozen one."""
        weight = self.layer.weight
        self.merged = torch.addmm(weight.float(), self.B.float(), self.A.float(), alpha=self.scale).to(weight.dtype)
