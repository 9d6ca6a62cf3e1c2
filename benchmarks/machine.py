"""The machine under a benchmark: what it is, and how fast it multiplies matrices."""

import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "transformers", "peft", "adapters", "accelerate", "lightning")
SHAPES = [(n, n, n) for n in (1024, 1536, 2048, 3072, 4096)] + [(1024, 384, 1536), (4096, 384, 1536), (4096, 1536, 384)]

# Seconds as everything here measures them: of the clock, or of this process's threads (time.process_time), which others at
# work on the machine change little. The latter is true of one thread alone.
clock: Callable[[], float] = time.perf_counter


def description(device: str, threads: int) -> dict[str, str]:
    """Date, commit, processor and versions: what every row of results carries."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": _accelerator() if device == "cuda" else _processor(),
        "device": device,
        "threads": str(threads),
        "trainer and peak in": "bf16" if multiplies_bf16(device) else "float32",
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
    }


def peak_flops(device: str, *, seconds: float = 0.05) -> float:
    """The best FLOP/s of `torch.mm` over SHAPES, in bf16 where the hardware multiplies it, else in float32.

    Each shape runs for about `seconds` after one call that is not counted, and its fastest call counts: a peak is what the
    machine can do, not what it did on average.
    """
    import torch

    from hatemtl.training.trainer_settings import exact_onednn

    dtype, before = torch.bfloat16 if multiplies_bf16(device) else torch.float32, torch.get_float32_matmul_precision()
    if device == "cpu":
        exact_onednn()
    best, calls = 0.0, 20 if device == "cuda" else 1  # a single call on a GPU is shorter than its launch
    for m, k, n in SHAPES:
        a, b = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((m, k), (k, n)))
        out = torch.mm(a, b)
        end = clock() + seconds
        while clock() < end:
            synchronize(device)
            start = clock()
            for _ in range(calls):
                torch.mm(a, b, out=out)
            synchronize(device)
            best = max(best, calls * 2 * m * k * n / (clock() - start))
    torch.set_float32_matmul_precision(before)  # which is the arm's own
    return best


def multiplies_bf16(device: str) -> bool:
    """Whether bf16 is worth asking for: other processors take ten times as long in it as in float32."""
    from hatemtl.training.trainer_settings import fastest_precision

    return fastest_precision(device) == "bf16"


def synchronize(device: str) -> None:
    """Waits until a GPU has done what it was told; a CPU always has."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def most_memory(device: str) -> Callable[[], int]:
    """Gives what tells the most bytes that this process has held since now: its tensors' on a GPU, else, by Linux, all.

    Where the system forgets no earlier peak, that of a CPU is the whole process's so far.
    """
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident set begins anew
    return partial(resident, "VmHWM")


def resident(name: str = "VmRSS") -> int:
    """Bytes of this process's memory, now (VmRSS) or at most (VmHWM), by Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


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
