"""Keeps beside a save_path how a run for it failed, until one for it ends well."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from hatemtl.errors import UserError
from hatemtl.machine import json_object
from hatemtl.saved_runs.claiming import digest
from hatemtl.saved_runs.writing import write_text


def record_of(save_path: Path) -> Path:
    """Gives the file that tells of a failure; hidden, so that a glob of runs never meets it."""
    return save_path.with_name(f".{save_path.name}.failed.json")


def write_failure(save_path: Path, config: Mapping[str, Any], told: str, *, diverged: bool) -> None:
    """Writes how the run of this configuration failed. diverged: whether it would fail the same way again."""
    record = {
        "status": "diverged" if diverged else "failed",
        "message": told,
        "at": datetime.now().astimezone().isoformat(" ", "seconds"),
        "configuration": digest(config),
    }
    write_text(record_of(save_path), json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def diverged_before(save_path: Path, config: Mapping[str, Any]) -> str | None:
    """Gives the message of a run of this very configuration that diverged; None where there is none to be believed."""
    path = record_of(save_path)
    if not path.is_file():
        return None
    try:
        record = json_object.read(path, "remove it", "status", "message", "configuration")
    except UserError:  # half a record keeps no run from being tried
        return None
    same = record["status"] == "diverged" and record["configuration"] == digest(config)
    return str(record["message"]) if same else None


def forget_failure(save_path: Path) -> None:
    """Removes the record."""
    record_of(save_path).unlink(missing_ok=True)
