"""A frozen linear layer with a LoRA on it, in as few passes over memory as its formula allows.

The libraries compute x·Aᵀ·Bᵀ, scale it and add it, a new tensor each time, and autocast casts the frozen weight at every
step. Here the frozen weight already has the type of the computation, and the update is accumulated into the layer's output.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.errors import UserError
from hatemtl.methods.frozen_linear import FrozenLinear


class Joint:
    """Frozen layers of one input side by side, and their LoRAs as one: y = x·Wᵀ + b + (x·Aᵀ)·Bᵀ, (M, in) to (M, out).

    That is Hu et al. 2022, arXiv:2106.09685, eq. 3, with the scale in B. A: (R, in), the layers' one upon the other.
    B: (out, R), theirs on the diagonal. Of N runs side by side, M / N rows are each one's, and A and B have N of these.
    layers: each with its LoRA, if it has one. Their weights become views of a joint one.
    """

    def __init__(self, layers: Sequence[tuple[nn.Linear, "LoRALinear | None"]]) -> None:
        self.layers = [layer for layer, _ in layers]
        self.joined: list[tuple[int, int]] = []  # which weights, as `_found` tells, the rest was made of
        self.weight: Tensor
        self.bias: Tensor | None
        self.product: FrozenLinear
        self.transposed: FrozenLinear | None = None
        self.loras: list[tuple[int, int, LoRALinear]] = []  # with the part of y that each adds to
        end = 0
        for layer, lora in layers:
            begin, end = end, end + layer.out_features
            if lora is not None:
                self.loras.append((begin, end, lora))

    @property
    def factors(self) -> list[nn.Parameter]:
        """What is trained: A and B by turns, of every run, then those of the next layer."""
        return [factor for *_, lora in self.loras for run in lora.beside for factor in (run.A, run.B)]

    def join(self) -> None:
        """Makes one weight and one bias of the layers', unless they are."""
        if self.joined == self._found():  # else first called, moved or changed since
            return
        weights = [layer.weight for layer in self.layers]
        with torch.inference_mode(False):  # they serve training too, whoever comes first
            self.weight, self.bias = weights[0].data, None if self.layers[0].bias is None else self.layers[0].bias.data
            if len(self.layers) > 1:
                self.weight = torch.cat([weight.data for weight in weights])
                self.bias = torch.cat([layer.bias.data for layer in self.layers])
                sizes = [layer.out_features for layer in self.layers]
                for layer, weight, bias in zip(self.layers, self.weight.split(sizes), self.bias.split(sizes), strict=True):
                    layer.weight.data, layer.bias.data = weight, bias
            self.product, self.transposed = FrozenLinear(self.weight, self.bias), None
        self.joined = self._found()

    def _found(self) -> list[tuple[int, int]]:
        """Where the layers' weights are and how often they were changed there."""
        return [(layer.weight.data_ptr(), layer.weight._version) for layer in self.layers]

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """y, and what its gradient needs besides x: nothing where there is no LoRA, else x·Aᵀ, A and B."""
        self.join()
        y = self.product(x)
        if not self.loras:
            return y, []
        A, B = self._joint_factors(x)
        low = each(x, A) @ A.mT
        _add_product(each(y, A), low, B.mT)
        return y, [low, A, B]

    def backward(self, dy: Tensor, x: Tensor, kept: list[Tensor], *, dx: bool) -> tuple[Tensor | None, list[Tensor]]:
        """The gradient of x, if it is asked for, and those of `factors`. kept: what `forward` gave."""
        gradient = self._gradient(dy) if dx else None
        if not kept:
            return gradient, []
        low, A, B = kept
        mine = each(dy, A)
        dlow = mine @ B
        if gradient is not None:
            _add_product(each(gradient, A), dlow, A)
        # a CPU takes several times as long for dyᵀ·(x·Aᵀ) as for its transpose
        dA, dBt, row, found = dlow.mT @ each(x, A), low.mT @ mine, 0, []
        runs = [(dA, dBt)] if A.ndim == 2 else [*zip(dA, dBt, strict=True)]  # not `beside`, which may be others by now
        for begin, end, lora in self.loras:
            rows = slice(row, row := row + len(lora.A))
            for of_A, of_B in runs:
                found.append(of_A[rows].to(lora.A.dtype))
                of_B = of_B[rows, begin:end].mT.to(lora.B.dtype, memory_format=torch.contiguous_format)
                found.append(of_B if lora.scale == 1 else of_B.mul_(lora.scale))
        return gradient, found

    def _gradient(self, dy: Tensor) -> Tensor:
        """dy·W."""
        if self.transposed is None:
            self.transposed = FrozenLinear(self.weight.mT, None)
        return self.transposed(dy)

    def _joint_factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A and B in the type of x, for all runs."""
        (_, _, first), runs = self.loras[0], len(self.loras[0][2].beside)
        if len(self.layers) == runs == 1:
            return first.A.to(x.dtype), (first.B if first.scale == 1 else first.scale * first.B).to(x.dtype)
        As = [torch.cat([lora.beside[run].A for *_, lora in self.loras]) for run in range(runs)]
        B = x.new_zeros(runs, len(self.weight), len(As[0]))
        for run, each_B in enumerate(B):
            row = 0
            for begin, end, lora in self.loras:
                torch.mul(lora.beside[run].B, lora.scale, out=each_B[begin:end, row : (row := row + len(lora.A))])
        return (As[0].to(x.dtype), B[0]) if runs == 1 else (torch.stack(As).to(x.dtype), B)


class _Linear(torch.autograd.Function):
    """What a `Joint` computes, with gradients for x and its factors, which are named so that they get theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, joint: Joint, *factors: Tensor) -> Tensor:
        y, kept = joint.forward(x)
        ctx.save_for_backward(x, *kept)
        ctx.joint = joint
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *kept = ctx.saved_tensors
        dx, found = ctx.joint.backward(grads[0], x, kept, dx=ctx.needs_input_grad[0])
        return dx, None, *found


def each(x: Tensor, A: Tensor) -> Tensor:
    """(M, D) of N runs side by side as (N, M / N, D), if A, (N, R, in), is of several; of one it stays."""
    return x if A.ndim == 2 else x.view(len(A), -1, x.shape[-1])


def _add_product(y: Tensor, a: Tensor, b: Tensor) -> None:
    y.addmm_(a, b) if y.ndim == 2 else y.baddbmm_(a, b)


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
        self.joint = Joint([(layer, self)])

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        x = x.to(weight.dtype)
        if self.merged is not None:
            return F.linear(x, self.merged, bias)
        if torch.compiler.is_compiling():  # the compiler fuses the plain formula by itself
            return F.linear(x, weight, bias) + F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype)) * self.scale
        if len(x) % len(self.beside):  # DeBERTa projects positions, which no run owns, with the weights of q and k
            raise UserError("it has a layer that reads something else than posts")
        y = _Linear.apply(x.reshape(-1, x.shape[-1]), self.joint, *self.joint.factors)
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
