"""Keeps a run's ledger: seconds by phase, posts and tokens read, peak memory, bytes on disk, energy, price."""

import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hatemtl.errors import UserError
from hatemtl.machine.energy import counters
from hatemtl.machine.provenance import machine, peak_memory

WATTS_A_THREAD = 10.0  # of the estimate: a server's 64 cores are sold with 350 W of design power or so, a laptop's 8 with 45


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Tells what this machine costs.

    per_hour: the price of an hour, in any currency; None: none is told. watts: that it draws while a run works, for the
    estimate where no counter can be read; None: 10 for each thread of a processor, and no estimate for a GPU.
    """

    per_hour: float | None = None
    watts: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"cost.{name}={value}: expected a number of at least 0, or null")


class Ledger:
    """Measures what one sitting of a run spends, from now on: until it is finished, interrupted, or tested.

    devices, nodes: processes of the run on this machine, and machines.
    """

    def __init__(self, cost: Cost, *, devices: int = 1, nodes: int = 1) -> None:
        gpu = torch.cuda.is_available()
        mine = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}" if gpu else None
        several = nodes > 1 or (gpu and devices > 1)  # of which this process's counters tell a part
        self.cost, self.counters = cost, {} if several else counters(mine)
        threads = torch.get_num_threads()
        self.device = machine() if gpu else f"{machine()}, {threads} threads"
        self.watts = WATTS_A_THREAD * threads if cost.watts is None and not gpu and not several else cost.watts
        self.seconds = defaultdict[str, float](float)  # by phase, as are posts and tokens
        self.posts, self.tokens = defaultdict[str, int](int), defaultdict[str, int](int)
        self.phase, self.since = "loading", time.perf_counter()

    def turn(self, phase: str) -> None:
        """Ends the phase so far and begins another."""
        now = time.perf_counter()
        self.seconds[self.phase] += now - self.since
        self.phase, self.since = phase, now
        self._joules()  # one of the counters begins again now and then

    def _joules(self) -> float | None:
        """Reads the counters; None where there is none, or one that cannot be read any more: it ends no run."""
        try:
            return sum(counter() for counter in self.counters.values()) if self.counters else None
        except (OSError, ValueError):
            self.counters = {}
            return None

    def of_which(self, phase: str, seconds: float) -> None:
        """Books seconds of the phase so far under another, which was measured within it."""
        self.seconds[phase] += seconds
        self.seconds[self.phase] -= seconds

    def read(self, posts: int, tokens: int) -> None:
        """Books posts that the encoder has read in this phase."""
        self.posts[self.phase] += posts
        self.tokens[self.phase] += tokens

    def entry(self, folder: Path, but: Collection[str] = ()) -> dict[str, Any]:
        """Gives what was spent up to now, for run.json. but: names of files of the folder that will not stay."""
        self.turn(self.phase)
        seconds = {phase: spent for phase, spent in self.seconds.items() if spent > 0}
        total = sum(seconds.values())
        joules, source = self._joules(), "+".join(self.counters) or None
        if joules is None and self.watts is not None:
            joules, source = self.watts * total, "estimate"
        files = [path for path in folder.rglob("*") if path.is_file() and path.name not in but]
        return {
            "seconds": seconds,
            "sittings": 1,
            "device": self.device,
            "posts": dict(self.posts),
            "tokens": dict(self.tokens),
            "peak_memory_bytes": peak_memory(),
            "disk_bytes": sum(path.stat().st_size for path in files),
            "joules": joules,
            "energy_source": source,
            "watts": self.watts if source == "estimate" else None,
            "per_hour": self.cost.per_hour,
            "price": None if self.cost.per_hour is None else self.cost.per_hour * total / 3600,
        }
