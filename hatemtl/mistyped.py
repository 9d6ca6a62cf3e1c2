"""What to type instead, where Hydra does not say."""

import re
from pathlib import Path

import yaml

from hatemtl.errors import did_you_mean

CONF = Path(__file__).parents[1] / "conf"


def explain(error: Exception) -> str:
    """An error of composing the configuration, with the nearest option or key in place of Hydra's search paths."""
    text = str(error)
    if missing := re.search(r"Could not (?:find|load) '([\w/]+)/(\w+)'", text):
        group, given = missing.groups()
        return (
            f"{group}={given}: no such option; {did_you_mean(given, sorted(p.stem for p in (CONF / group).glob('*.yaml')))}"
        )
    if unknown := re.search(r"Could not override '([\w.@]+)'", text):
        return f"{unknown[1]}: no such key; {did_you_mean(unknown[1], _keys(unknown[1].split('.')[0]))}"
    return text


def _keys(group: str) -> list[str]:
    """The keys that the options of a group have, or those at the top."""
    files = sorted((CONF / group).glob("*.yaml"))
    found = {f"{group}.{key}" for file in files for key in yaml.safe_load(file.read_text(encoding="utf-8"))}
    top = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    return sorted(key for key in found or set(top) if not key.startswith(("_", f"{group}._")))
