"""What to type instead, where Hydra does not say."""

import re
import sys
from pathlib import Path

import yaml

from hatemtl.errors import did_you_mean

CONF = Path(__file__).parents[2] / "conf"
NO_OPTION = "Config group override must be"  # how Hydra's ValueError begins where a group is set to null


def explain(error: Exception) -> str:
    """An error of composing the configuration, with the nearest option or key in place of Hydra's search paths."""
    text = str(error)
    if NO_OPTION in text:
        for group in [word.removesuffix("=null") for word in sys.argv if word.endswith("=null")]:
            if options := _options(group):
                return f"{group}=null: expected one of its options; {did_you_mean('', options)}"
    if missing := re.search(r"Could not (?:find|load) '([\w/]+)/(\w+)'", text):
        group, given = missing.groups()
        return f"{group}={given}: no such option; {did_you_mean(given, _options(group))}"
    if unknown := re.search(r"Could not override '([\w.@]+)'", text):
        group = unknown[1].split(".")[0]
        option = _chosen(group)
        if whole := [key for key in _keys("", None) if key.endswith(f".{unknown[1]}")]:
            return f"{unknown[1]}: no such key; did you mean {whole[0]!r}?"
        of = f"{group}={option} has no such key" if option else "no such key"
        return f"{unknown[1]}: {of}; {did_you_mean(unknown[1], _keys(group, option))}"
    return text


def targets(key: str) -> list[str]:
    """What the files of its group give as `_target_` at a key: of merge.bias_of, that of conf/merge/learned.yaml."""
    names, found = key.split("."), set()
    groups = [i for i, name in enumerate(names) if name and (CONF / name).is_dir()]
    for file in sorted((CONF / names[groups[-1]]).glob("*.yaml")) if groups else []:
        node = yaml.safe_load(file.read_text(encoding="utf-8"))
        for name in names[groups[-1] + 1 :]:
            node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, dict) and "_target_" in node:
            found.add(str(node["_target_"]))
    return sorted(found)


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _chosen(group: str) -> str | None:
    """The option of the group that was typed, or the default one; None where the group has no such option, or is none."""
    typed = [word.split("=", 1)[1] for word in sys.argv if word.startswith(f"{group}=")]
    top = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    default = [entry[group] for entry in top["defaults"] if isinstance(entry, dict) and group in entry]
    option = str([*default, *typed][-1]) if default or typed else ""
    return option if (CONF / group / f"{option}.yaml").is_file() else None


def _keys(group: str, option: str | None) -> list[str]:
    """The keys of an option of a group, or of all its options, or those at the top."""
    files = [CONF / group / f"{option}.yaml"] if option else sorted((CONF / group).glob("*.yaml"))
    found = {f"{group}.{key}" for file in files for key in yaml.safe_load(file.read_text(encoding="utf-8"))}
    top = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    nested = {f"{name}.{key}" for name, node in top.items() if isinstance(node, dict) and name != "hydra" for key in node}
    found |= {key for key in nested if key.startswith(f"{group}.") or not group}
    return sorted(key for key in found or set(top) if not key.startswith(("_", f"{group}._")))
