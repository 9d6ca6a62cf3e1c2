"""Claims a save_path: free, this very run's, an unfinished one's to go on with, or another's; tells who is at work there."""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from filelock import FileLock, Timeout

from hatemtl.errors import UserError
from hatemtl.machine import json_object
from hatemtl.saved_runs.saved_run import AGAIN, SavedRun, read_config, read_record, unfinished, write_config, write_record

# What may change between two runs that are the same run: where it lands, how it is watched, what is done with it.
NOT_PART_OF_A_RUN = (
    *("action", "save_path", "overwrite", "logger", "predict", "export", "publish", "evaluations", "trainer.progress"),
    *("cost", "trainer.compile", "trainer.fast", "trainer.devices", "trainer.nodes", "launcher", "tune"),
    *("data.cache", "data.workers", "data.micro_batches", "trainer.memory", "trainer.strategy", "trainer.threads"),
)
OFF = (None, False, 0)
# what a run is made from, by its key in run.json: digests of saved runs, of files and word lists, fingerprints of corpora
Inputs = Mapping[str, Mapping[str, str]]
CHANGED = {
    "sources": "the saved runs that it starts from are others, or were trained anew",
    "encoder_files": "the pretrained encoder has other weights",
    "unlabelled": "the unlabelled posts are others",
    "lexicons": "the word lists of heads hold other words",
    "data": "the corpora hold other posts or annotations",
}
CHECKPOINT = "last.ckpt"
TRAINED, TESTED = "trained", "tested"  # what is done to a run that is held
SWEPT, OPENED = "swept", "opened"  # to a folder of runs: by a sweep, and by a search as it begins
PAUSE, PATIENCE = 0.05, 60  # seconds between two looks, and of all, until those who write a test's results are done
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # whatever is written there
LOCKLESS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def held(save_path: Path, doing: str) -> Iterator[Path]:
    """Keeps every other process, and every other run of this one, from `save_path`; gives where that lies.

    What killed runs left there goes. doing: TRAINED or SWEPT, which none waits for, or TESTED or OPENED, which are short.
    Raises UserError where it is held by another, or where no run could land.
    """
    with ExitStack() as after:
        try:
            place = save_path.resolve(strict=True) if save_path.is_symlink() or not save_path.name else save_path
            if place.exists() and not place.is_dir():
                raise UserError(f"save_path={save_path}: this is no folder; give another save_path")
            path = place.with_name(f".{place.name}.lock")
            for folder in reversed([folder for folder in path.parents if not folder.exists()]):
                after.callback(_quietly, folder.rmdir)
            lock = _lock(path, save_path, doing)
            after.callback(lock.release)
            after.callback(_quietly, path.unlink)  # first: who waits for this very file sees that it is gone, makes another
            _sweep(place)
        except (OSError, RuntimeError) as error:  # the latter from a link that leads to itself, before Python 3.13
            number = error.errno if isinstance(error, OSError) else None
            if number in OF_THE_DISK:
                _quietly(path.unlink)  # made, but there was no room to sign it
                raise
            why = "its file system locks no files" if number in LOCKLESS else "no run can be left there"
            raise UserError(f"save_path={save_path}: {why} ({error}); give another save_path") from error
        yield place


def _lock(path: Path, save_path: Path, doing: str) -> FileLock:
    # of the operating system, which takes it back from a process that ends in whatever way; workers do not inherit it
    sign = partial(_sign, doing=doing)
    lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False, on_acquired=sign)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            lock.acquire()
            return lock
        except Timeout:
            if not path.exists():  # let go just now, or none can be made there, as in /proc, which filelock takes for held
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
            holder: dict[str, Any] = {}
            with suppress(UserError):  # it may not be signed yet
                holder = json_object.read(path, "", "doing", "pid", "host", "since")
            if holder.get("doing") in (TRAINED, SWEPT) or time.monotonic() > until:
                who = "{doing} by process {pid} on {host} since {since}" if holder else "written by another process"
                who = who.format(**holder)
                raise UserError(f"{save_path} is being {who}; wait for its end, or give another save_path") from None
        time.sleep(PAUSE)


def _quietly(remove: Callable[[], None]) -> None:
    with suppress(OSError):  # it is in use, or gone
        remove()


def _sign(descriptor: int, doing: str) -> None:
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "doing": doing}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(holder).encode())


def _sweep(save_path: Path) -> None:
    """Removes what no process that lives can need while this one holds the save_path; puts a run half replaced back."""
    old = _replaced(save_path)
    if old.exists():
        if save_path.exists():
            shutil.rmtree(old)
        else:
            os.replace(old, save_path)
    for folder in (save_path, unfinished(save_path)):
        if (folder / "run.json").exists():  # else it may be anyone's
            for path in folder.rglob(".*"):
                if re.fullmatch(r"\..+\.\d+", path.name):  # as `writing.write` names them
                    path.unlink(missing_ok=True)


