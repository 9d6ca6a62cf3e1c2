"""Suggests a command line that works, where Hydra does not say."""

import re
import shlex
from collections.abc import Sequence
from itertools import takewhile
from traceback import walk_tb
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from hatemtl.command.words import CONF, Names, advice, assigned, files, in_quotes, parsed, readable, walk
from hatemtl.errors import UserError, did_you_mean

NO_EXPERIMENT = ("experiment=null", "experiment=none")  # Hydra itself lets no group be null
WAYS_OUT = {  # of errors of Hydra's that say nothing but what is wrong, by a word of theirs
    "nterpolation": "type the value itself",
    "blocklisted": "leave _target_ out, or name a class of yours",
}
# The keys that take a list, or how they begin.
LISTS = ("tasks", "action", "regulariser", "augmentation", "evaluations", "method.sources")


def arguments(words: Sequence[str]) -> list[str]:
    """Orders the words of a command line as Hydra takes them, its options first, with what `spelled_out` makes of each.

    Raises UserError where a word that begins with a dash is none of its options, for two numbers of folds, and for several
    options of a group that has one, of which Hydra would make a mixture.
    """
    if {"folds", "folds.number"} <= {word.partition("=")[0] for word in words}:
        both = [word for word in words if re.match(r"folds(\.number)?=", word)]
        raise UserError(f"{' '.join(both)}: both say how many folds; type one of them, as {both[-1]}")
    for word in words:
        several = re.fullmatch(r"((\w+)(?:@[\w.]+)?)=\[([\w ]+(?:,[\w ]+)+)\]", word)
        names = [name.strip() for name in several[3].split(",")] if several else []
        if several and several[2] in LISTS and len(once := [*dict.fromkeys(names)]) < len(names):
            raise UserError(f"{word}: one stands there twice; type {several[1]}=[{','.join(once)}]")
        if several and files(several[2]) and several[2] not in (*LISTS, "experiment"):
            one = f"{several[1]}={names[0]}"
            each = f"{several[1]}={','.join(names)}"
            raise UserError(
                f"{word}: expected one option of the group {several[2]}; type {one}, or -m {each} for one run each"
            )
    words = all_spelled_out(words)
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # it would print all options and exit
    given, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        raise UserError(_no_option(unknown[0], words, [*parser._option_string_actions]))
    for word in given.overrides:
        words.remove(word)
    return [*words, *given.overrides]


def all_spelled_out(words: Sequence[str]) -> list[str]:
    """Writes words as Hydra takes them: each as `spelled_out` does, and of action=serve several runs as a list.

    >>> all_spelled_out(["action=serve", "load_path=adapters/a,adapters/b"])
    ['action=serve', 'load_path=[adapters/a,adapters/b]']
    """
    serves = "action=serve" in words
    several = re.compile(r"load_path=([^\[\"',]+(?:,[^\[\"',]+)+)")
    lists = {word: f"load_path=[{found[1]}]" for word in words if serves and (found := several.fullmatch(word))}
    return [lists.get(word) or spelled_out(word) for word in words]


def spelled_out(word: str) -> str:
    """Writes a word as Hydra takes it: folds by their key, no experiment as an empty list, a loss as its group's, a range.

    >>> spelled_out("folds=5"), spelled_out("experiment=null"), spelled_out("seed=1")
    ('folds.number=5', 'experiment=[]', 'seed=1')
    >>> spelled_out("tune.space.method.rank=int(4, 16)"), spelled_out("tune.space={method.rank: int(4, 16)}")
    ('+tune.space.method.rank="int(4, 16)"', 'tune.space={method.rank: "int(4, 16)"}')
    >>> spelled_out("tasks.label.head.loss=focal"), spelled_out("tasks.stars.head.loss=huber")
    ('loss@tasks.label.head.loss=focal', 'tasks.stars.head.loss=huber')
    """
    if (of := re.fullmatch(r"(tasks\.\w+\.head\.loss)=([\w,]+)", word)) and {*of[2].split(",")} <= files("loss").keys():
        return f"loss@{word}"
    if re.match(r"\+?tune\.space[.=]", word):
        word = re.sub(r"""(?<!["'\w])(?:log|uniform|int|choice)\([^()]*\)""", lambda form: f'"{form[0]}"', word)
        return re.sub(r"^tune\.space\.", "+tune.space.", word)
    return "experiment=[]" if word in NO_EXPERIMENT else re.sub(r"^folds=(?!\{)", "folds.number=", word)


