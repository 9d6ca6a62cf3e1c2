"""Files and saved runs that something happened to."""

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

WAYS = ["no configuration", "weights cut off", "a tensor is missing"]


def damage(weights: Path, way: str) -> None:
    """Breaks a saved adapter, given its weights, in one of `WAYS`."""
    match way:
        case "no configuration":
            (weights.parent / "adapter_config.json").unlink()
        case "weights cut off":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "a tensor is missing":
            tensors = load_file(weights)
            tensors.pop(next(key for key in tensors if "lora_B" in key))
            save_file(tensors, weights)


def contents(at: Path) -> dict[str, Any]:
    """Each path below a folder with what it holds: bytes, where a link leads, or nothing of what cannot be read."""
    found: dict[str, Any] = {}
    for path in sorted(at.rglob("*")):
        read = path.is_file() and os.access(path, os.R_OK)
        found[str(path)] = os.readlink(path) if path.is_symlink() else path.read_bytes() if read else None
    return found


@contextmanager
def as_anybody() -> Iterator[None]:
    """Takes from root, in this thread and those that it starts, the right to what a file's mode forbids."""
    if os.geteuid() != 0 or sys.platform != "linux":
        yield
        return
    header, held = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: twice
    libc = ctypes.CDLL(None, use_errno=True)

    def ask(call: Any, words: Any) -> None:
        if call(header, words):
            raise OSError(ctypes.get_errno(), "capabilities of this thread")

    ask(libc.capget, held)
    fewer = (ctypes.c_uint32 * 6)(*held)
    fewer[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ask(libc.capset, fewer)
    try:
        yield
    finally:
        ask(libc.capset, held)


def no_text(path: Path) -> None:
    path.write_bytes(path.read_text(encoding="utf-8").encode("utf-16"))


def absent(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def half(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def forbidden(path: Path, but: int = 0) -> None:
    """Nobody may read it, or do what is not in `but`: tried `as_anybody`."""
    if os.geteuid() == 0 and sys.platform != "linux":
        pytest.skip("root reads all, and only Linux takes that from a thread")
    path.chmod(but)


# How a clause begins that says what to do.
ADVICE = re.compile(
    "type|give|use|try|get|remove|download|train|test|mend|write|leave|see|replace|choose|install|make|take|put|add|load|name|"
    "then|expected|known|did|either",
    re.IGNORECASE,
)


def advises(said: str) -> bool:
    """Tells whether a message says what was expected, or what to type next, in a clause of its own."""
    clauses = re.split(r"(?:[;,:(.]|\bor|\band) ", said.strip())
    return any(ADVICE.fullmatch(clause.split(" ")[0].strip(":")) for clause in clauses)


def helps(way: str, said: str) -> bool:
    """Tells whether a message has the one thing that helps where a file is forbidden, and has it nowhere else."""
    return ("Permission denied" in said and "give yourself the right to it" in said) == (way == "no permission")


def holding(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


BREAKS: dict[str, Callable[[Path], Any]] = {
    "absent": absent,
    "empty": holding(b""),
    "cut": half,
    "utf-16": no_text,
    "NUL": holding(bytes(300)),
    "no UTF-8": holding(b"\xff\xfe\xfa caf\xe9\n\x80" * 20),
    "a list": holding(b"[1, 2]\n"),
    "a number": holding(b"3\n"),
    "nested": holding(b"[" * 20_000),
    "a folder": folder,
    "a loop": loop,
    "dangling": dangling,
    "no permission": forbidden,
}
