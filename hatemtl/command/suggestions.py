"""Suggests a command line that works, where Hydra does not say."""

import ast
import itertools
import re
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hatemtl.command.nearest import Names
from hatemtl.command.quoting import advice, assigned, in_quotes, parsed, readable
from hatemtl.errors import UserError, did_you_mean

CONF = Path(__file__).parents[2] / "conf"
NO_EXPERIMENT = ("experiment=null", "experiment=none")  # Hydra itself lets no group be null
LISTS = ("tasks", "action", "regulariser", "evaluations", "method.sources")  # the keys that take a list, or how they begin


def arguments(words: Sequence[str]) -> list[str]:
    """Orders the words of a command line as Hydra takes them, its options not in between; no experiment: an empty list.

    Raises UserError where a word that begins with a dash is none of its options.
    """
    words = ["experiment=[]" if word in NO_EXPERIMENT else word for word in words]
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # it would print all options and exit
    given, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        raise UserError(_no_option(unknown[0], words, [*parser._option_string_actions]))
    try:
        parser.parse_args(words)
        return words
    except UserError:  # they stand in between
        options, overrides = [], list(given.overrides)
        for word in words:
            if overrides and word == overrides[0]:
                overrides.pop(0)
            else:
                options.append(word)
        return [*options, *given.overrides]


def _refuse(message: str) -> NoReturn:
    if together := re.search(r"argument \S*?(-\w): ignored explicit argument '(.*)'", message):
        raise UserError(f"{together[1]}{together[2]}: type a space between {together[1]} and {together[2]}")
    raise UserError(f"{message}; `uv run main.py --hydra-help` lists Hydra's own options")


def _no_option(word: str, words: Sequence[str], options: Sequence[str]) -> str:
    key, equals, value = word.lstrip("-").partition("=")
    names = Names(CONF, [])
    at = list(words).index(word)
    if not equals and key in {*names.keys, *names.groups}:
        value = words[at + 1] if at + 1 < len(words) else "VALUE"
    elif not equals:
        return f"{word}: no such option; {did_you_mean(word, options)}"
    return f"{word}: keys are typed without dashes; type {assigned(key, value)}"


