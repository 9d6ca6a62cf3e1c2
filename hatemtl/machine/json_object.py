"""Reads a JSON object out of a file that anyone may have written: of bounded length, keys with values and nothing else."""

import json
from pathlib import Path
from typing import Any

from hatemtl.errors import UserError

LIMIT = 1 << 24  # bytes, some ten times what the longest such file of an encoder has


def read(path: Path, way_out: str, *keys: str) -> dict[str, Any]:
    """Reads the keys and values in the file. Raises UserError, which ends in `way_out`, as `mapping` does."""
    try:
        with path.open("rb") as file:
            raw = file.read(LIMIT + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); {way_out}") from error
    if len(raw) > LIMIT:
        raise UserError(f"{path}: is longer than {LIMIT >> 20} MiB, expected keys with values; {way_out}")
    try:
        content = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); {way_out}") from error
    return mapping(path, content, way_out, *keys)


def mapping(path: Path, content: object, way_out: str, *keys: str) -> dict[str, Any]:
    """Gives what a file holds. Raises UserError where that are no keys with values, or one of these keys is missing."""
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {str(content)[:40]}, expected keys with values; {way_out}")
    if lacking := [key for key in keys if key not in content]:
        raise UserError(f"{path}: has no {', '.join(lacking)}; {way_out}")
    return content
