"""Reads which device a run computes on, as people type it, and refuses one that is not there."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from hatemtl.errors import UserError, did_you_mean

KINDS = ("auto", "cpu", "gpu", "mps")  # and cuda, which is torch's name for gpu
GPUS = "CUDA_VISIBLE_DEVICES"  # the variable by which CUDA counts them
FORMS = "auto, cpu, gpu, mps (Apple's), or GPUs by number: cuda:1, gpu:0,1"


@dataclass(frozen=True)
class Accelerator:
    """Says what was asked for. kind: one of KINDS. numbers: of GPUs, as torch counts those that it sees; () for any."""

    kind: str
    numbers: tuple[int, ...] = ()

    @property
    def found(self) -> str:
        """Names the kind of torch's device; auto is NVIDIA's or AMD's GPU where there is one."""
        gpu = self.kind in ("auto", "gpu") and torch.cuda.is_available()
        return "cuda" if gpu else "mps" if self.kind == "mps" else "cpu"

    def device(self, local: int) -> torch.device:
        """Names the device of a run's process. local: its number on this machine."""
        if self.found != "cuda":
            return torch.device(self.found)
        return torch.device("cuda", self.numbers[local] if self.numbers else local)

    def check(self, typed: str, processes: int) -> None:
        """Raises UserError where the device is not there. processes: of the run on this machine."""
        key = f"trainer.accelerator={typed}"
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.kind == "gpu" and not there:
            raise UserError(f"{key}: torch sees no GPU here; type trainer.accelerator=cpu")
        if self.kind == "mps" and not torch.backends.mps.is_available():
            raise UserError(f"{key}: torch sees no GPU of Apple's here; type trainer.accelerator=cpu")
        if self.kind == "mps" and processes > 1:
            raise UserError(f"{key}: an Apple GPU is for one process; type trainer.devices=1")
        if beyond := [number for number in self.numbers if number >= there]:
            seen = "cuda:0" if there == 1 else f"cuda:0 to cuda:{there - 1}"
            raise UserError(f"{key}: torch sees {seen} here, and no cuda:{beyond[0]}; type trainer.accelerator=cuda:0")
        if self.numbers and len(self.numbers) != processes:
            some = "a GPU" if len(self.numbers) == 1 else f"{len(self.numbers)} GPUs"
            raise UserError(
                f"{key} names {some}, and trainer.devices={processes} asks for a GPU each for so many processes; type "
                f"trainer.devices={len(self.numbers)}"
            )
        cores = os.cpu_count() or 1
        if self.found == "cpu" and processes > max(2, cores):  # two are to try it out
            raise UserError(
                f"trainer.devices={processes}: this machine has {cores} cores, and no GPU that {key} would use; type "
                f"trainer.devices=1"
            )
        if self.found == "cuda" and processes > max(1, there):
            raise UserError(f"trainer.devices={processes}: torch sees {there} here; type trainer.devices={there}")


def read_accelerator(typed: str) -> Accelerator:
    """Reads `trainer.accelerator`. Raises UserError where it is of no form.

    >>> read_accelerator("cuda:1"), read_accelerator("gpu:0,1").numbers
    (Accelerator(kind='gpu', numbers=(1,)), (0, 1))
    """
    name, colon, numbers = typed.partition(":")
    kind = "gpu" if name == "cuda" else name
    key = f"trainer.accelerator={typed}"
    if kind in ("tpu", "xla"):
        raise UserError(
            f"{key}: no run was made fit for TPUs, which compile a program for each shape, and batches here have the shapes "
            f"of their posts; type trainer.accelerator=gpu or cpu"
        )
    if not colon and kind in KINDS:
        return Accelerator(kind)
    if kind == "gpu" and re.fullmatch(r"\d+(,\d+)*", numbers):
        found = tuple(map(int, numbers.split(",")))
        if len({*found}) < len(found):
            raise UserError(f"{key}: names a GPU twice; a process has one of its own")
        return Accelerator(kind, found)
    if colon and kind in KINDS:
        raise UserError(f"{key}: expected {FORMS}; type trainer.accelerator={'gpu:0' if kind == 'gpu' else kind}")
    raise UserError(f"{key}: expected {FORMS}; {did_you_mean(typed, [*KINDS, 'cuda'])}")


def hide_gpus() -> None:
    """Lets whoever asks for a GPU from now on, here or in a library, find none."""
    os.environ[GPUS] = ""


@contextmanager
def gpus_kept() -> Iterator[None]:
    """Lets whatever this process does next find the GPUs that it found before, though a run on a processor finds none."""
    before = os.environ.get(GPUS)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(GPUS, None)
        else:
            os.environ[GPUS] = before
