"""Shortens the start, and silences it: leaves out what costs time or lines and gains nothing."""

import atexit
import ctypes
import gc
import logging
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ONEDNN, KEPT_SHAPES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "2048"
SPINS = "1500"  # fewer are slower on a quiet machine, more on a busy one: benchmarks/busy.py
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
    then takes the others off theirs. To be called before torch is imported: libgomp looks at the environment once.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


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
