"""Records the origin of a result: the code, the packages, the machine."""

import platform
import subprocess
import sys
from importlib.metadata import Distribution, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("hatemtl", "torch", "transformers", "adapters", "peft", "lightning", "pyarrow", "torchmetrics")


def provenance() -> dict[str, Any]:
    """Records git commit (with a + where the tree was changed since), versions and machine, for run.json."""
    return {
        "git_commit": _commit(),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": machine(),
        "threads": torch.get_num_threads(),
    }


def machine() -> str:
    """Names the device that computes."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"


def peak_memory() -> int | None:
    """Measures bytes of the GPU where there is one, else of this process; None where the system does not say."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource  # Windows has none
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _versions() -> dict[str, str]:
    """Gives those of the packages that are installed; adapters is not, beside transformers 5."""
    return {package: version(package) for package in PACKAGES if any(Distribution.discover(name=package))}


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else it is another project's, around an installed package
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):  # no checkout, or no git
        return None
