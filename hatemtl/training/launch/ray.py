"""Hands the runs of a sweep to a Ray cluster, and waits for none of them.

Each is a detached actor, which the cluster starts where there is room, keeps when this command has ended, and starts again
elsewhere when its machine is lost: `main.py` then goes on after the last whole epoch.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from secrets import token_hex
from threading import Thread
from typing import Any, ClassVar

from hatemtl.errors import UserError
from hatemtl.machine import startup
from hatemtl.training.launch.base import Ended, Run
from hatemtl.training.launch.slurm import Job
from hatemtl.training.launch.submission import PLACE, Submitted, leave, report_of

NAMESPACE, CLUSTER = "hatemtl", "ray "  # the latter before the address, in what is kept of a run
AMOUNTS = {"CPU": "cpus", "GPU": "gpus", "memory": "memory"}  # that Ray would take among resources too, by our keys


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Actors of a Ray cluster. address: of it; None for RAY_ADDRESS, or that on this machine.

    cpus, gpus, memory (GiB): of a run. resources: that it takes, by the cluster's own names.
    restarts: how often the loss of its machine, or of its process, may start a run again; -1 without end.
    """

    address: str | None
    cpus: int
    gpus: float
    memory: float | None
    resources: Mapping[str, float]
    restarts: int
    waits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, least in (("cpus", 1), ("gpus", 0), ("restarts", -1)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"launcher.{name}={value}: expected a number, {least} or more")
        if self.gpus > 1 and self.gpus % 1:
            raise UserError(f"launcher.gpus={self.gpus}: expected a share of one GPU, such as 0.5, or whole ones")
        if self.memory is not None and not 0 < self.memory < float("inf"):
            raise UserError(f"launcher.memory={self.memory}: expected GiB, above 0, or null")
        for name, amount in self.resources.items():
            if name in AMOUNTS:
                raise UserError(f"launcher.resources.{name}={amount}: type launcher.{AMOUNTS[name]}={amount:g}")
            if not 0 < amount < float("inf"):
                raise UserError(f"launcher.resources.{name}={amount}: expected a number above 0")

    def __call__(self, runs: Iterable[Run]) -> Iterator[tuple[Run, Ended]]:
        with connected(self.address or "auto") as (ray, address):
            known = partial(_states_at, ray)
            yield from leave(runs, "ray", f"{CLUSTER}{address}", known, partial(self._submit, ray))

    def _submit(self, ray: Any, folder: Path, runs: Sequence[Run]) -> list[str]:
        """Starts an actor a run; gives their names."""
        names = []
        for run in runs:
            assert run.save_path is not None and run.config is not None
            own = run.save_path.name
            name, log = f"{own}-{token_hex(3)}", folder / PLACE / "jobs" / f"{own}_log.out"
            command = (*startup.PROGRAM, *run.words)
            job = Job(command, folder / own, run.config, report_of(folder, own), self.cpus, None, Path.cwd(), log)
            how: dict[str, Any] = {"name": name, "lifetime": "detached", "max_restarts": self.restarts}
            how |= {"num_cpus": self.cpus, "num_gpus": self.gpus, "resources": dict(self.resources)}
            how |= {} if self.memory is None else {"memory": int(self.memory * 2**30)}
            ray.remote(_Worker).options(**how).remote(job)
            names.append(name)
        return names


class _Worker:
    """Does a job from its making on, so that it waits in the cluster's hands and not in those of who submitted it."""

    def __init__(self, job: Job) -> None:
        import ray

        me = ray.get_runtime_context().current_actor

        def work() -> None:
            try:
                job()
            finally:
                ray.kill(me)  # for good: what ends an actor otherwise starts it again

        Thread(target=work, daemon=True).start()


@contextmanager
def connected(address: str) -> Iterator[tuple[Any, str]]:
    """Gives Ray, connected to a cluster, and the address by which it is found again. Raises UserError where none answers."""
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # it would send this folder to each machine, which has it
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as missing:
        raise UserError(f"launcher=ray needs {missing.name}; type uv sync --extra ray") from missing
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"launcher.address={address}: no Ray cluster answers there ({why}); start one by `uv run ray start --head`, or "
            f"type the address of one"
        ) from error
    try:
        yield ray, ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def _states_at(ray: Any, folder: Path, runs: Sequence[Submitted]) -> dict[str, str | None]:
    there = {*ray.util.list_named_actors()}
    return {run.folder: "in the cluster" if run.job in there else None for run in runs}


def states(folder: Path, runs: Sequence[Submitted]) -> dict[str, str | None]:
    """Asks the cluster that is the user's for those that wait or work there; None for others, by the runs' folders."""
    found: dict[str, str | None] = {}
    for cluster in {run.cluster for run in runs}:
        mine, named = [run for run in runs if run.cluster == cluster], cluster.removeprefix(CLUSTER)
        found |= {run.folder: None for run in mine}
        with suppress(UserError), connected("auto") as (ray, address):  # no other: whoever is asked could run code here
            if address == named:
                found |= _states_at(ray, folder, mine)
                continue
        print(
            f"note: {named} was not asked, since neither RAY_ADDRESS nor a cluster of this machine is it; if it is yours, "
            f"type RAY_ADDRESS={named} before the command; what waited or worked there counts as interrupted"
        )
    return found
