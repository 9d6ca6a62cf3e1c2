"""Names the runs of a sweep by what sets them apart, in words that can be read."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hatemtl.errors import UserError
from hatemtl.saved_runs.claiming import differences, digest
from hatemtl.saved_runs.saved_run import read_config, unfinished

LONGEST = 120  # letters of a name: those of hidden folders beside it are longer, and file systems take 255


def names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names each run by its values of the keys in which the runs differ, the keys as short as tells them apart.

    settings: of each run the keys that were typed, with the values that they came to.

    >>> names([{"optimization.encoder_lr": 0.0003, "seed": 1, "tasks": "label+target"},
    ...        {"optimization.encoder_lr": 1e-05, "seed": 1, "tasks": "label"}])
    ['encoder_lr=3e-4,tasks=label+target', 'encoder_lr=1e-5,tasks=label']
    """
    keys = [key for key in dict.fromkeys(key for of in settings for key in of) if _differ(key, settings)]
    short = {key: _short(key, keys) for key in keys}
    found = [",".join(f"{short[key]}={word(of.get(key))}" for key in keys) for of in settings]
    found = [*map(shortened, found)]
    values = [repr([of.get(key) for key in keys]) for of in settings]
    owners: dict[str, str] = {}
    unlike = {name for name, value in zip(found, values, strict=True) if owners.setdefault(name, value) != value}
    return [f"{name}-{_mark(value)}" if name in unlike else name for name, value in zip(found, values, strict=True)]


def shortened(name: str) -> str:
    """Gives a name that a folder may have: of a long one the beginning, and what tells it from others."""
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{_mark(name)}"


def word(value: Any) -> str:
    """Writes a value as a part of a folder's name.

    >>> word(None), word(True), word(0.5), word([4, 16]), word("adapters/a b"), word("[1 4]")
    ('null', 'true', '0.5', '4+16', 'adapters-a-b', '1-4')
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, float):
        mantissa, _, exponent = f"{value:e}".partition("e")
        plain = f"{float(value)!r}"
        scientific = f"{float(mantissa):g}e{int(exponent or 0)}"
        return scientific if len(scientific) < len(plain) and float(scientific) == value else plain
    if isinstance(value, list | tuple):
        return "+".join(map(word, value)) or "none"
    if isinstance(value, Mapping):
        return "+".join(f"{key}-{word(of)}" for key, of in value.items()) or "none"
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-.") or "none"


def sweep_folder(configs: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    """Names the folder of a sweep that was given none: after what its runs have in common.

    keys: that were typed with several values; of what stands below them nothing counts, so that further values of the same
    keys make no other folder.
    """
    swept = [key.partition("@")[2] or key for key in keys]

    def flat(config: Mapping[str, Any]) -> dict[str, str]:
        told = [of.partition(": saved None, given ") for of in differences({}, config)]
        return {key: value for key, _, value in told}

    leaves = [flat(config) for config in configs]
    common = {key: value for key, value in leaves[0].items() if all(of.get(key) == value for of in leaves)}
    for key in swept:
        common = {k: v for k, v in common.items() if not f"{k}.".startswith((f"{key}.", f"choices.{key}."))}
    common = {k: v for k, v in common.items() if k not in {f"choices.{key}" for key in keys}}
    choices = configs[0].get("choices", {})
    parts = ["+".join(configs[0]["tasks"])] if not {"tasks", "experiment"} & {*keys} else []
    parts += [choices[group] for group in ("method", "encoder") if f"choices.{group}" in common]
    return f"adapters/{'-'.join([*parts, digest(common)])}"


def standing(folder: Path) -> dict[str, Path]:
    """Finds the runs that stand in a folder, finished or not: the save_path of each, by its configuration's digest."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*/config.yaml"), key=lambda path: (path.parent.name.endswith(".unfinished"), path)):
        name = re.sub(r"^\.(.+)\.unfinished$", r"\1", path.parent.name)
        if name.startswith("."):
            continue  # what a killed process has left
        with suppress(UserError):  # what cannot be read is no run to go on with
            found.setdefault(digest(read_config(path.parent)), folder / name)
    return found


def standing_at(there: Mapping[str, Path], config: Mapping[str, Any], named: Path) -> Path:
    """Gives where the run of this very configuration stands, of those of `standing`; else the path named after it.

    A digest alone does not tell: to it null and 0 are one.
    """
    if (found := there.get(digest(config))) is None:
        return named
    known = read_config(found if (found / "config.yaml").exists() else unfinished(found))
    return named if differences(known, config) else found


def _differ(key: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    return len({repr(of.get(key)) for of in settings}) > 1


def _short(key: str, keys: Sequence[str]) -> str:
    """Shortens a key to its last words, as many as tell it from the others.

    >>> _short("tasks.label.weight", ["tasks.label.weight", "tasks.target.weight"]), _short("a@b.c", ["a@b.c", "seed"])
    ('label.weight', 'c')
    """
    parts = (key.partition("@")[2] or key).split(".")
    others = [(other.partition("@")[2] or other).split(".") for other in keys if other != key]
    for depth in range(1, len(parts)):
        if all(other[-depth:] != parts[-depth:] for other in others):
            return ".".join(parts[-depth:]).replace("/", "-")
    return ".".join(parts).replace("/", "-")


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