def is_mistyped(error: Exception) -> bool:
    """Tells whether an error of composing the configuration comes of what was typed, and is no bug."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    by_hydra = trace is not None and trace.tb_frame.f_globals["__name__"].startswith("hydra.")
    return isinstance(error, HydraException | OmegaConfBaseException) or (by_hydra and isinstance(error, ValueError))


def explain(error: Exception, words: Sequence[str]) -> str:
    """Explains an error of composing these words, as the nearest option or key, or as quotes to be typed."""
    text = str(error)
    names = Names(CONF, words, text)
    if wrong := [at for at, word in enumerate(names.overrides) if word[:1] == "=" or not readable(word)]:
        return _unreadable(names, wrong[0])
    if "Config group override must be" in text:
        for word in names.overrides:
            key, _, value = word.partition("=")
            options, override = names.options(key.lstrip("+").partition("@")[0]), parsed(word)
            if options and override and not isinstance(override.value(), str | list):
                return f"{key}={value}: expected one of its options; {did_you_mean('', options)}"
    if missing := re.search(r"Could not (?:find|load) '(.+)'", text):
        group, _, given = missing[1].rpartition("/")
        options = names.options(group)
        if listed := re.search(r"Available options in '(.+)':\n((?:\t.*\n?)*)", text):
            group, options = listed[1], listed[2].split()
            given = missing[1].removeprefix(f"{group}/")
        return f"{_file(text)}{group}={given}: no such option; {did_you_mean(given.rpartition('/')[2], options)}"
    for pattern in (r"Could not override '(\S+)'", r"Override (\S+?)=.* looks like a config group", r"delete .*'(\S+?)'"):
        if unknown := re.search(pattern, text):
            return _file(text) + _no_key(names, unknown[1], text)
    if twice := re.search(r"Multiple values for (\S+)\. To override a value use 'override \S+: (.*)'", text):
        return f"{twice[1]} is there already; type {assigned(twice[1], twice[2])}"
    if sweep := re.search(r"Ambiguous value for argument '((.+?)=(.*))'", text):
        word, key, value = sweep.groups()
        as_list, holds = shlex.quote(f"{key}=[{value}]"), names.keys.get(key)
        if key.startswith(LISTS) or isinstance(holds, list):
            one = f"type {as_list} for a list, or "
        elif isinstance(holds, str | None) and key not in names.groups:
            one = f"type {in_quotes(key, value)} for a text, {as_list} for a list, or "
        else:
            one = "type "
        return f"{word}: {one}-m {shlex.quote(word)} for one run each"
    return _one_line(text)


def _unreadable(names: Names, at: int) -> str:
    """Suggests what to type instead of an override that Hydra cannot read, the `at`-th."""
    word, before, after = names.overrides[at], names.overrides[:at], names.overrides[at + 1 :]
    if word.startswith("-"):
        return _no_option(word, names.overrides, [])
    key, equals, value = word.partition("=")
    known = {*names.keys, *names.groups}
    if not equals:
        return _no_value(names, known, word, before, after)
    if not key.strip("+~ "):
        if before and "=" not in before[-1]:  # seed =3
            return f"{before[-1]} {word}: no space stands around =; type {assigned(before[-1], value or ''.join(after[:1]))}"
        return f"{word!r}: expected KEY=VALUE"
    if key.strip() != key and key.strip() in known:
        return f"{word!r}: no space stands around a key; type {assigned(key.strip(), value)}"
    if not readable(f"{key}=x"):
        return _no_key(names, key, "")
    values = [value]
    for part in after:
        if "=" in part or part in known:
            break
        values.append(part)
    return advice(key, " ".join(values))


def _no_value(names: Names, known: set[str], word: str, before: list[str], after: list[str]) -> str:
    """Suggests what to type instead of a word without =, between these."""
    spaced = "no space stands around ="
    key, sign, value = re.fullmatch(r"([^: ]*)(:| |$)(.*)", word, re.DOTALL).groups()  # type: ignore[union-attr]
    if sign and key in known:
        return f"{word}: expected = after {key}; type {assigned(key, value) if value.strip() else f'{key}=VALUE'}"
    if after and after[0].startswith("="):
        value = after[0][1:] or " ".join(after[1:2])
        return f"{word} {after[0]}: {spaced}; type {assigned(word, value)}"
    if before and before[-1].endswith("="):
        return f"{before[-1]} {word}: {spaced}; type {assigned(before[-1][:-1], word)}"
    if word in known and after and "=" not in after[0]:
        return f"{word} {after[0]}: expected = after {word}; type {assigned(word, after[0])}"
    if options := names.options(word):
        said = f"expected one of its options; {did_you_mean('', options)}"
    elif word in known:
        said = f"expected a value; type {word}=VALUE"
    else:
        near = names.near(word)
        said = f"expected KEY=VALUE; {did_you_mean(word, near)}" if near else "expected KEY=VALUE"
    if before and "=" in before[-1]:
        key, _, value = before[-1].partition("=")
        rest = itertools.takewhile(lambda part: "=" not in part, after)
        said += f"; where it belongs to {key}, type {in_quotes(key, ' '.join([value, word, *rest]))}"
    return f"{word or repr(word)}: {said}"


def _no_key(names: Names, key: str, text: str) -> str:
    """Suggests what to type instead of a key or group that is none. text: Hydra's error."""
    path = key.rpartition("@")[2].strip(". ")
    if text and key.partition("=")[0] in {*names.keys, *names.groups}:
        return _one_line(text)
    task = re.match(r"tasks\.(\w+)\.", path)
    if task and task[1] not in names.tasks and task[1] in names.options("tasks"):
        chosen = ",".join(names.tasks)
        return f"{key}: no task {task[1]!r} among tasks=[{chosen}]; type 'tasks=[{chosen},{task[1]}]'"
    parent, said = path.rpartition(".")[0], f"{key}: no such key"
    if "@" not in key and (of := names.option_at(path)):
        group, option, within = of
        said = f"{key}: {group}={option} has no such key"
        if have := [f"{group}={other}" for other in names.options_with(group, within)]:
            return f"{said}, but {', '.join(have[:3])} {'has' if len(have) == 1 else 'have'} it"
    if "@" not in key and _takes(names.keys.get(parent), path.rpartition(".")[2]):
        return f"{said}; did you mean '+{key}' (a key that is not set by default)?"
    if parent in names.keys and not isinstance(holds := names.keys[parent], dict):
        null = f"null; where it takes keys, type '{parent}={{{path.rpartition('.')[2]}: VALUE}}'"
        return f"{said}; {parent} is {null if holds is None else 'a value, no group of keys'}"
    if near := names.near(key.strip(". ")):
        return f"{said}; did you mean {' or '.join(map(repr, near))}?"
    beside = [name for name in {**names.keys, **dict.fromkeys(names.groups)} if name.rpartition(".")[0] == parent]
    return f"{said}; {did_you_mean('', sorted(name for name in beside or names.groups if not name.startswith('hydra/')))}"


