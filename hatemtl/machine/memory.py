"""Tells how much memory is there to be had, and how much a process has taken since a moment."""

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from hatemtl.machine.provenance import peak_memory

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def available(device: torch.device) -> int | None:
    """Gives the bytes that this process may still take on the device; None where the system does not say.

    On a CPU the least of what Linux has, what the control group (version 2) and what `ulimit -v` leave.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    left: list[int] = []
    with suppress(OSError, KeyError):
        left.append(_kilobytes(PROC / "meminfo")["MemAvailable"] * 1024)
    with suppress(OSError, ValueError):  # "max" is no number
        most, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        left.append(most - used)
    with suppress(ImportError, OSError, KeyError):
        import resource  # Windows has none

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY:
            left.append(most - _kilobytes(PROC / "self/status")["VmSize"] * 1024)
    return max(min(left), 0) if left else None


def taking(device: torch.device) -> Callable[[], int]:
    """Gives what tells the greatest number of bytes that this process has held on the device since now, beyond those of now.

    Where the system cannot forget an earlier peak, the peak counts from then on, so that it tells rather too much.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        return lambda: torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError):
        (PROC / "self/clear_refs").write_text("5")  # the peak of the resident set begins anew
    try:
        before = _kilobytes(PROC / "self/status")["VmRSS"] * 1024
        return lambda: _kilobytes(PROC / "self/status")["VmHWM"] * 1024 - before
    except (OSError, KeyError):
        before = 0 if sys.platform == "win32" else peak_memory() or 0
        return lambda: (peak_memory() or 0) - before


def _kilobytes(path: Path) -> dict[str, int]:
    """The lines `Name:   123 kB` of a file of /proc."""
    lines = (line.partition(":") for line in path.read_text().splitlines() if line.endswith("kB"))
    return {name: int(value.split()[0]) for name, _, value in lines}
