"""Computes a linear layer in int8 on a CPU: its weight quantised once, for each output, what enters at each call, by row."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TINY = 1e-8


class Int8Linear(nn.Module):
    """y = x·Wᵀ + b, followed by GELU if asked for: W (out, in) as int8 with a scale an output, x (..., in) with one a row.

    Dynamic quantisation (Jacob et al. 2018, Quantization and training of neural networks for efficient
    integer-arithmetic-only inference, arXiv:1712.05877, §2.1): the range of x is that of each call. oneDNN's product has one
    scale for all of x, so each row is divided by its largest number before, and multiplied by it afterwards; else one row of
    large numbers would leave few steps to all others, and a post's scores would hang on the posts beside it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        weight = weight.detach().float()
        self.gelu, self.bias = gelu, None if bias is None else bias.detach().float()
        self.scales = weight.abs().amax(dim=1).clamp(min=TINY) / 127
        self.zeros = torch.zeros_like(self.scales, dtype=torch.int64)
        small = (weight / self.scales[:, None]).round_().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(small, None)
        # without VNNI two products of eight bits may overflow the sixteen that they are summed in
        self.steps = 127 if torch.cpu._is_vnni_supported() else 63

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        largest = _largest(rows)
        # oneDNN multiplies what is not negative: a number and steps + 1, of which a sign's bit, for 127, makes the sum
        small = torch.mul(rows, self.steps / largest).round_().to(torch.int8)
        small = small.bitwise_xor_(-128) if self.steps == 127 else small.add_(64)
        asked: tuple[Any, ...] = (None, 1.0, 0, x.dtype, "none", [], "")
        y = torch.ops.onednn.qlinear_pointwise(
            small.view(torch.uint8), 1 / self.steps, self.steps + 1, self.packed, self.scales, self.zeros, *asked
        )
        largest = largest.to(y.dtype)
        y = y.mul_(largest) if self.bias is None else torch.addcmul(self.bias.to(y.dtype), y, largest)
        return (F.gelu(y) if self.gelu else y).view(*x.shape[:-1], self.out_features)


def _largest(rows: Tensor) -> Tensor:
    """Finds the largest number of each row, (M, D) to (M, 1) float32, whatever its sign."""
    if rows.dtype is torch.bfloat16:  # without their sign, they are in the order of their bits, which a CPU sorts out faster
        return rows.view(torch.int16).bitwise_and(0x7FFF).amax(dim=1, keepdim=True).view(torch.bfloat16).float().clamp_(TINY)
    return rows.abs().amax(dim=1, keepdim=True).float().clamp_(TINY)
