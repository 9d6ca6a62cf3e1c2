"""Computes rows whose numbers are multiplied each by one of its own, which is learned."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hatemtl.encoders.fast.tape import Step, Tape


class Scale(Step):
    """Multiplies columns: y = l ⊙ (x − c) + c, (M, D), where l is 1 and c is 0 if nothing else is said of a place.

    scalings: by their columns, each with l = constant·scaler, a trained parameter, and c, `unscaled`, None for 0.
    product: the one before it or behind it, which computes it too while merged.
    """

    def __init__(self, scalings: Sequence[tuple[slice, Any]], columns: int, product: Step) -> None:
        self.scalings, self.columns, self.product = scalings, columns, product
        self.shifts = any(scaling.unscaled is not None for _, scaling in scalings)

    @property
    def factors(self) -> list[nn.Parameter]:
        return [scaling.scaler for _, scaling in self.scalings]

    def forward(self, x: Tensor, tape: Tape, dx: bool) -> tuple[Tensor, Sequence[Tensor]]:
        if self.product.merged is not None:
            return x, ()
        constants, by, unscaled = (self.factors[0].new_full((self.columns,), fill) for fill in (1.0, 1.0, 0.0))
        for place, scaling in self.scalings:
            constants[place] = scaling.constant
            by[place] = constants[place] * scaling.scaler.flatten()
            if scaling.unscaled is not None:
                unscaled[place] = scaling.unscaled
        rounded = by.to(x.dtype)
        y = torch.addcmul((unscaled - by * unscaled).to(x.dtype), x, rounded) if self.shifts else x * rounded
        return y, (x, rounded, constants, unscaled)

    def backward(self, dy: Tensor, kept: Sequence[Tensor], tape: Tape, dx: bool) -> Any:
        x, by, constants, unscaled = kept
        learnt = (dy * x).sum(0, dtype=constants.dtype)
        if self.shifts:
            learnt.addcmul_(unscaled, dy.sum(0, dtype=constants.dtype), value=-1)
        tape.learn(self.factors, [(constants * learnt)[place].view_as(scaling.scaler) for place, scaling in self.scalings])
        return dy * by if dx else None
