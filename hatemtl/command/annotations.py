"""Checks a configuration's types against the annotations of the constructors that take them; ranges are their own affair."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import cache
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra._internal.utils import _locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError

from hatemtl.command.suggestions import LISTS
from hatemtl.command.words import CONF, assigned, files, in_quotes, walk
from hatemtl.errors import UserError, did_you_mean

WORDS = {
    **{bool: ["true", "false"], int: ["a whole number"], float: ["a number"], str: ["a text"]},
    **{NoneType: ["null"], Any: ["a value"]},
}
MOST = 1 << 32  # that no whole number reaches
SEVERAL = {bool: "truth values", int: "whole numbers", float: "numbers", str: "texts", Any: "values"}
SEQUENCES, MAPS = (Sequence, list), (Mapping, dict)
LONG = 60  # letters: a longer value is no example


def check_node(node: DictConfig) -> None:
    """Raises UserError where a value in a node, or in one within it, is none that the node's `_target_` takes."""
    called, hints = _called(node) if "_target_" in node else None, {}
    with suppress(NameError, TypeError, AttributeError, SyntaxError):  # what cannot be read annotates nothing
        hints = get_type_hints(called.__init__ if isinstance(called, type) else called)  # type: ignore[misc]
    for name in node:
        if not str(name).startswith("_"):
            check_value(_key(node, name), node[name], hints.get(str(name), Any), node._target_)
    if not isinstance(partial := node.get("_partial_", False), bool):
        raise UserError(f"{node._get_full_key('_partial_')}={partial}: expected true or false")
    if called and partial:  # whoever calls it, later, could not say which key is wrong
        taken = signature(called).parameters
        some = any(one.kind is Parameter.VAR_KEYWORD for one in taken.values())
        for name in node if not some else ():
            if not str(name).startswith("_") and name not in taken:
                raise UserError(f"{_key(node, name)}: {called.__name__} has no such key; {did_you_mean(str(name), taken)}")


def check_value(key: str, value: Any, annotation: Any, target: Any = None) -> None:
    """Raises UserError where a value is none of what is annotated; a node is checked itself. target: of the node above."""
    if OmegaConf.is_dict(value) and "_target_" in value:
        return check_node(value)
    given: Any = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    if isinstance(given, int) and abs(given) >= MOST:  # of which arrays, and the processors' own numbers, make others
        raise UserError(f"{key}={given}: expected a number below {MOST:,}")
    made = [kind for kind in _kinds(annotation) if not _is_plain(kind)]
    if any(_fits(kind, given) for kind in _kinds(annotation) if kind not in made):
        return None
    for kind in made:
        if OmegaConf.is_config(value) and get_origin(kind) in (MAPS if OmegaConf.is_dict(value) else SEQUENCES):
            for name in value if OmegaConf.is_dict(value) else range(len(value)):
                item, inside = value[name], get_args(kind)[-1]
                if OmegaConf.is_list(value) and is_dataclass(inside):
                    _check_keys(_key(value, name), item, inside)  # what each of a list is, its key tells
                else:
                    check_value(_key(value, name), item, inside, target)
            return None
    if any(get_origin(kind) in SEQUENCES and is_dataclass(get_args(kind)[-1]) for kind in made):
        raise UserError(f"{key}={_typed(given)}: expected a list of what each has, in braces; type '{key}=[{{KEY:VALUE}}]'")
    if all("hatemtl." in str(kind) for kind in made):  # what a class of a user's own makes of a value is its affair
        raise UserError(_no_node(key, _typed(given)) if made else _wrong(key, given, annotation, target))
    return None


def _check_keys(key: str, node: Any, made: Any) -> None:
    """Raises UserError where a node has a key, or a value in it, that a dataclass does not take."""
    if not OmegaConf.is_dict(node):
        raise UserError(
            f"{key}={_typed(node)}: expected keys and values in braces; {did_you_mean('', get_type_hints(made))}"
        )
    hints = get_type_hints(made)
    for name in node:
        if name not in hints:
            raise UserError(f"{_key(node, name)}: there is no such key; {did_you_mean(name, hints)}")
        check_value(_key(node, name), node[name], hints[str(name)], made.__name__)


def _called(node: DictConfig) -> Any:
    """Finds what the `_target_` of a node names."""
    target = str(node._target_)
    try:
        called = _locate(target)
    except (ImportError, ValueError) as error:
        called, cause = None, error.__cause__
        missing = isinstance(cause, ModuleNotFoundError) and f"{target}.".startswith(f"{cause.name}.")
        if cause and not missing and "is an attribute of" not in str(error):
            raise cause from None  # a bug in the module, to be seen with its stack
    if callable(called):
        return called
    key = node._get_full_key("_target_")
    known = did_you_mean(target, _targets(key.rpartition(".")[0]))
    raise UserError(f"{key}={target}: no class or function has this name; {known}")


