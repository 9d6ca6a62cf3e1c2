"""Multiplies by a linear layer's weight that stays as it is, in the order that the processor likes best."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 512  # for which oneDNN orders a weight: of 32 and more all get one order, a tenth faster than that for a single one


class FrozenLinear:
    """y = x·Wᵀ + b, (M, in) to (M, out), followed by GELU if asked for.

    On a CPU it keeps a copy of a bf16 weight in oneDNN's order, which W's changes do not reach.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> None:
        self.weight, self.bias, self.gelu = weight, bias, gelu
        here = weight.dtype is torch.bfloat16 and weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
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
