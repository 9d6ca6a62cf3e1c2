"""Processes that each hold one arm of a benchmark ready, and measure it when they are told to; one works at a time."""

import contextlib
import multiprocessing as mp
import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Protocol
from unittest.mock import patch

from benchmarks import machine
from benchmarks.machine import most_memory, peak_flops
from benchmarks.readings import Reading, Stage, Tasks, lasting


class Arm(Protocol):
    """What is measured: a library set up in one way."""

    def warm_up(self) -> Mapping[str, str]:
        """Pays what is paid once; says what it found out about the machine."""
        ...

    def train(self, tasks: Tasks) -> Reading: ...

    def evaluate(self, tasks: Tasks) -> Reading: ...


class Builder(Protocol):
    """Makes an arm, in the process that will hold it. Whatever it is must be picklable."""

    def __call__(self) -> Arm: ...


class ArmFailed(Exception):
    """An arm could not be built or measured."""


@dataclass(frozen=True)
class Job:
    """What a worker is told to measure."""

    stage: Stage
    tasks: Tasks


class Worker:
    """A process with one arm, imports and warm-up paid.

    peak_of: the device whose peak is measured beside each measurement, and whose memory. seconds: that a measurement takes
    at least, in as many passes as it needs. environment: what the process has there besides its parent's. own_time: seconds
    are of its processor's time.
    """

    def __init__(
        self,
        name: str,
        build: Builder,
        *,
        threads: int,
        peak_of: str | None = None,
        seconds: float = 0,
        environment: Mapping[str, str] | None = None,
        own_time: bool = False,
    ) -> None:
        self.name = name
        context = mp.get_context("spawn")  # fork would share the parent's threads and its random state
        self.pipe, theirs = context.Pipe()
        os.environ["OMP_NUM_THREADS"] = str(threads)  # inherited, and read when torch is imported
        self.process = context.Process(
            target=_serve, args=(build, theirs, threads, peak_of, seconds, own_time), daemon=False
        )
        with patch.dict(os.environ, environment or {}):  # restored afterwards
            self.process.start()
        theirs.close()
        self.notes: dict[str, str] = self._answer()

    def measure(self, job: Job) -> Reading:
        """One measurement. Raises ArmFailed with the reason."""
        with contextlib.suppress(BrokenPipeError):  # of a process that has ended; the answer tells how
            self.pipe.send(job)
        answer: Reading = self._answer()
        return answer

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()

    def _answer(self) -> Any:
        try:
            answer = self.pipe.recv()
        except EOFError:
            self.process.join(timeout=10)
            answer = ArmFailed(f"the process ended with code {self.process.exitcode}")
        if isinstance(answer, ArmFailed):
            self.close()
            raise answer
        return answer


def _serve(build: Builder, pipe: Connection, threads: int, peak_of: str | None, seconds: float, own_time: bool) -> None:
    machine.clock = time.process_time if own_time else time.perf_counter
    try:
        arm = build()  # which may set what torch reads while it is imported
        import torch

        torch.set_num_threads(threads)
        pipe.send(dict(arm.warm_up()))
        while (job := pipe.recv()) is not None:
            before, most = (peak_flops(peak_of), most_memory(peak_of)) if peak_of else (0.0, None)
            reading = lasting(partial(arm.train if job.stage == "train" else arm.evaluate, job.tasks), seconds)
            if peak_of and most:
                reading = replace(reading, memory=most(), peak=max(before, peak_flops(peak_of)))
            pipe.send(reading)
    except EOFError:
        pass  # the parent is gone
    except ArmFailed as failure:
        pipe.send(failure)
    except Exception as error:
        traceback.print_exc()
        pipe.send(ArmFailed(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))
