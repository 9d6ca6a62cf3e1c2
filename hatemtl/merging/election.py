"""Elects one value for each entry out of sources that may disagree on its sign."""

from typing import Literal

import torch
from torch import Tensor

from hatemtl.merging.sparsity import BLOCK

Election = Literal["total", "count"]

ROUNDING = 1e-12  # a sum so small beside what was summed is a tie, and a value so small beside the greatest a zero


def agreeing_mean(stack: Tensor, elect: Election) -> Tensor:
    """Averages those values alone that have the elected sign, from (sources, *shape) (Yadav et al. 2023, TIES-merging).

    elect: `total`, the sign of the sum; `count`, that of the most sources, and of the sum where they tie. Zeros have no vote
    and no share in the mean. Where no sign wins, the result is 0, as the mean would be; so -ΔW of every source gives -ΔW.
    """
    merged = torch.empty_like(stack[0]).flatten()
    least = ROUNDING * max(map(abs, map(float, stack.aminmax())))
    for some, mine in zip(stack.reshape(len(stack), -1).split(BLOCK, dim=1), merged.split(BLOCK), strict=True):
        plus, minus = some.clamp(min=0).sum(0), some.clamp(max=0).sum(0)
        # int16, for sums of booleans in 64 bits are slow
        ups, downs = ((some > least).sum(0, dtype=torch.int16), (some < -least).sum(0, dtype=torch.int16))
        lead = plus + minus
        lead *= lead.abs() > ROUNDING * (plus - minus)
        if elect == "count":
            lead = (ups - downs) + lead.sign() / 2
        sign = lead.sign()  # products with it, for torch.where takes ten times as long
        torch.sub(plus / ups.clamp(min=1) * sign.clamp(min=0), minus / downs.clamp(min=1) * sign.clamp(max=0), out=mine)
    return merged.reshape(stack[0].shape)
