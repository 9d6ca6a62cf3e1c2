"""Draws at random by what is drawn, not by what was drawn before.

Whatever needs chance names itself, so that adding a head or a task moves no other draw of a run's one seed.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *names: object) -> int:
    """Derives a seed for the draw called `names` in the run of `seed`, below 2**63."""
    digest = hashlib.sha256("\x1f".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """Makes a CPU generator for the draw called `names`; the global one is not touched."""
    return torch.Generator().manual_seed(derive(seed, *names))


@contextmanager
def seeded(seed: int, *names: object) -> Iterator[None]:
    """Lends torch's global generator, inside, to the draw called `names`; afterwards it is as it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, *names))
        yield


@contextmanager
def kept() -> Iterator[None]:
    """Afterwards the global generators of Python, NumPy and torch are as they were before."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
