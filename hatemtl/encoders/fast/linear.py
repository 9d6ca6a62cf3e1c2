"""Computes linear layers, frozen with LoRAs on them or trained, in as few passes over memory as their formula allows."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast.int8_linear import Int8Linear
from hatemtl.encoders.fast.tape import Step, Tape

ROWS = 512  # for which oneDNN orders a weight: of 32 and more all get one order, a tenth faster than that for a single one


class FrozenLinear:
    """y = x·Wᵀ + b, (M, in) to (M, out), followed by GELU if asked for.

    On a CPU it keeps a copy of a bf16 weight, where oneDNN multiplies these, and of one that stays, in oneDNN's order, which
    W's changes do not reach.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False, stays: bool = False) -> None:
        self.weight, self.bias, self.gelu = weight, bias, gelu
        here = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        self.ordered: Tensor | None = None
        if here and hasattr(torch.ops.mkldnn, "_linear_pointwise") and _orders(weight.dtype, stays):
            self.ordered = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(FrozenLinear, gelu=self.gelu), (self.weight, self.bias)  # what oneDNN has ordered cannot be copied

    def __call__(self, x: Tensor) -> Tensor:
        if self.ordered is not None:
            after: tuple[Any, ...] = ("gelu", [], "none") if self.gelu else ("none", [], "")
            return torch.ops.mkldnn._linear_pointwise(x, self.ordered, self.bias, *after)
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y) if self.gelu else y


def _orders(dtype: torch.dtype, stays: bool) -> bool:
    """Tells whether oneDNN's order of a weight pays, and can be had: of bf16 it takes AVX-512."""
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype is torch.float32 and stays and torch.get_float32_matmul_precision() == "medium"


