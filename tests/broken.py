"""Files and saved runs that something happened to."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    """Each path below a folder with what it holds: bytes, where a link leads, or nothing of a folder."""
    found: dict[str, Any] = {}
    for path in sorted(at.rglob("*")):
        found[str(path)] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


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
}
