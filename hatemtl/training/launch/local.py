"""Runs side by side on this machine, each by a command in a process of its own, with its own cores.

A process a run, and no pool of processes that live on: a run that is killed takes nothing with it, its peak memory and its
threads are its own, and a worker on another machine is started with the very same words.
"""

import os
import signal
import subprocess
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import ClassVar

from hatemtl.errors import UserError
from hatemtl.harmless import shown
from hatemtl.machine import startup
from hatemtl.machine.following import FOLLOWS
from hatemtl.training.launch.base import REPORT, Ended, Run, reported

TOLD = ("epoch ", "step ", "note: ", "warning: ", "error: ", "Traceback")  # how the lines begin that are shown of a run
PATIENCE = 60  # seconds in which a run that is interrupted may clear away what it has half written


@dataclass(frozen=True, kw_only=True)
class Local:
    """Runs side by side. jobs: at once. threads: of each, on as many cores of its own; None shares out all that there are.

    Where a machine has several GPUs, they are given in turn.
    """

    jobs: int
    threads: int | None
    waits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("jobs", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"launcher.{name}={value}: expected a whole number, 1 or more")

    def __call__(self, runs: Iterable[Run]) -> Iterator[tuple[Run, Ended]]:
        waiting, free, places = iter(runs), [*reversed(range(self.jobs))], self.places(cores())
        working: dict[Run, Worker] = {}
        over: SimpleQueue[Run] = SimpleQueue()
        with TemporaryDirectory(prefix="hatemtl_") as reports:
            try:
                while True:
                    while free and (run := next(waiting, None)) is not None:
                        slot = free.pop()
                        working[run] = Worker(run, slot, self.threads, places[slot], Path(reports), over)
                    if not working:
                        return
                    run = over.get()
                    worker = working.pop(run)
                    free.append(worker.slot)
                    yield run, worker.ended()
            finally:
                stop(working.values())

    def places(self, found: list[int]) -> list[list[int]]:
        """Deals the cores out to the jobs; none where there are too few for cores of their own."""
        each = self.threads or max(len(found) // self.jobs, 1)
        fits = each * self.jobs <= len(found)
        return [found[i * each : (i + 1) * each] if fits else [] for i in range(self.jobs)]


def cores() -> list[int]:
    """Lists the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]


class Worker:
    """A process at work on a run, whose lines are printed behind the run's name."""

    def __init__(
        self, run: Run, slot: int, threads: int | None, places: list[int], reports: Path, over: "SimpleQueue[Run]"
    ) -> None:
        self.run, self.slot, self.report, self.last = run, slot, reports / f"{slot}.json", deque[str](maxlen=50)
        self.report.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [*startup.PROGRAM, *run.words],
            stdin=subprocess.PIPE,  # which ends when this process does
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **environment(slot, threads or len(places)), REPORT: str(self.report)},
            process_group=0,  # Ctrl-C comes to it from here, once
        )
        if places and hasattr(os, "sched_setaffinity"):
            with suppress(OSError):  # it may have ended already
                os.sched_setaffinity(self.process.pid, places)  # before it has a second thread
        Thread(target=self._read, args=(over,), daemon=True).start()

    def _read(self, over: "SimpleQueue[Run]") -> None:
        assert self.process.stdout is not None
        fails = False
        for line in self.process.stdout:
            said = line.rstrip()
            fails = fails or said.startswith(("error: ", "Traceback"))
            if said:
                self.last.append(said)
            if said and (fails or said.startswith(TOLD)):
                with suppress(OSError, ValueError):  # the terminal may be gone: the end is waited for all the same
                    print(shown(f"{self.run.name}: {said}"), flush=True)
        self.process.wait()
        over.put(self.run)

    def ended(self) -> Ended:
        """Tells how the run ended, whatever ended the process."""
        if (ended := reported(self.report)) is not None:
            return ended
        code, last = self.process.returncode, self.last[-1] if self.last else "it printed nothing"
        if code == 130:
            return Ended("interrupted", last)
        if code >= 0:
            return Ended("failed", next((line for line in self.last if line.startswith("error: ")), last))
        why = ", as the system does where memory ends" if code == -signal.SIGKILL else ""
        return Ended("failed", f"killed by {signal.Signals(-code).name}{why}; its last line: {last}")


def environment(slot: int, threads: int) -> dict[str, str]:
    """Gives what sets a run's threads and GPU."""
    import torch

    given = {"PYTHONUNBUFFERED": "1", FOLLOWS: "1"}
    if threads:
        given |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    if (devices := torch.cuda.device_count()) > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(devices)))).split(",")
        given["CUDA_VISIBLE_DEVICES"] = seen[slot % devices]
    return given


def stop(workers: Iterable[Worker]) -> None:
    """Interrupts what still works, and waits until it has cleared away."""
    workers = [*workers]
    for worker in workers:
        with suppress(OSError):
            worker.process.send_signal(signal.SIGINT)
    for worker in workers:
        try:
            worker.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