def claim(save_path: Path, config: Mapping[str, Any], inputs: Inputs, *, overwrite: bool) -> bool:
    """Tells whether `save_path` is free for a run of this configuration, or holds an unfinished one of it to go on with.

    False where this very run is finished. Nothing is written or removed.
    Raises UserError where another run stands there, finished or not, and may not be overwritten.
    """
    work = unfinished(save_path)
    if save_path.is_dir() and not (save_path / "config.yaml").exists():  # as a folder of runs
        raise UserError(f"save_path={save_path}: this folder is there, and no run left it; give another save_path")
    saved = SavedRun(save_path) if save_path.exists() else None  # what is no run is never overwritten
    if overwrite:
        return True
    if saved is None:
        what, changed = "has an unfinished", _changed_since(work, config, inputs)
    else:
        what, changed = "holds a finished", differences(saved.config, config) + other_inputs(saved.record, inputs)
    if changed:
        some = "; ".join(changed[:4]) + (f"; and {len(changed) - 4} more" if len(changed) > 4 else "")
        raise UserError(
            f"save_path={save_path} {what} run of another configuration ({some}); give another save_path, or "
            f"overwrite=true to replace it"
        )
    if saved is not None:
        return False
    if why := _broken(work / CHECKPOINT):
        raise UserError(
            f"save_path={save_path} has an unfinished run that cannot go on: {work / CHECKPOINT} cannot be read ({why}); "
            f"type overwrite=true to begin it again"
        )
    return True


def start(save_path: Path, config: Mapping[str, Any], inputs: Inputs) -> Path:
    """Makes the folder of a run at work, with its configuration and inputs; removes what `claim` let pass as replaceable."""
    work = unfinished(save_path)
    goes_on = (work / "config.yaml").exists() and not _changed_since(work, config, inputs)
    if work.exists() and (not goes_on or _broken(work / CHECKPOINT)):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    write_record(work, {"status": "unfinished", **inputs})
    write_config(work, config)
    return work


def finish(work: Path, save_path: Path) -> None:
    """Renames a finished run to its final place, replacing what `overwrite=true` allowed to be replaced."""
    if save_path.exists():
        os.replace(save_path, _replaced(save_path))
    os.replace(work, save_path)
    shutil.rmtree(_replaced(save_path), ignore_errors=True)


def _replaced(save_path: Path) -> Path:
    return save_path.with_name(f".{save_path.name}.replaced")


def _broken(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be read, if so. torch writes a zip file, each part with its checksum."""
    if not checkpoint.exists():
        return None
    try:
        with ZipFile(checkpoint) as file:
            damaged = file.testzip()
    except Exception as error:  # of many kinds, by where it is damaged
        return str(error)
    return damaged and f"its part {damaged} is damaged"


def _changed_since(work: Path, config: Mapping[str, Any], inputs: Inputs) -> list[str]:
    """Tells what sets the unfinished run apart; nothing of one that was killed before it wrote its configuration."""
    try:
        known = (work / "config.yaml").exists()
        return differences(read_config(work), config) + other_inputs(read_record(work), inputs) if known else []
    except UserError as error:  # a broken one cannot go on
        return [str(error).removesuffix(f"; {AGAIN}")]


def other_inputs(record: Mapping[str, Any], inputs: Inputs) -> list[str]:
    """Tells which inputs are others than run.json records; one that it lacks, as of an older version, is no other."""
    return [CHANGED[name] for name, given in inputs.items() if record.get(name, given) != given]


def differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Tells what sets two configurations apart, as 'key: saved X, given Y'; keys that make no other run left out.

    A run is known by the options of groups and the values of keys, never by the classes that they name. A key that one of
    them lacks, for it is of an older version, is a switch that is off there: null, false or 0.
    """
    a, b = dict(_leaves(saved)), dict(_leaves(given))
    other = [
        key for key in {**a, **b} if (a[key] != b[key] if key in a and key in b else (a.get(key) or b.get(key)) not in OFF)
    ]
    return [f"{key}: saved {a.get(key)!r}, given {b.get(key)!r}" for key in other]


def named_after(config: Mapping[str, Any]) -> str:
    """Names a save_path that tells runs apart: tasks, method, encoder, and a digest of whatever makes another run."""
    made_of = {"method": config["method"].get("class"), "encoder": Path(config["encoder"]["source"]).name}
    choices = made_of | config.get("choices", {})
    return f"adapters/{'+'.join(config['tasks'])}-{choices['method']}-{choices['encoder']}-{digest(config)}"


def digest(config: Mapping[str, Any]) -> str:
    """Gives eight hex digits of whatever makes another run."""
    return hashlib.sha256("\n".join(sorted(differences({}, config))).encode()).hexdigest()[:8]


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in config.items():
        if (key := f"{prefix}{name}") in NOT_PART_OF_A_RUN:
            continue
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{key}.")
        # where a corpus lies: that it is the same corpus, its fingerprint says; and classes, which options of groups name
        elif name != "dir" and not str(name).startswith("_"):
            yield key, value
