"""Computes rows whose numbers are multiplied each by one of its own, which is learned."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hatemtl.encoders.fast.tape import Step, Tape


class Scaling(Protocol):
    """What multiplies the columns of a place by l = unit·factor, but for a constant part of them.

    factor: as many numbers as columns, in float32, of any shape. unit: one, or as many. apart: (columns,) the constant part,
    None for none.
    """

    factor: nn.Parameter

    @property
    def unit(self) -> Tensor | float: ...

    @property
    def apart(self) -> Tensor | None: ...


class Scale(Step):
    """Multiplies columns: y = l ⊙ (x − c) + c, (M, D), where l is 1 and c is 0 if nothing else is said of a place.

    around: the product before it or behind it, which computes it too while merged.
    """

    def __init__(self, scalings: Sequence[tuple[slice, Scaling]], columns: int, around: Step) -> None:
        self.scalings, self.columns, self.around = scalings, columns, around

    @property
    def factors(self) -> list[nn.Parameter]:
        return [scaling.factor for _, scaling in self.scalings]

    @property
    def shifts(self) -> bool:
        """Tells whether c is anything but 0."""
        return any(scaling.apart is not None for _, scaling in self.scalings)

    def forward(self, x: Tensor, tape: Tape, dx: bool) -> tuple[Tensor, Sequence[Tensor]]:
        if self.around.merged is not None:
            return x, ()
        units, by, apart = (self.factors[0].new_full((self.columns,), fill) for fill in (1.0, 1.0, 0.0))
        for place, scaling in self.scalings:
            units[place] = scaling.unit
            by[place] = units[place] * scaling.factor.flatten()
            if scaling.apart is not None:
                apart[place] = scaling.apart
        rounded = by.to(x.dtype)
        y = torch.addcmul((apart - by * apart).to(x.dtype), x, rounded) if self.shifts else x * rounded
        return y, (x, rounded, units, apart)

    def backward(self, dy: Tensor, kept: Sequence[Tensor], tape: Tape, dx: bool) -> Any:
        x, by, units, apart = kept
        learnt = (dy * x).sum(0, dtype=units.dtype)
        if self.shifts:
            learnt.addcmul_(apart, dy.sum(0, dtype=units.dtype), value=-1)
        learnt *= units
        tape.learn(self.factors, [learnt[place].view_as(scaling.factor) for place, scaling in self.scalings])
        return dy * by if dx else None
