"""Submits the runs of a sweep to a SLURM cluster as an array of jobs, through submitit, and waits for none of them.

A job runs `main.py` in a process of its own. When its time ends or it is preempted it interrupts that, is requeued, and runs
the same words again, with which the run goes on after its last whole epoch.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from getpass import getuser
from json import dumps
from pathlib import Path
from typing import Any, ClassVar, Literal

from filelock import FileLock, Timeout

from hatemtl.errors import UserError
from hatemtl.machine import startup
from hatemtl.machine.following import FOLLOWS
from hatemtl.saved_runs.failures import forget_failure, write_failure
from hatemtl.saved_runs.writing import write_text
from hatemtl.training.launch.base import REPORT, Ended, Run, reported
from hatemtl.training.launch.submission import PLACE, Submitted, leave, report_of

LOOK = 0.2  # seconds between two looks at whether the run has ended
# between the signal that a job will end and its end; the run's own patience is a part of it
NOTICE, PATIENCE = 90, 60
WAITS = ("READY", "PENDING", "RUNNING", "UNKNOWN", "REQUEUED", "COMPLETING", "CONFIGURING", "PREEMPTED", "SUSPENDED")


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Jobs of a cluster. time: minutes. memory: GiB. parallel: jobs at once. setup: shell lines. options: more of sbatch's.

    cluster: "local" for processes of this machine. requeues: how often the end of its time may requeue a job.
    """

    cluster: Literal["slurm", "local"]
    partition: str | None
    time: int
    cpus: int
    gpus: int
    memory: float | None
    parallel: int
    requeues: int
    setup: Sequence[str]
    options: Mapping[str, Any]
    waits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.cluster not in ("slurm", "local"):
            raise UserError(f"launcher.cluster={self.cluster}: expected slurm or local")
        for name, least in (("time", 1), ("cpus", 1), ("gpus", 0), ("parallel", 1), ("requeues", 0)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"launcher.{name}={value}: expected a whole number, {least} or more")
        if self.memory is not None and self.memory <= 0:
            raise UserError(f"launcher.memory={self.memory}: expected GiB, above 0, or null")

    def __call__(self, runs: Iterable[Run]) -> Iterator[tuple[Run, Ended]]:
        submitit = library()
        if self.cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
            raise UserError(
                "launcher=slurm: there is no sbatch here; type it where jobs are submitted, as on a login node, or "
                "launcher.cluster=local to run the jobs as processes of this machine"
            )
        yield from leave(runs, "slurm", self.cluster, states, partial(self._submit, submitit))

    def _submit(self, submitit: Any, folder: Path, runs: Sequence[Run]) -> list[str]:
        """Submits the runs; gives the name of each one's job."""
        jobs = folder / PLACE / "jobs"
        executor = submitit.AutoExecutor(jobs, cluster=self.cluster, **{f"{self.cluster}_max_num_timeout": self.requeues})
        executor.update_parameters(
            name="hatemtl",
            timeout_min=self.time,
            cpus_per_task=self.cpus,
            gpus_per_node=self.gpus or None,
            mem_gb=self.memory,
            slurm_partition=self.partition,
            slurm_array_parallelism=self.parallel,
            slurm_signal_delay_s=NOTICE,
            slurm_setup=[*self.setup],
            slurm_additional_parameters=dict(self.options),
            # jobs outlive the terminal; without a trap some shells would leave no process of the name that submitit notes
            local_setup=["exec </dev/null >/dev/null 2>&1", "trap '' HUP INT", *self.setup],
        )
        slots = self.parallel if self.cluster == "local" else None
        try:
            with executor.batch():
                found = [executor.submit(self._job(run, folder, slots)) for run in runs]
        except RuntimeError as error:  # of sbatch, in submitit's words
            raise UserError(f"launcher=slurm: sbatch refused ({str(error).strip().splitlines()[-1]})") from error
        return [str(job.job_id) for job in found]

    def _job(self, run: Run, folder: Path, slots: int | None) -> "Job":
        assert run.save_path is not None and run.config is not None
        command = (*startup.PROGRAM, *run.words)
        save_path = folder / run.save_path.name
        return Job(command, save_path, run.config, report_of(folder, save_path.name), self.cpus, slots)


