"""Checks the ledgers that runs have written down, and adds them up."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatemtl.machine import json_object

# What a ledger holds: numbers by phase, sums of which a part may not be known, and what may differ between sittings.
PHASES, ONCE = ("seconds", "posts", "tokens"), ("device", "energy_source", "watts", "per_hour")
NUMBER, MAYBE_NUMBER = json_object.Shape(int | float, "a number"), json_object.Shape(int | float | None, "a number or null")
PLAIN = json_object.Shape(str | int | float | None, "a text, a number or null")
SUMS = dict.fromkeys(("sittings", "peak_memory_bytes", "disk_bytes", "joules", "price"), MAYBE_NUMBER)


def added(before: Mapping[str, Any] | None, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the entry of a sitting to the ledger of those before it.

    Times, posts, tokens, energy and prices add up, the peak of memory is the greatest, the size on disk the last. A sum of
    which a part is not known is not known (None); of devices, sources, watts and prices an hour each is named once.
    """
    if not before:
        return dict(entry)
    whole: dict[str, Any] = {}
    for name, value in entry.items():
        old = before.get(name)
        if isinstance(value, Mapping):
            whole[name] = {key: (old or {}).get(key, 0) + value.get(key, 0) for key in {**(old or {}), **value}}
        elif name in ONCE:
            each = [*(old if isinstance(old, list) else [old]), value]
            once = [one for one in dict.fromkeys(each) if one is not None]
            whole[name] = once if len(once) > 1 else next(iter(once), None)
        elif name == "disk_bytes":
            whole[name] = value
        elif old is None or value is None:
            whole[name] = None
        else:
            whole[name] = max(old, value) if name == "peak_memory_bytes" else old + value
    return whole


def as_ledger(path: Path, content: dict[str, Any], again: str, above: str = "") -> dict[str, Any]:
    """Gives the ledger itself. Raises UserError where a file from elsewhere has one to which nothing can be added.

    again: what to do then. above: the key that holds it, with a dot.
    """
    json_object.shaped(path, content, again, SUMS | dict.fromkeys(PHASES, json_object.KEYS), above)
    for name in PHASES:
        given = content.get(name, {})
        json_object.shaped(path, given, again, dict.fromkeys(given, NUMBER), f"{above}{name}.")
    for name in ONCE:
        given = content.get(name)
        each = {str(i): one for i, one in enumerate(given if isinstance(given, list) else [given])}
        json_object.shaped(path, each, again, dict.fromkeys(each, PLAIN), f"{above}{name}.")
    return content
