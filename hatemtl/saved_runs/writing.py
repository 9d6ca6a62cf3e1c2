"""Writes files so that they are whole or as they were, whatever ends the process, and whoever left links beside them."""

import csv
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from hatemtl.harmless import guarded


def write(path: Path, content: Callable[[Path], object]) -> None:
    """Lets `content` write to a hidden neighbour of `path`, then renames it: `path` is whole or as it was.

    It may be read by whom the umask lets. Raises OSError with `path` in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)  # in a run from elsewhere it may be a link, which would be written through
        content(temporary)
        _as_new(temporary)
        os.replace(temporary, path)
    except SafetensorError as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):  # in words
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def share(folder: Path) -> None:
    """Lets others read a folder's safetensors files, which libraries write for their owner alone, where the umask does."""
    for path in folder.rglob("*.safetensors"):
        _as_new(path)


def _as_new(path: Path) -> None:
    """Gives a file the mode of any new one beside it."""
    new = path.with_name(f".new.{os.getpid()}")  # which goes with what else killed processes left
    new.unlink(missing_ok=True)  # as above: a link would make a file elsewhere, and lend this one its mode
    new.touch(exist_ok=False)
    with suppress(OSError):  # a disk may know no modes
        path.chmod(new.stat().st_mode)
    new.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes text as `write` does."""
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows of one set of columns as CSV, or nothing where there are none."""
    if rows:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(map(guarded, rows[0]))
        writer.writerows([guarded(row[column]) for column in rows[0]] for row in rows)
        write_text(path, text.getvalue())
