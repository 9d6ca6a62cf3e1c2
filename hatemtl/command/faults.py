"""Gives what the system refuses, a disk or memory, as an error that the user can mend, and keeps what was computed."""

import errno
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from tempfile import mkdtemp
from typing import Any

from hatemtl.errors import UserError

# What helps where the system refuses a file.
HELPS = {
    errno.ENOSPC: "make room there, or ",
    errno.EDQUOT: "make room in your quota, or ",
    errno.EFBIG: "allow larger files (ulimit -f), or ",
    errno.EROFS: "make it writable, or ",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give yourself the right to it, or "),
    errno.EMFILE: "allow more open files (ulimit -n), or ",
    errno.EIO: "check that disk, or ",
}
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # which no bug causes, whichever file it is
# How torch, and C++ below it, say that there is no more memory, or that a file could not be written.
# The last is oneDNN, where it gets no memory for its code.
NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|bad_alloc|ALLOC_FAILED|could not create a primitive",
    re.IGNORECASE,
)
NOT_WRITTEN = re.compile(r"PytorchStreamWriter|inline_container.*unexpected pos")
# Whose files they are that are no business of the user's: a fault in them is a bug.
OURS = [Path(__file__).parents[1], Path(__file__).parents[2] / "conf"]
OURS += [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
OURS += [Path(place) for place in sys.path if place.endswith("site-packages")]  # others' under `uv run --with`


@contextmanager
def mending(config: Mapping[str, Any]) -> Iterator[None]:
    """Inside, what the system refuses is told as what the user can mend."""
    try:
        yield
    except OSError as error:
        if (of_user := mendable(error, config)) is None:
            raise
        raise of_user from error


def is_of_memory(error: BaseException) -> bool:
    """Tells whether memory is out: the device's, or the host's, whose allocation fails."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error))))


def mendable(error: BaseException, config: Mapping[str, Any]) -> UserError | None:
    """Gives what the user can mend of an error, told with the keys of the configuration; None for a bug."""
    number = error.errno if isinstance(error, OSError) else None
    said = str(error) if isinstance(error, RuntimeError) else ""
    if in_words := re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None:
        number = int(in_words[1])
    if is_of_memory(error) or number == errno.ENOMEM:
        return _memory(error, config)
    path = Path(os.fsdecode(name)) if isinstance(name := getattr(error, "filename", None), str | bytes) else None
    if number in DISK or NOT_WRITTEN.search(said):
        path = path or _target(config)
    elif number is None or path is None or any(_real(path).is_relative_to(folder) for folder in OURS):
        return None
    reason = "cannot be written" if number is None else os.strerror(number)
    return UserError(f"{path}: {reason}; {HELPS.get(number or errno.ENOSPC, '')}{_elsewhere(path, config)}")


def _real(path: Path) -> Path:
    """Follows links, where `Path.resolve` of Python below 3.13 fails at a link that leads back to itself."""
    return Path(os.path.realpath(path))


def _target(config: Mapping[str, Any]) -> Path:
    predict, own = config["predict"], config["save_path"]
    places = {"predict": predict["output"] or predict["input"], "export": config["export"]["path"]}
    places["test"] = own or config["load_path"]
    return Path(places.get(str(config["action"])) or own or "adapters")


def _elsewhere(path: Path, config: Mapping[str, Any]) -> str:
    """Gives what to type for another place than this one, by the key that it comes from."""
    data, predict = config["data"], config["predict"]
    beside = Path(predict["input"]).parent if predict["input"] else None
    keys = [
        (data["cache"], "data.cache=null"),
        (config["export"]["path"], "export.path=FOLDER"),
        (predict["output"] or beside, "predict.output=FILE"),
        (config["save_path"], "save_path=FOLDER"),
        (config["load_path"], "save_path=FOLDER" if config["action"] == "test" else "load_path=FOLDER"),
        (data["dir"], "data.dir=FOLDER"),
        ("adapters", "save_path=FOLDER"),
    ]
    ways = [way for given, way in keys if given and _belongs(path, Path(given).expanduser())]
    return f"type {ways[0]}" if ways else "see that it can be read and written"


def _belongs(path: Path, given: Path) -> bool:
    """Tells whether a path is the given one, in it, above it, or in a hidden neighbour in which it is made."""
    path, given = path.absolute(), given.absolute()
    made = any(part.parent == given.parent and part.name.startswith(f".{given.name}.") for part in (path, *path.parents))
    return made or path.is_relative_to(given) or given.is_relative_to(path)


def _memory(error: BaseException, config: Mapping[str, Any]) -> UserError:
    batching, length = config["batching"], config["encoder"]["max_length"]
    trains = config["action"] not in ("test", "predict", "export")
    kind = "batch_tokens" if "batch_tokens" in batching else "batch_size"
    keys = [f"eval_{kind}"] if not trains else [kind, f"eval_{kind}"]
    sizes = {f"batching.{key}": batching[key] for key in keys if isinstance(batching.get(key), int)}
    ways = ["batching=tokens"] if kind == "batch_size" else []
    if sizes:
        ways.append(" ".join(f"{key}={max(size // 2, 1)}" for key, size in sizes.items()))
    if trains:  # a saved run's is what it was trained with
        ways.append(f"encoder.max_length={max(length // 2, 8)}")
    used = ", ".join(f"{key}={size}" for key, size in {**sizes, "encoder.max_length": length}.items())
    said = str(error).split("\n")[0].split(". GPU")[0][:200] or "the system has no more"
    return UserError(f"out of memory ({said}) with {used}; type {', or '.join(ways)}; docs/memory.org tells what runs take")


@contextmanager
def kept_elsewhere(target: Path, write: Callable[[Path], object], *places: Path, given: str = "") -> Iterator[None]:
    """Lets `write` write into a new folder of another place what the system refuses of what is written inside.

    places: tried in turn, and the system's temporary folder behind them. given: what the user typed before the target.
    Raises UserError that tells where it lies, or what was raised inside where no place takes it.
    """
    try:
        yield
    except (OSError, UserError) as error:
        if isinstance(error, UserError) and not isinstance(error.__cause__, OSError):
            raise
        for place in (*places, None):
            folder = None
            try:
                folder = Path(mkdtemp(prefix="hatemtl_", dir=place))
                write(kept := folder / target.name)
                break
            except (OSError, UserError):
                if folder:
                    shutil.rmtree(folder, ignore_errors=True)
        else:
            raise
        denied = isinstance(error.__cause__ if isinstance(error, UserError) else error, PermissionError)
        first = "give yourself the right to it" if denied else "make room"
        way = "move it to where it shall stand" if target.is_dir() else f"type mv {quote(str(kept))} {quote(str(target))}"
        raise UserError(
            f"{given}{target} cannot be written ({error}); what it was to hold is kept as {kept}: {first}, and {way}"
        ) from error
