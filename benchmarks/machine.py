"""The machine under a benchmark: what it is, and how fast it multiplies matrices."""

import multiprocessing as mp
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "transformers", "peft", "adapters", "accelerate", "lightning")
SHAPES = [(n, n, n) for n in (1024, 1536, 2048, 3072, 4096)] + [(1024, 384, 1536), (4096, 384, 1536), (4096, 1536, 384)]


def description(device: str, threads: int) -> dict[str, str]:
    """Date, commit, processor and versions: what every row of results carries."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": _accelerator() if device == "cuda" else _processor(),
        "device": device,
        "threads": str(threads),
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
    }


def peak_flops(device: str, *, seconds: float = 0.25) -> dict[str, float]:
    """The best FLOP/s of `torch.mm` over SHAPES: `float32` (at either matmul precision) and `bfloat16`.

    Each shape runs for about `seconds` after one call that is not counted, and its fastest call counts: a peak is what the
    machine can do, not what it did on average.
    """
    import torch

    before = torch.get_float32_matmul_precision()
    best = {"float32": 0.0, "bfloat16": 0.0}
    for dtype, precision in ((torch.bfloat16, before), (torch.float32, "highest"), (torch.float32, "medium")):
        torch.set_float32_matmul_precision(precision)
        for m, k, n in SHAPES:
            a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype)
            out = torch.mm(a, b)
            end = time.perf_counter() + seconds
            calls = 20 if device == "cuda" else 1  # a single call on a GPU is shorter than its launch
            while time.perf_counter() < end:
                synchronize(device)
                start = time.perf_counter()
                for _ in range(calls):
                    torch.mm(a, b, out=out)
                synchronize(device)
                name = str(dtype).removeprefix("torch.")
                best[name] = max(best[name], calls * 2 * m * k * n / (time.perf_counter() - start))
    torch.set_float32_matmul_precision(before)
    return best


def peak_in_a_process(device: str, threads: int) -> dict[str, float]:
    """`peak_flops` in a process that is gone afterwards, so that the caller need not import torch."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with mp.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_flops, (device,))


def synchronize(device: str) -> None:
    """Waits until a GPU has done what it was told; a CPU always has."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1] for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{len(names) or 1} x {names[0].strip() if names else platform.processor()}"


def _accelerator() -> str:
    import torch

    return str(torch.cuda.get_device_name())


def _commit() -> str:
    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return run.stdout.strip() if run.returncode == 0 else "unknown"

    return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
