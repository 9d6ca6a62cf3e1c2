"""Whose a save_path is: free, this very run's, an unfinished one's to go on with, or another's."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import AGAIN, SavedRun, read_config, read_record, unfinished, write_config, write_record

# What may change between two runs that are the same run: where it lands, how it is watched, what is done with it.
NOT_PART_OF_A_RUN = (
    *("action", "save_path", "overwrite", "logger", "predict", "export", "trainer.progress", "trainer.compile"),
    *("trainer.fast", "data.cache", "data.workers"),
)
OFF = (None, False, 0)


def claim(
    save_path: Path,
    config: Mapping[str, Any],
    sources: Mapping[str, str],
    *,
    overwrite: bool,
    data: Mapping[str, str] | None = None,
) -> bool:
    """Whether `save_path` is free for a run of this configuration, or holds an unfinished one of it to go on with.

    False where this very run is finished. sources: the digests of the saved runs that it starts from. data: the
    fingerprints of the corpora. Nothing is written or removed.
    Raises UserError where another run stands there, finished or not, and may not be overwritten.
    """
    work, way_out = unfinished(save_path), "give another save_path, or overwrite=true to replace it"
    saved = SavedRun(save_path) if save_path.exists() else None  # what is no run is never overwritten
    if overwrite:
        return True
    if saved is not None:
        changed = differences(saved.config, config) + _other_inputs(saved.record, sources, data)
        if not changed:
            return False
        raise UserError(f"save_path={save_path} holds a finished run of another configuration ({_some(changed)}); {way_out}")
    if (work / "config.yaml").exists() and (changed := _changed_since(work, config, sources, data)):
        raise UserError(
            f"save_path={save_path} has an unfinished run of another configuration ({_some(changed)}); {way_out}"
        )
    return True


def start(
    save_path: Path, config: Mapping[str, Any], sources: Mapping[str, str], data: Mapping[str, str] | None = None
) -> Path:
    """The folder of a run at work, with its configuration and inputs; what `claim` let pass as replaceable is removed."""
    work = unfinished(save_path)
    if work.exists() and (not (work / "config.yaml").exists() or _changed_since(work, config, sources, data)):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    write_record(work, {"status": "unfinished", "sources": dict(sources), "data": dict(data or {})})
    write_config(work, config)
    return work


def finish(work: Path, save_path: Path) -> None:
    """Renames a finished run to its final place, replacing what `overwrite=true` allowed to be replaced."""
    old = save_path.with_name(f".{save_path.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if save_path.exists():
        os.replace(save_path, old)
    os.replace(work, save_path)
    shutil.rmtree(old, ignore_errors=True)


def _changed_since(
    work: Path, config: Mapping[str, Any], sources: Mapping[str, str], data: Mapping[str, str] | None
) -> list[str]:
    try:
        return differences(read_config(work), config) + _other_inputs(read_record(work), sources, data)
    except UserError as error:  # a broken one cannot go on
        return [str(error).removesuffix(f"; {AGAIN}")]


def _other_inputs(record: Mapping[str, Any], sources: Mapping[str, str], data: Mapping[str, str] | None) -> list[str]:
    changed = []
    if record.get("sources", sources) != sources:
        changed.append("the saved runs that it starts from are others, or were trained anew")
    if data is not None and record.get("data", data) != data:
        changed.append("the corpora hold other posts or annotations")
    return changed


def _some(changes: list[str]) -> str:
    return "; ".join(changes[:4]) + (f"; and {len(changes) - 4} more" if len(changes) > 4 else "")


def differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """What sets two resolved configurations apart, as 'key: saved X, given Y'; keys that make no other run left out.

    A key that one of them lacks, for it is of an older version, is a switch that is off there: null, false or 0.
    """
    a, b = dict(_leaves(saved)), dict(_leaves(given))
    keys = [key for key in {**a, **b} if not any(key == k or key.startswith(f"{k}.") for k in NOT_PART_OF_A_RUN)]
    other = [key for key in keys if (a[key] != b[key] if key in a and key in b else (a.get(key) or b.get(key)) not in OFF)]
    return [f"{key}: saved {a.get(key)!r}, given {b.get(key)!r}" for key in other]


def named_after(config: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """A save_path that tells runs apart: tasks, method, encoder, and a digest of whatever makes another run."""
    digest = hashlib.sha256("\n".join(sorted(differences({}, config))).encode()).hexdigest()[:8]
    return f"adapters/{'+'.join(config['tasks'])}-{choices['method']}-{choices['encoder']}-{digest}"


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif key != "dir":  # where a corpus lies; that it is the same corpus, its fingerprint says
            yield f"{prefix}{key}", value