@dataclass(eq=False)
class Job:
    """Does a run as a job. threads: of it. slots: how many jobs work at once; None where the cluster sees to that.

    at: the folder that the words were typed in, None for that of the job. log: where lines go; None for the job's own.
    """

    command: Sequence[str]
    save_path: Path
    config: Mapping[str, Any]
    report: Path
    threads: int
    slots: int | None
    at: Path | None = None
    log: Path | None = None
    child: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    def __call__(self) -> None:
        with self._slot():
            write_text(self.report, dumps({"state": "running", "told": ""}))
            threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
            # by this name of the job Lightning leaves its processes and signals to us
            given = {
                **threads,
                "SLURM_JOB_NAME": "interactive",
                "PYTHONUNBUFFERED": "1",
                FOLLOWS: "1",
                REPORT: str(self.report),
            }
            environment: dict[str, Any] = {"env": {**os.environ, **given}, "cwd": self.at}
            with self.log.open("ab") if self.log is not None else nullcontext() as log:
                self.child = subprocess.Popen(
                    self.command, stdin=subprocess.PIPE, stdout=log, stderr=log, process_group=0, preexec_fn=_undisturbed,
                    **environment,
                )  # fmt: skip
            try:
                while self.child.poll() is None:  # not wait(), in which `checkpoint` could not look as well
                    time.sleep(LOOK)
                self._tell(self.child.returncode)
            finally:
                self._stop()

    def checkpoint(self) -> Any:
        """Interrupts the run, and gives what does the rest of it; submitit calls it where the job is to be requeued."""
        self._stop()
        return library().helpers.DelayedSubmission(replace(self))

    def _tell(self, code: int) -> None:
        said = reported(self.report)
        if said is None or said.state == "running":  # it did not come to tell
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            log = self.report.parent / "jobs"
            said = Ended("interrupted" if code == 130 else "failed", f"its process {how}; see {log}/*_log.*")
            write_text(self.report, dumps({"state": said.state, "told": said.told, "diverged": False}))
        if said.state == "failed":
            write_failure(self.save_path, self.config, said.told, diverged=said.diverged)
        elif said.state != "interrupted":
            forget_failure(self.save_path)

    def _stop(self) -> None:
        child, until = self.child, time.monotonic() + PATIENCE
        if child is None or child.poll() is not None:
            return
        child.send_signal(signal.SIGINT)
        while child.poll() is None and time.monotonic() < until:
            time.sleep(LOOK)
        if child.poll() is None:
            child.kill()

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Waits until fewer than `slots` jobs work."""
        locks = [FileLock(self.report.parent / f"slot_{number}.lock") for number in range(self.slots or 0)]
        while True:
            for lock in locks:
                try:
                    lock.acquire(blocking=False)
                except Timeout:
                    continue
                try:
                    yield
                finally:
                    lock.release()
                return
            if not locks:
                yield
                return
            time.sleep(LOOK)


def _undisturbed() -> None:
    """Lets the run see Ctrl-C alone, of all that a cluster sends to the processes of a job that will end."""
    for name in ("SIGUSR1", "SIGUSR2", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def library() -> Any:
    """Imports submitit. Raises UserError where it is not installed."""
    try:
        import submitit
        import submitit.helpers
    except ImportError as missing:
        raise UserError(f"launcher=slurm needs {missing.name}; type uv sync --extra cluster") from missing
    return submitit


def states(folder: Path, runs: Sequence[Submitted]) -> dict[str, str | None]:
    """Asks for the states of the runs' jobs, by the runs' folders; None for jobs that are gone."""
    found: dict[str, str | None] = {
        run.folder: "RUNNING" if _lives(run.job) else None for run in runs if run.cluster == "local"
    }
    if others := [run for run in runs if run.cluster != "local"]:
        kind = library().SlurmJob
        jobs = {
            run.folder: kind(folder / PLACE / "jobs", run.job) for run in others
        }  # all before the first is asked: one sacct
        told = {name: (str(job.state).split() or ["UNKNOWN"])[0].rstrip("+").upper() for name, job in jobs.items()}
        queue = _queue() if "UNKNOWN" in told.values() else None
        for name, state in told.items():
            gone = state == "UNKNOWN" and queue is not None and jobs[name].job_id not in queue
            found[name] = state if state in WAITS and not gone else None
    return found


def _queue() -> set[str] | None:
    """Lists the user's jobs that wait or work, for a cluster whose accounts do not know them; None where it does not say."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={getuser()}"]
    with suppress(OSError):  # it is not here
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return {*done.stdout.split()}
    print("note: neither sacct nor squeue tells of jobs here, so what was killed counts as at work; ask on a login node")
    return None


def _lives(job: str) -> bool:
    try:
        return b"submitit" in Path(f"/proc/{job}/cmdline").read_bytes()  # its number may be another process's by now
    except OSError:
        return False
