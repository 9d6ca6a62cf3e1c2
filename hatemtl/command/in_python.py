"""Makes requests in Python: the words of the command line, with tasks and other parts given as objects."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hydra import compose

from hatemtl.command.configuration import build, requested
from hatemtl.command.request import Request
from hatemtl.command.suggestions import spelled_out
from hatemtl.command.used_run import composing
from hatemtl.errors import UserError, did_you_mean
from hatemtl.machine.startup import quiet
from hatemtl.methods.base import LOADERS
from hatemtl.saved_runs.saved_run import SavedRun


def option(group: str, name: str, **keys: Any) -> Any:
    """Builds what an option of a group says, `conf/GROUP/NAME.yaml`, with these keys in place of its own.

    >>> option("corpus", "sample", size=200).size
    200

    Raises UserError where there is no such option or key, or a key's value is wrong.
    """
    with composing([f"{group}={name}"]):
        part = compose("config", overrides=[f"+{group}@part={name}"]).part
    if [*part] == [name]:  # of groups of which a run may have several
        part = part[name]
    for key, value in keys.items():
        if key not in part:
            raise UserError(f"{key}={value!r}: {group}={name} has no such key; {did_you_mean(key, part)}")
        part[key] = value
    return build(part)


def request(*words: str, **parts: Any) -> Request:
    """Makes the request of a run: as the command line reads these words, but for the parts, which are fields of `Request`.

    >>> request("tasks=[label]", "encoder=tiny", seed=3).seed
    3

    A run of parts is known by their values, and not by its words. Raises UserError as the command line does.
    """
    quiet()
    known = [field.name for field in fields(Request)]
    for part in parts:
        if part not in known:
            raise UserError(f"{part}={parts[part]!r}: a request has no such part; {did_you_mean(part, known)}")
    with composing(words):
        made = requested(compose("config", overrides=[*map(spelled_out, words)]))
    parts |= {key: Path(parts[key]) for key in ("save_path", "load_path") if isinstance(parts.get(key), str)}
    made = replace(made, config={}, **parts) if parts else made
    made.trainer.take()
    return made


def using(made: Request, folder: str | Path) -> Request:
    """Gives the request that uses what `made` trained and left in this folder: to test it, or for a `Predictor`."""
    library = SavedRun(folder).record["library"]
    loads = option("method", LOADERS[library], path=str(folder))
    return replace(made, method=loads, load_path=Path(folder), heads_load=True, save_path=None)