def _takes(node: object, key: str) -> bool:
    """Tells whether the class that a node names has a field of this name: read, not imported, which would take seconds."""
    module, _, name = str(node.get("_target_") if isinstance(node, dict) else None).rpartition(".")
    file = CONF.parent / f"{module.replace('.', '/')}.py"
    if not file.is_file():
        return False
    found = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    fields = [field.target for node in found if node.name == name for field in node.body if isinstance(field, ast.AnnAssign)]
    return key in [field.id for field in fields if isinstance(field, ast.Name)]


def _file(text: str) -> str:
    """The file that an error is of, where it is not the command line."""
    found = re.match(r"In '(.+?)': ", text)
    return f"conf/{found[1]}.yaml: " if found and found[1] not in ("config", "hydra/config") else ""


def _one_line(text: str) -> str:
    return " ".join(text.split("\nConfig search path")[0].split())


def targets(key: str) -> list[str]:
    """Gives what the files of its group give as `_target_` at a key: of merge.bias_of, that of conf/merge/learned.yaml."""
    return sorted({str(node["_target_"]) for node in _nodes(*_place(key)) if "_target_" in node})


def defaults(key: str, target: object) -> list[Any]:
    """Gives what the files of its group give for a key of this `_target_`; None where they read it from elsewhere."""
    above, _, name = key.rpartition(".")
    group, inside = _place(above)
    given = [
        node for place in dict.fromkeys((inside, "")) for node in _nodes(group, place) if node.get("_target_") == target
    ]
    found = [OmegaConf.select(node, name, throw_on_resolution_failure=False) for node in given]
    return [OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for value in found]


def _place(key: str) -> tuple[str, str]:
    """The innermost group that a key is of, none for those of config.yaml, and its place in there."""
    names = key.split(".")
    past = max((i + 1 for i, name in enumerate(names) if name and (CONF / name).is_dir()), default=0)
    return names[past - 1] if past else "", ".".join(names[past:])


def _nodes(group: str, place: str) -> list[DictConfig]:
    """Gives what stands at a place in the files of a group, where these are keys and values."""
    found = [OmegaConf.select(file, place) if place else file for file in _files(group)]
    return [node for node in found if OmegaConf.is_dict(node)]


@cache
def _files(group: str) -> list[Any]:
    paths = sorted((CONF / group).glob("*.yaml")) if group else [CONF / "config.yaml"]
    return [OmegaConf.load(path) for path in paths]
