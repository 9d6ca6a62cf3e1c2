"""Computes a linear layer in int8 on a CPU: its weight quantised once, for each output, what enters at each call, by row."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TINY = 1e-8
LEAST = 175 / 1024  # below zero, what GELU gives at least, .17, as the next bf16 number


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
        self.sums = small.float().sum(dim=1) * self.scales
        self.packed = torch.ops.onednn.qlinear_prepack(small, None)
        # without VNNI two products of eight bits may overflow the sixteen that they are summed in
        self.steps, self.from_gelu = 127 if torch.cpu._is_vnni_supported() else 63, False

    def behind_gelu(self) -> None:
        """Takes what enters for GELU's: next to none of it is negative, so that there are twice as many steps for the rest.

        x·Wᵀ is (x + LEAST)·Wᵀ less LEAST times the sum of each output's weights, which goes into the bias.
        """
        self.from_gelu, self.steps = True, 2 * self.steps + 1
        self.bias = (0 if self.bias is None else self.bias) - LEAST * self.sums

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        if self.from_gelu:
            zero, largest = 0, _largest(rows, signed=True) + LEAST
            factor = self.steps / largest
            small = torch.addcmul(LEAST * factor, rows, factor).round_().to(torch.uint8)
        else:
            zero, largest = self.steps + 1, _largest(rows)
            # oneDNN multiplies what is not negative: a number and steps + 1, of which a sign's bit, for 127, makes the sum
            small = torch.mul(rows, self.steps / largest).round_().to(torch.int8)
            small = (small.bitwise_xor_(-128) if self.steps == 127 else small.add_(64)).view(torch.uint8)
        asked: tuple[Any, ...] = (None, 1.0, 0, x.dtype, "none", [], "")
        weight = self.packed, self.scales, self.zeros
        y = torch.ops.onednn.qlinear_pointwise(small, 1 / self.steps, zero, *weight, *asked)
        largest = largest.to(y.dtype)
        y = y.mul_(largest) if self.bias is None else torch.addcmul(self.bias.to(y.dtype), y, largest)
        return (F.gelu(y) if self.gelu else y).view(*x.shape[:-1], self.out_features)


def _largest(rows: Tensor, *, signed: bool = False) -> Tensor:
    """Finds the largest number of each row, (M, D) to (M, 1) float32, whatever its sign, or of those above zero."""
    if rows.dtype is torch.bfloat16:  # numbers above zero are in the order of their bits, which a CPU sorts out faster
        bits = rows.view(torch.int16)
        most = (bits if signed else bits.bitwise_and(0x7FFF)).amax(dim=1, keepdim=True).clamp_(0)
        return most.view(torch.bfloat16).float().clamp_(TINY)
    return (rows if signed else rows.abs()).amax(dim=1, keepdim=True).float().clamp_(TINY)