@cache
def _nodes() -> list[tuple[str, dict[str, Any]]]:
    """Gives all nodes of all files of conf/, each with the last name of its key, or with its group."""
    paths = {CONF / "config.yaml": "", **{path: path.parent.name for path in sorted(CONF.glob("*/*.yaml"))}}
    trees = [{group: OmegaConf.to_container(OmegaConf.load(path))} for path, group in paths.items()]
    return [(name.rpartition(".")[2], node) for tree in trees for name, node in walk(tree) if isinstance(node, dict)]


def _targets(key: str) -> list[str]:
    """Gives what the files of conf/ give as `_target_` at a key, or in its group."""
    return sorted({node["_target_"] for name, node in _nodes() if name == key.rpartition(".")[2] and "_target_" in node})


def _defaults(key: str, target: Any) -> list[Any]:
    """Gives what the files of conf/ give for a key of this `_target_`, but for what they read from elsewhere."""
    above, _, name = key.rpartition(".")
    nodes = [node for of, node in _nodes() if node.get("_target_") == target and (target or of == above) and name in node]
    return [node[name] for node in nodes if "${" not in str(node[name])]


def _key(node: DictConfig | ListConfig, name: Any) -> str:
    """The key that a value was typed at: of one that reads another, `path: ${load_path}`, that other."""
    read = re.fullmatch(r"\$\{([\w.]+)\}", str(node._get_node(name)._value()))  # type: ignore[union-attr]
    return read[1] if read else node._get_full_key(name)


def _kinds(annotation: Any) -> Sequence[Any]:
    """Gives what stands in a union, or the one thing that is annotated."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _is_plain(kind: Any) -> bool:
    """Tells whether a YAML holds it as it is."""
    if (origin := get_origin(kind)) in (Union, UnionType, *SEQUENCES, *MAPS):
        return all(map(_is_plain, get_args(kind)))
    return origin is Literal or kind in WORDS


def _fits(annotation: Any, value: Any) -> bool:
    if len(kinds := _kinds(annotation)) > 1:
        return any(_fits(kind, value) for kind in kinds)
    if get_origin(annotation) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(annotation))  # 0 is not false
    try:
        TypeAdapter(annotation, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError:
        return False
    return True


def _wrong(key: str, value: Any, annotation: Any, target: Any) -> str:
    words = _words(annotation)
    expected = f"{key}={_typed(value)}: expected {_or(words)}"
    if not (near := did_you_mean(value, words)).startswith("known"):
        return f"{expected}; {near}"
    if isinstance(value, int | float) and _fits(annotation, "text"):
        return f"{expected}; type {in_quotes(key, _typed(value))}"
    examples = [[value], *_defaults(key, target)]
    fitting = [_typed(one) for one in examples if one not in (None, "") and _fits(annotation, one)]
    short = [one for one in fitting if len(one) <= LONG]
    return f"{expected}; type {assigned(key, short[0])}" if short else expected


def _no_node(key: str, given: str) -> str:
    """Gives what to type for a key that takes a node, in place of a plain value."""
    above, _, name = key.rpartition(".")
    group = above if above in LISTS else name
    options = [*files(group)]
    if not options:
        again = "".join(f", or type {key}._target_={known}" for known in _targets(key)[:1])
        return f"{key}={given}: expected a class or function; leave it out{again}"
    option = get_close_matches(given, options, 1, 0.0)[0]
    typed = f"{group}=[{option}]" if group == above else f"{group}@{key}={option}"
    return f"{key}={given}: expected one of the options of the group {group}; type {typed}"


def _words(annotation: Any) -> list[str]:
    """An annotation in plain words, one for each thing that it allows."""
    if len(kinds := _kinds(annotation)) > 1:
        return list(dict.fromkeys(word for kind in kinds for word in _words(kind)))
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return list(dict.fromkeys(map(_typed, inside)))
    if origin in SEQUENCES:
        return [f"a list of {_or([SEVERAL.get(kind) or _or(_words(kind)) for kind in _kinds(inside[0])])}"]
    if origin in MAPS:
        return ["keys and values" if inside[1] is Any else f"keys and values (each {_or(_words(inside[1]))})"]
    return WORDS[annotation]


def _or(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _typed(value: Any) -> str:
    """A value as Hydra reads it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_typed(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_typed, value))}]"
    return str(value) if value != "" else "''"
