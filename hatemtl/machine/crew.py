"""Lets several processes train one run: who they are, how they begin and end together, and what they tell each other.

Each computes its share of every batch, and moves the same weights by the mean of all gradients, so that a run is what one
process makes of it, to the rounding of sums. Only the lead claims, writes and prints. A process alone is a crew of one.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from hatemtl.errors import UserError
from hatemtl.machine.following import FOLLOWS

LOOK = 0.2  # seconds between two looks at whether the others live
GRACE = 15  # seconds for an error of the connection to end a process whose fellow has died, before it is ended


@dataclass(frozen=True)
class Crew:
    """Knows its place among a run's processes. rank: 0 for the lead. world: how many. local: its number on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def lead(self) -> bool:
        """Tells whether this process claims, writes and prints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Gives what each process says here, by rank; of any plain kind."""
        if self.world == 1:
            return [value]
        said: list[Any] = [None] * self.world
        distributed.all_gather_object(said, value)
        return said

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gives the means over all processes of scalars by name, each with this process's own gradient."""
        if self.world == 1 or not values:
            return dict(values)
        mine = torch.stack([value.detach().float() for value in values.values()])
        whole = mine.clone()
        distributed.all_reduce(whole)
        return {name: value + more for (name, value), more in zip(values.items(), whole / self.world - mine, strict=True)}

    def any(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tells by name whether anything is true in any process: a truth value each, (), of tensors of any shape."""
        if self.world == 1 or not values:
            return dict(values)
        some = torch.stack([value.any() for value in values.values()]).int()
        distributed.all_reduce(some, distributed.ReduceOp.MAX)
        return dict(zip(values, some.bool(), strict=True))

    def all(self, values: Iterable[bool]) -> bool:
        """Tells whether all values of all processes are true."""
        return all(self.gather(all(values)))

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Puts in place of tensors, which all processes list alike, their means over these."""
        if self.world > 1 and tensors:
            whole = torch.cat([tensor.detach().float().flatten() for tensor in tensors])
            distributed.all_reduce(whole)
            parts = (whole / self.world).split([tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def average_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Gives parameters the means of their gradients; one that no process has a gradient for keeps none.

        Of those that are split over the processes, `sharding` has made them.
        """
        parameters = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        if self.world == 1 or not parameters:
            return
        there = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device).int()
        distributed.all_reduce(there, distributed.ReduceOp.MAX)
        moved = [p for p, some in zip(parameters, there.tolist(), strict=True) if some]
        for parameter in moved:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.average([p.grad for p in moved if p.grad is not None])


ALONE = Crew()


def called() -> Crew | None:
    """Gives the place that whoever started this process gave it, as torchrun does; None where nobody did."""
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return None
    return Crew(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", "0")))


def check(crew: Crew | None, devices: int, nodes: int) -> None:
    """Raises UserError where another number of processes was started than asked for."""
    if crew is not None and crew.world != devices * nodes:
        raise UserError(
            f"{crew.world} processes were started for this run, and trainer.devices={devices} trainer.nodes={nodes} ask for "
            f"{devices * nodes}; start as many as you ask for"
        )
    if crew is None and nodes > 1:
        raise UserError(
            f"trainer.nodes={nodes}: on several machines processes are started from outside; type torchrun "
            f"--nnodes={nodes} --nproc-per-node={devices} main.py ..., or trainer.nodes=1"
        )


@contextmanager
def joined(crew: Crew | None, processes: int, command: Sequence[str] | None, device: torch.device) -> Iterator[Crew]:
    """Trains, inside, with all processes of the run: those that were started, or this one and what it starts by `command`.

    device: of this process. Raises UserError where another process ends before its time, inside or at the end.
    """
    if crew is None and processes == 1:
        yield ALONE
        return
    others: list[subprocess.Popen[bytes]] = []
    if crew is None:
        crew = Crew(0, processes, 0)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        threads = max(1, (os.cpu_count() or 1) // processes) if device.type == "cpu" else torch.get_num_threads()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        os.environ |= place
        place["OMP_NUM_THREADS"] = str(min(threads, torch.get_num_threads()))
        for rank in range(1, processes):
            env = {**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), FOLLOWS: "1"}
            # of a session of their own, so that Ctrl-C is the lead's to deal with; they end where the pipe does
            apart: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "start_new_session": True}
            others.append(subprocess.Popen(command or [], env=env, **apart))
    before, done = torch.get_num_threads(), threading.Event()
    watch = threading.Thread(target=_watch, args=(others, done), daemon=True)
    watch.start()
    try:
        if others:
            torch.set_num_threads(int(place["OMP_NUM_THREADS"]))
        where = {"device_id": device} if device.type == "cuda" else {}
        of: dict[str, Any] = {"rank": crew.rank, "world_size": crew.world, **where}
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", **of)
        yield crew
        distributed.barrier()
    except RuntimeError as error:
        if not (died := _died(others)) and "onnection" not in str(error) and "ranks" not in str(error):
            raise
        who = f"process {died[0] + 1} of {crew.world} ended ({died[1]})" if died else "another process of the run ended"
        raise UserError(f"{who} before the run was trained; the same command goes on after its last whole epoch") from None
    finally:
        done.set()
        if distributed.is_initialized():
            with suppress(RuntimeError):
                distributed.destroy_process_group()
        torch.set_num_threads(before)
        for other in others:
            _end(other)
        if others:
            for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"):
                os.environ.pop(name, None)


def _died(others: Sequence[subprocess.Popen[bytes]]) -> tuple[int, str] | None:
    """Finds a process that ended before its time: its rank, and how."""
    until = time.monotonic() + 1  # its end may be known a moment after its connection is lost
    while others and time.monotonic() < until:
        for rank, other in enumerate(others, 1):
            if other.poll():
                return rank, f"signal {-other.returncode}" if other.returncode < 0 else f"exit code {other.returncode}"
        time.sleep(LOOK)
    return None


def _watch(others: Sequence[subprocess.Popen[bytes]], done: threading.Event) -> None:
    """Ends this process where a fellow has died and no error of the connection said so, as on a GPU."""
    while not done.wait(LOOK):
        if any(other.poll() for other in others):
            if not done.wait(GRACE):
                print("error: another process of the run ended; the same command goes on", file=sys.stderr, flush=True)
                for other in others:
                    other.kill()
                os._exit(2)
            return


def _end(other: subprocess.Popen[bytes]) -> None:
    try:
        other.wait(GRACE)
    except subprocess.TimeoutExpired:
        other.kill()
        other.wait()
