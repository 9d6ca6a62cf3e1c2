"""Counts arithmetic: of a step, and of what the machine could do."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

PEAK_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
PEAK_SECONDS = 0.3  # of measuring, a size


def matmul_flops(step: Callable[[], object]) -> int:
    """Counts floating-point operations of the matrix multiplications in `step`, gradients included, padding too."""
    uncounted: dict[Any, Callable[..., int]] = {torch.ops.aten.addmm_: _in_place, torch.ops.aten.baddbmm_: _in_place}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        uncounted[torch.ops.mkldnn._linear_pointwise] = _linear
    with FlopCounterMode(display=False, custom_mapping=uncounted) as counter:
        step()
    return counter.get_total_flops()


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measures FLOP/s of this machine as it is now: the best of repeated products of square matrices of this type."""
    best = 0.0
    calls = 1 if device.type == "cpu" else 20  # one call on a GPU is hardly longer than its launch
    for size in PEAK_SIZES.get(device.type, (2048,)):
        x = torch.linspace(-1, 1, size * size, device=device).sin().reshape(size, size).to(dtype)
        deadline = time.perf_counter() + PEAK_SECONDS
        while time.perf_counter() < deadline or not best:
            wait(device)
            start = time.perf_counter()
            for _ in range(calls):
                torch.mm(x, x)
            wait(device)
            best = max(best, calls * 2 * size**3 / (time.perf_counter() - start))
    return best


def _in_place(total: torch.Size, a: torch.Size, b: torch.Size, **_: object) -> int:
    return 2 * a.numel() * b[-1]  # torch counts addmm and baddbmm, and not their forms in place


def _linear(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    return 2 * x.numel() * weight[0]


def wait(device: torch.device) -> None:
    """Waits until the device has done what it was given, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