def _refuse(message: str) -> NoReturn:
    if together := re.search(r"argument \S*?(-\w): ignored explicit argument '(.*)'", message):
        raise UserError(_no_space(together[1] + together[2]))
    raise UserError(f"{message}; `uv run main.py --hydra-help` lists Hydra's own options")


def _no_space(word: str) -> str:
    return f"{word}: type a space between {word[:2]} and {word[2:]}"


def _no_option(word: str, words: Sequence[str], options: Sequence[str]) -> str:
    if word not in words and (whole := next((typed for typed in words if typed[2:] == word[1:]), None)):
        return _no_space(whole)  # which Python 3.13 takes apart
    key, equals, value = word.lstrip("-").partition("=")
    names = Names([])
    if not equals and key in names.all:
        value = "".join(words[words.index(word) + 1 :][:1]) or "VALUE"
    elif not equals:
        return f"{word}: no such option; {did_you_mean(word, options)}"
    return f"{word}: keys are typed without dashes; type {assigned(key, value)}"


def is_mistyped(error: Exception) -> bool:
    """Tells whether an error of composing the configuration comes of what was typed, and is no bug."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    by_hydra = bool(frames) and frames[-1].f_globals["__name__"].startswith("hydra.")
    return isinstance(error, HydraException | OmegaConfBaseException) or (by_hydra and isinstance(error, ValueError))


def explain(error: Exception, words: Sequence[str]) -> str:
    """Explains an error of composing these words, as the nearest option or key, or as quotes to be typed."""
    text = str(error)
    names = Names(words, text)
    if wrong := [at for at, word in enumerate(names.overrides) if word[:1] == "=" or not readable(word)]:
        return _unreadable(names, wrong[0])
    if "Config group override must be" in text:
        for word in names.overrides:
            key, _, value = word.partition("=")
            known, override = files(key.lstrip("+").partition("@")[0]), parsed(word)
            if known and override and not isinstance(override.value(), str | list):
                return f"{key}={value}: expected one of its options; {did_you_mean('', known)}"
    if missing := re.search(r"Could not (?:find|load) '(.+)'", text):
        group, _, given = missing[1].rpartition("/")
        options = [*files(group)]
        if listed := re.search(r"Available options in '(.+)':\n((?:\t.*\n?)*)", text):
            group, options = listed[1], listed[2].split()
            given = missing[1].removeprefix(f"{group}/")
        return f"{_file(text)}{group}={given}: no such option; {did_you_mean(given.rpartition('/')[2], options)}"
    if unknown := re.search(
        r"(?:Could not override|delete) .*?'(?P<key>\S+?)'|Override (?P<group>\S+?)=.* looks like a config group", text
    ):
        return _file(text) + _no_key(names, unknown["key"] or unknown["group"], text)
    if twice := re.search(r"Multiple values for (\S+)\. To override a value use 'override \S+: (.*)'", text):
        return f"{twice[1]} is there already; type {assigned(twice[1], twice[2])}"
    if sweep := re.search(r"Ambiguous value for argument '((.+?)=(.*))'", text):
        word, key, value = sweep.groups()
        if (key := key.lstrip("+")).startswith("tune.space."):  # `spelled_out` wrote the +
            return f"{key}={value}: expected a list or a range; type {shlex.quote(f'{key}=[{value}]')}"
        as_list, holds = shlex.quote(f"{key}=[{value}]"), names.keys.get(key)
        if key.startswith(LISTS) or isinstance(holds, list):
            one = f"type {as_list} for a list, or "
        elif isinstance(holds, str | None) and key not in names.groups:
            one = f"type {in_quotes(key, value)} for a text, {as_list} for a list, or "
        else:
            one = "type "
        return f"{word}: {one}-m {shlex.quote(word)} for one run each"
    return "; ".join([_one_line(text), *(way_out for of, way_out in WAYS_OUT.items() if of in text)])


def _unreadable(names: Names, at: int) -> str:
    """Suggests what to type instead of an override that Hydra cannot read, the `at`-th."""
    word, known = names.overrides[at], names.all
    if word.startswith("-"):
        return _no_option(word, names.overrides, [])
    before = names.overrides[at - 1] if at else ""
    more = takewhile(lambda part: "=" not in part[1:] and part not in known, names.overrides[at + 1 :])
    whole = " ".join([*([before] if before.endswith("=") and "=" not in word else []), word, *more])
    key, value = re.fullmatch(r"\s*([^:=\s]*)\s*[:=\s]?\s*(.*)", whole, re.DOTALL).groups()  # type: ignore[union-attr]
    if key in known and value and not whole.startswith(f"{key}={value}"):
        return f"{whole}: expected KEY=VALUE without spaces; type {assigned(key, value)}"
    if not value and (options := files(key)):
        said = f"expected one of its options; {did_you_mean('', options)}"
    elif not value and key in known:
        said = f"expected a value; type {key}=VALUE"
    elif key and "=" in word:
        key = word.partition("=")[0]
        return advice(key, whole.removeprefix(f"{key}=")) if readable(f"{key}=x") else _no_key(names, key, "")
    else:
        near = names.near(word)
        said = f"expected KEY=VALUE; {did_you_mean(word, near)}" if near else "expected KEY=VALUE"
    if key and "=" in before[1:]:
        of, _, begun = before.partition("=")
        said += f"; where it belongs to {of}, type {in_quotes(of, f'{begun} {whole}')}"
    return f"{word if key else repr(word)}: {said}"


def _no_key(names: Names, key: str, text: str) -> str:
    """Suggests what to type instead of a key or group that is none. text: Hydra's error."""
    if key.startswith("loss@"):  # `spelled_out` wrote it
        key = key.removeprefix("loss@")
        if key in names.keys:
            return f"{key}: this head has no such loss; type {assigned(key, str(names.keys[key]))}, as it is now"
    path = key.rpartition("@")[2].strip(". ")
    if text and key.partition("=")[0] in names.all:
        appended = re.search(r"To append to your config use (\+\S.*)", text)
        return f"{key}: it holds no such key; type {appended[1]} to add one" if appended else _one_line(text)
    task, tasks = re.match(r"tasks\.(\w+)\.", path), names.config.get("tasks", {})
    if task and task[1] not in tasks and task[1] in files("tasks"):
        chosen = ",".join(tasks)
        return f"{key}: no task {task[1]!r} among tasks=[{chosen}]; type 'tasks=[{chosen},{task[1]}]'"
    parent, said = path.rpartition(".")[0], f"{key}: no such key"
    places = {group.rpartition("@")[2]: group for group in names.choices if path.startswith(f"{group.rpartition('@')[2]}.")}
    if places and "@" not in key:
        place = max(places, key=len)
        group, within = places[place].partition("@")[0], path.removeprefix(f"{place}.")
        said = f"{key}: {group}={names.choices[places[place]]} has no such key"
        if have := [f"{group}={other}" for other, node in files(group).items() if within in dict(walk(node))]:
            return f"{said}, but {', '.join(have[:3])} {'has' if len(have) == 1 else 'have'} it"
    if "@" not in key and _takes(names.keys.get(parent), path.rpartition(".")[2]):
        return f"{said}; did you mean '+{key}' (a key that is not set by default)?"
    known = files(parent.rpartition(".")[2])
    options = [name for name, node in known.items() if path.rpartition(".")[2] in node]
    if options and names.keys.get(parent, "") is None:
        return f"{said}; type {parent}={' or '.join(options)} as well"
    if parent in names.keys and not isinstance(holds := names.keys[parent], dict):
        null = f"null; where it takes keys, type '{parent}={{{path.rpartition('.')[2]}: VALUE}}'"
        return f"{said}; {parent} is {null if holds is None else 'a value, no group of keys'}"
    if near := names.near(key.strip(". ")):
        return f"{said}; did you mean {' or '.join(map(repr, near))}?"
    beside = [name for name in names.all if name.rpartition(".")[0] == parent]
    return f"{said}; {did_you_mean('', sorted(name for name in beside or names.groups if not name.startswith('hydra/')))}"


def _takes(node: object, key: str) -> bool:
    """Tells whether the class that a node names has a field of this name: read, not imported, which would take seconds."""
    module, _, name = str(node.get("_target_") if isinstance(node, dict) else None).rpartition(".")
    file = CONF.parent / f"{module.replace('.', '/')}.py"
    of_class = rf"^class {name}\b(?:(?!^class ).)*?^    {re.escape(key)}: "
    return file.is_file() and bool(re.search(of_class, file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


def _file(text: str) -> str:
    """The file that an error is of, where it is not the command line."""
    found = re.match(r"In '(.+?)': ", text)
    return f"conf/{found[1]}.yaml: " if found and found[1] not in ("config", "hydra/config") else ""


def _one_line(text: str) -> str:
    return " ".join(text.split("\nConfig search path")[0].split())