class Linear(Step):
    """Linear layers of one input side by side: y = x·Wᵀ + b + (x·Aᵀ)·Bᵀ, (M, in) to (M, out).

    That is Hu et al. 2022, arXiv:2106.09685, eq. 3, with the scale in B. A: (R, in), the LoRAs' one upon the other.
    B: (out, R), theirs on the diagonal, or (P, out / P, R / P) where all P layers, or P parts of one, have one of the same
    shape.
    Frozen weights become views of a joint one; trained ones are cast anew by every `prepare`, a hundredth of their products'
    time: who moves one need not tell. gelu: whether GELU follows, as one with it while merged. thin: whether int8 is slower.
    """

    merged: FrozenLinear | Int8Linear | None = None
    product: FrozenLinear
    transposed: FrozenLinear | None
    A: Tensor
    B: Tensor

    def __init__(self, layers: Sequence[Any], adapters: Sequence[Any], *, gelu: bool = False, thin: bool = False) -> None:
        """Takes of each layer what adapts it, an `Adapted` or None."""
        self.layers, self.gelu, self.thin = layers, gelu, thin
        self.sizes = [layer.out_features for layer in layers]
        self.joined: list[tuple[int, int]] = []  # the weights that the rest was made of, as `_found` tells
        parts = zip(accumulate(self.sizes), self.sizes, adapters, strict=True)
        self.adapters = [(slice(end - size, end), found) for end, size, found in parts if found is not None]
        self.loras = [(place, found) for place, found in self.adapters if found.has_lora]
        self.trained = not self.adapters and any(p.requires_grad for p in self._own())

    def _own(self) -> list[nn.Parameter]:
        """Lists the layers' weights, then their biases."""
        own = [layer.weight for layer in self.layers] + [layer.bias for layer in self.layers]
        return [parameter for parameter in own if parameter is not None]

    @property
    def factors(self) -> list[nn.Parameter]:
        if self.trained:
            return [parameter for parameter in self._own() if parameter.requires_grad]
        return [factor for _, lora in self.loras for factor in (lora.A, lora.B)]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Gives those of A and B."""
        first, rank = self.loras[0][1], sum(lora.A.shape[0] for _, lora in self.loras)
        parts = len(self.loras) * first.parts
        alike = len({lora.B.shape for _, lora in self.loras}) == 1 < parts and len(self.loras) == len(self.layers)
        out = sum(self.sizes)
        return [(rank, self.layers[0].in_features), (parts, out // parts, rank // parts) if alike else (out, rank)]

    def parts(self, A: Tensor, B: Tensor) -> list[Tensor]:
        """Gives the part of A and B, or of what is shaped as they, where each of `factors` stands."""
        if B.ndim == 3:
            count = len(self.loras)
            blocks = [block.flatten(0, 1) for block in B.unflatten(0, (count, -1)).unbind()]
            return [part for pair in zip(A.chunk(count), blocks, strict=True) for part in pair]
        row, found = 0, []
        for place, lora in self.loras:
            rows = slice(row, row := row + lora.A.shape[0])
            found += [A[rows], B[place, rows]]
        return found

    def join(self, dtype: torch.dtype) -> None:
        """Makes one weight (out, in) and one bias (out,). Raises RuntimeError where frozen ones are of another type."""
        if self.trained:
            self.weight, self.bias = self._joined(dtype)
            return
        if (own := self.layers[0].weight.dtype) is not dtype:
            raise RuntimeError(f"frozen weights of dtype {own} in a run of {dtype}")
        if self.joined == self._found():  # else first called, moved or changed since
            return
        with torch.inference_mode(False):  # they serve training too, whoever comes first
            self.weight, self.bias = self._joined(dtype)
            for name, whole in (("weight", self.weight), ("bias", self.bias)):
                if whole is not None:
                    for layer, part in zip(self.layers, whole.split(self.sizes), strict=True):
                        getattr(layer, name).data = part
            self.product, self.transposed = FrozenLinear(self.weight, self.bias), None
        self.joined = self._found()

    def _found(self) -> list[tuple[int, int]]:
        """Tells where the layers' weights are and how often they were changed there."""
        return [(layer.weight.data_ptr(), layer.weight._version) for layer in self.layers]

    def _joined(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Gives one weight and one bias of this type, a single layer's own where they are of it."""
        first = self.layers[0]
        if len(self.layers) == 1 and first.weight.dtype is dtype:
            return first.weight.detach(), None if first.bias is None else first.bias.detach()
        weight = first.weight.new_empty(sum(self.sizes), first.in_features, dtype=dtype)
        bias = None if first.bias is None else weight.new_empty(len(weight))
        parts = weight.split(self.sizes) + (() if bias is None else bias.split(self.sizes))
        torch._foreach_copy_([*parts], [parameter.detach() for parameter in self._own()])
        return weight, bias

    @torch.no_grad()
    def merge(self, dtype: torch.dtype, *, int8: bool) -> None:
        if self.trained:
            weight, bias = self._joined(dtype)
        else:
            self.join(self.layers[0].weight.dtype)  # what is frozen has the type of the computation
            weight, bias = self.weight.clone() if self.adapters else self.weight, self.bias
            bias = bias.clone() if self.adapters and bias is not None else bias
            for place, (whole, own) in [(place, adapted.merged) for place, adapted in self.adapters]:
                weight[place] = whole
                if own is not None and bias is not None:
                    bias[place] = own
        if int8 and not self.thin:
            self.merged = Int8Linear(weight, bias, gelu=self.gelu)
        else:
            self.merged = FrozenLinear(weight, bias, gelu=self.gelu, stays=True)

    def forward(self, x: Tensor, tape: Tape, dx: bool) -> tuple[Tensor, Sequence[Tensor]]:
        if self.merged is not None:
            return self.merged(x), ()
        if self.trained:
            return F.linear(x, self.weight, self.bias), (x, self.weight)
        y = self.product(x)
        if not self.loras:
            return y, ()
        low, into = x @ self.A.mT, _outputs(y, self.B)
        add = into.addmm_ if self.B.ndim == 2 else into.baddbmm_
        add(_outputs(low, self.B), self.B.mT)
        return y, (x, low, self.A, self.B)

    def backward(self, dy: Tensor, kept: Sequence[Tensor], tape: Tape, dx: bool) -> Any:
        if self.trained:
            return self._backward_of_trained(dy, kept, tape, dx)
        d = None
        if dx:
            self.transposed = self.transposed or FrozenLinear(self.weight.mT, None)
            d = self.transposed(dy)
        if not kept:
            return d
        x, low, A, B = kept
        mine = _outputs(dy, B)
        dlow = mine @ B
        if B.ndim == 3:
            dlow = dlow.transpose(0, 1).reshape(low.shape)
        # a CPU takes several times as long for dyᵀ·(x·Aᵀ) as for its transpose
        found = self.parts(dlow.mT @ x, (_outputs(low, B).mT @ mine).mT)
        tape.learn(self.factors, found, [scale for _, lora in self.loras for scale in (1.0, lora.scale)])
        return d if d is None else d.addmm_(dlow, A)

    def _backward_of_trained(self, dy: Tensor, kept: Sequence[Tensor], tape: Tape, dx: bool) -> Any:
        x, weight = kept
        for name, whole in (("weight", lambda: dy.mT @ x), ("bias", lambda: dy.sum(0, dtype=torch.float32))):
            own = [getattr(layer, name) for layer in self.layers]
            if any(parameter is not None and parameter.requires_grad for parameter in own):
                tape.learn(own, whole().split(self.sizes))
        return dy @ weight if dx else None


def _outputs(y: Tensor, B: Tensor) -> Tensor:
    """(M, D), as `B` takes it: (P, M, D / P) where it has a block for each of P layers, whose LoRAs are of one shape."""
    return y if B.ndim == 2 else y.view(y.shape[0], B.shape[0], -1).transpose(0, 1)


@torch.no_grad()
def prepare(steps: Sequence[Step], dtype: torch.dtype) -> None:
    """Makes the weights and factors of linear layers ready for `forward`; needed when they may have changed."""
    linears = [step for step in steps if isinstance(step, Linear) and step.merged is None]
    for linear in linears:
        linear.join(dtype)
    if not (adapted := [linear for linear in linears if linear.loras]):
        return
    loras = [lora for linear in adapted for _, lora in linear.loras]
    factors = [factor for x in loras for factor in (x.A, x.B if x.scale == 1 else x.scale * x.B)]
    # in one tensor and cast in one go: one by one takes three times as long
    shapes = [shape for linear in adapted for shape in linear.shapes]
    sizes = [*map(math.prod, shapes)]
    room = adapted[0].weight.new_zeros(sum(sizes), dtype=dtype).split(sizes)
    found = [part.view(shape) for part, shape in zip(room, shapes, strict=True)]
    into = []
    for linear, linear.A, linear.B in zip(adapted, found[::2], found[1::2], strict=True):
        into += linear.parts(linear.A, linear.B)
    torch._foreach_copy_(into, factors)
