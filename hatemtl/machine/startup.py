"""Shortens the start, and silences it: leaves out what costs time or lines and gains nothing."""

import atexit
import ctypes
import gc
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ONEDNN, KEPT_SHAPES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "2048"
SPINS, ASLEEP = "1500", "0"  # fewer are slower on a quiet machine, more on a busy one: benchmarks/busy.py
WATCHED = 0.1  # seconds that others are watched at least: Linux counts hundredths
TORCHS, KEPT_BY_TORCH = "LRU_CACHE_CAPACITY", "32"
_MAIN = Path(__file__).parents[2] / "main.py"
# What does a command in a process of its own: in a checkout by its main.py, beside which modules of the user's are found, as
# here; of a wheel without the folder where it was typed, whose files would be imported in the place of libraries.
PROGRAM = (
    (sys.executable, str(_MAIN)) if _MAIN.with_name("pyproject.toml").is_file() else (sys.executable, "-P", "-m", "hatemtl")
)
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them

atexit.register(gc.disable)  # a last search as the process ends takes half a second and frees what ends with it anyway


@contextmanager
def starting() -> Iterator[None]:
    """Holds back the search for garbage inside, imports included, until `started` says that the run is built."""
    # these are read while the libraries are imported
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("USE_TF", "0")  # transformers would import TensorFlow and JAX where they are installed
    os.environ.setdefault("USE_FLAX", "0")
    keep_memory()
    share_cores()
    gc.disable()  # a start makes half a million objects that stay; going through them again and again is a fifth of it
    try:
        yield
    finally:
        gc.unfreeze()  # a multirun goes on, and libtriton complains at exit of what was never freed
        gc.enable()


def keep_memory() -> None:
    """Keeps what a step needs again: freed memory, which would else come from the system page by page, and oneDNN's code.

    To be called before the first tensor is made: torch and oneDNN look at the environment once.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large tensors on large pages: evaluation is 4 % faster
    # it makes code for every shape, 0.65 MB each; a BERT layer has 29 a number of rows and 6 a shape of attention
    os.environ.setdefault(ONEDNN, KEPT_SHAPES)
    os.environ.setdefault(TORCHS, KEPT_BY_TORCH)  # of the same, by torch; it asks oneDNN for any that it does not keep
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


def share_cores() -> None:
    """Lets a thread that waits for others of its product leave its core soon, unless the environment says how long.

    libgomp lets it turn round for milliseconds, as if nobody else wanted the core: beside a process that does, the system
    then takes the others off theirs. Where some thread has to share its core as the run begins, one that waits sleeps at
    once. To be called before torch is imported: libgomp looks at the environment once.
    """
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        os.environ["GOMP_SPINCOUNT"] = ASLEEP if _crowded() else SPINS


def _crowded() -> bool:
    """Tells whether others leave fewer cores than a run has threads, by half of one."""
    cores = _cores()
    typed = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(int(typed), cores) if typed.isdecimal() and int(typed) else cores
    return _taken() > cores - threads + 0.5


def free_cores() -> int:
    """Counts the cores that others leave free, one at least."""
    return max(1, _cores() - round(_taken()))


def _cores() -> int:
    """Counts the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _taken() -> float:
    """Tells how many of these cores others have kept at work since this was imported; 0 where the system does not tell."""
    if _BEGAN is None:
        return 0.0
    time.sleep(max(0.0, _BEGAN[0] + WATCHED - time.monotonic()))
    now, others = _others() or _BEGAN
    return (others - _BEGAN[1]) / max(now - _BEGAN[0], WATCHED)


def _others() -> tuple[float, float] | None:
    """Tells the time, and for how long the cores that are ours have worked for others until then; None but on Linux."""
    try:
        ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    except (AttributeError, OSError):
        return None
    # for users, nice ones, the system, interrupts of two kinds, and other machines on the same processor
    ticks = sum(int(line[place]) for line in lines if line[0] in ours for place in (1, 2, 3, 6, 7, 8))
    return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


_BEGAN = _others()  # as this is imported: from here on they are watched


def bound_memory() -> None:
    """Bounds what is kept for shapes that come again: at most some 0.2 GB of oneDNN's code, and what is freed is given back.

    oneDNN and torch's layer above it each keep compiled code by shape, together 0.7 MB a product of matrices, and packed
    batches have thousands of shapes. To be called before the first tensor is multiplied: both look at the environment then.
    """
    if os.environ.get(ONEDNN, KEPT_SHAPES) == KEPT_SHAPES:  # else it was typed
        os.environ[ONEDNN] = "256"
    os.environ.setdefault(TORCHS, KEPT_BY_TORCH)
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(TRIM_THRESHOLD, 64 << 20)


def started() -> None:
    """Searches for garbage again, but never among what the start has made."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def quiet() -> None:
    """Silences what a user can do nothing about: notices, bars and warnings of libraries."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    lightning = ("lightning", "lightning.pytorch", "lightning.fabric")
    for name in (*lightning, "transformers", "adapters", "bitsandbytes", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*mkldnn_matmul.*",  # torch takes another way, as where memory is short
        ".*Unsupported layer type.*proceed at your own risk.*",  # PEFT, of layers that it tunes itself
        ".*`is_gradient_checkpointing` is deprecated.*",  # PEFT 0.21 beside transformers 5
        ".*srun.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*`weights_only` was.*",
        ".*Previous log files in this directory will be deleted.*",  # of a run that ended before its first line
    ):
        warnings.filterwarnings("ignore", message=message)
