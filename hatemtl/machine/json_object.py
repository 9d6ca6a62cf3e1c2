"""Reads and writes keys with values, JSON or YAML, in files that anyone may have written: of bounded length and depth."""

import json
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple

import yaml

from hatemtl.errors import UserError, unreadable

LIMIT = 1 << 24  # bytes, some ten times what the longest such file of an encoder has
DEEPEST, MOST = 64, 200_000  # levels and values


class _Whole(yaml.SafeDumper):
    """Writes what stands there twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class Shape(NamedTuple):
    """Says of what type a value is, if it is there, and how an error names it."""

    type: type | UnionType
    named: str


TEXT, MAYBE_TEXT = Shape(str, "a text"), Shape(str | None, "a text or null")
KEYS, MAYBE_KEYS = Shape(dict, "keys with values"), Shape(dict | None, "keys with values or null")


def read(path: Path, way_out: str, *keys: str) -> dict[str, Any]:
    """Reads the keys and values in the JSON file. Raises UserError, which ends in `way_out`, as `mapping` does."""
    return mapping(path, _parsed(path, way_out, "JSON", json.loads), way_out, *keys)


def read_yaml(path: Path, way_out: str, *keys: str) -> dict[str, Any]:
    """Reads the keys and values in the YAML file, which constructs nothing. Raises UserError as `read` does."""
    return mapping(path, _parsed(path, way_out, "YAML", _plain), way_out, *keys)


def _plain(text: str) -> Any:
    """Parses YAML without aliases, by which a few lines may stand for a billion."""
    if "&" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
        raise yaml.YAMLError("an alias, *name, which no such file has")
    return yaml.safe_load(text)


def as_yaml(content: Mapping[str, Any]) -> str:
    """Writes keys with plain values as `read_yaml` reads them, in their order."""
    return yaml.dump(dict(content), Dumper=_Whole, sort_keys=False, allow_unicode=True)


def _parsed(path: Path, way_out: str, format: str, parse: Callable[[str], Any]) -> Any:
    try:
        with path.open("rb") as file:
            raw = file.read(LIMIT + 1)
    except OSError as error:
        raise unreadable(path, error, way_out) from error
    if len(raw) > LIMIT:
        raise UserError(f"{path}: is longer than {LIMIT >> 20} MiB, expected keys with values; {way_out}")
    try:
        return parse(raw.decode("utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # of a day or a number too, which are none
        told = " ".join(str(error).split())  # of YAML in several lines
        raise UserError(f"{path}: not valid {format} ({told}); {way_out}") from error


def mapping(path: Path, content: object, way_out: str, *keys: str) -> dict[str, Any]:
    """Gives what a file holds.

    Raises UserError where that are no keys with values, or one of these keys is missing, or where it is nested too deep or
    holds too much to be walked through, or half an emoji, which is no text that could be written.
    """
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {reprlib.repr(content)}, expected keys with values; {way_out}")
    if lacking := [key for key in keys if key not in content]:
        raise UserError(f"{path}: has no {', '.join(lacking)}; {way_out}")
    seen = 0
    left: list[tuple[Any, int]] = [(content, 1)]
    while left:
        value, depth = left.pop()
        inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
        seen += len(inside)
        if seen > MOST or depth > DEEPEST:
            told = f"more than {MOST:,} values" if seen > MOST else f"more than {DEEPEST} levels of keys and lists"
            raise UserError(f"{path}: holds {told}, expected the few that such a file has; {way_out}")
        left += [(one, depth + 1) for one in inside if isinstance(one, dict | list)]
        for text in inside:
            if isinstance(text, str) and not text.isascii() and text != text.encode(errors="replace").decode():
                raise UserError(f"{path}: {reprlib.repr(text)} holds half an emoji, expected whole characters; {way_out}")
    return content


def shaped(path: Path, content: dict[str, Any], way_out: str, shapes: dict[str, Shape], above: str = "") -> dict[str, Any]:
    """Gives the content itself. Raises UserError where a key that it has holds a value of another type."""
    for key, shape in shapes.items():
        if key in content and not isinstance(content[key], shape.type):
            raise UserError(f"{path}: {above}{key} is {reprlib.repr(content[key])}, expected {shape.named}; {way_out}")
    return content
