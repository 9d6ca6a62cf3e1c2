"""Reads the energy that a machine has used from its own counters: NVML of a GPU, RAPL of processors."""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

POWERCAP, NVML = Path("/sys/class/powercap"), "libnvidia-ml.so.1"


class Rapl:
    """Counts joules of all processor packages, for whichever process they worked (Linux's powercap; Intel and AMD).

    A counter begins again at its range, on a busy server within the hour, so it is to be called more often than that.
    Raises OSError where there is no counter, or only root may read it.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        found = [path for path in sorted(root.glob("intel-rapl:*")) if path.name.count(":") == 1]
        packages = [path for path in found if (path / "name").read_text().startswith("package")]
        if not packages:
            raise OSError(f"{root}: no counter of a processor package")
        self.ranges = {path / "energy_uj": int((path / "max_energy_range_uj").read_text()) for path in packages}
        self.last, self.microjoules = {path: int(path.read_text()) for path in self.ranges}, 0

    def __call__(self) -> float:
        """Gives the joules since it was made."""
        now = {path: int(path.read_text()) for path in self.ranges}
        # the counter holds 0 to its range, the range included
        self.microjoules += sum((now[path] - self.last[path]) % (most + 1) for path, most in self.ranges.items())
        self.last = now
        return self.microjoules / 1e6


class Nvml:
    """Counts joules of a whole GPU through NVIDIA's driver, for whichever process it worked (Volta and later).

    Raises OSError where the driver is not there, or the GPU has no counter, as a slice of one (MIG) has none.
    """

    def __init__(self, uuid: str, library: str = NVML) -> None:
        self.nvml, self.handle = ctypes.CDLL(library), ctypes.c_void_p()
        self._ask("nvmlInit_v2")
        self._ask("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(self.handle))
        self.first = self._millijoules()

    def __call__(self) -> float:
        """Gives the joules since it was made."""
        return (self._millijoules() - self.first) / 1e3

    def _millijoules(self) -> int:
        found = ctypes.c_ulonglong()
        self._ask("nvmlDeviceGetTotalEnergyConsumption", self.handle, ctypes.byref(found))
        return found.value

    def _ask(self, name: str, *given: object) -> None:
        if code := getattr(self.nvml, name)(*given):
            raise OSError(f"{name} says {code}")


def counters(gpu: str | None) -> dict[str, Callable[[], float]]:
    """Gives the counters that this machine lets be read, by name. gpu: the UUID of the one that computes.

    None where a GPU computes that has no counter: its processor's alone would tell too little.
    """
    found: dict[str, Callable[[], float]] = {}
    if gpu is not None:
        with suppress(OSError, AttributeError):  # a library that lacks a call
            found["NVML"] = Nvml(gpu)
        if not found:
            return found
    with suppress(OSError, ValueError):
        found["RAPL"] = Rapl()
    return found
