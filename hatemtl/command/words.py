"""Reads and quotes the words of a command line, lists the options they choose, and finds names near a mistyped one."""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

HYDRA, PACKAGE = ("hydra.", "hydra/"), Path(__file__).parents[1]
CONF = next(folder / "conf" for folder in (PACKAGE, PACKAGE.parent) if (folder / "conf").is_dir())  # of a wheel, a checkout
# Groups whose options make no other run: what is logged, watched, judged and where files lie; an experiment is its values.
NO_PART = ("experiment", "logger", "trainer", "data", "evaluations", "launcher")


def parsed(override: str) -> Override | None:
    """Reads the override as Hydra does; None where it cannot."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def typed_words() -> list[str]:
    """Gives the overrides that were typed for the run that Hydra started."""
    words: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return words


def config_dir() -> list[str]:
    """Gives the words that name a folder of the user's own options; none where none was typed."""
    given = get_args_parser().parse_known_intermixed_args(sys.argv[1:])[0].config_dir
    return ["--config-dir", given] if given else []


def option_of(group: str) -> str:
    """Names the option of a group that makes the run that Hydra started."""
    return str(HydraConfig.get().runtime.choices[group])


def chosen(hydra: Any) -> dict[str, str]:
    """Lists the options of groups that make the run what it is, and classes that were typed in their place."""
    options = {
        str(group): str(option)
        for group, option in hydra.runtime.choices.items()
        if option is not None
        and not str(group).startswith("hydra/")
        and not {str(group), *re.findall(r"@(\w+)\.", str(group))} & {*NO_PART}
    }
    typed = dict(word.lstrip("+").partition("=")[::2] for word in hydra.overrides.task)
    return options | {key: value for key, value in typed.items() if key.endswith("._target_")}


def readable(override: str) -> bool:
    """Tells whether Hydra can read an override."""
    return parsed(override) is not None


def quoted(text: str) -> str:
    """Writes the value that Hydra reads as this very text."""
    return QuotedString(text, Quote.double).with_quotes()


def in_quotes(key: str, value: str) -> str:
    """Writes the override that gives a key this very text, as it is typed in a shell.

    >>> print(in_quotes("save_path", "/home/läuf"))
    'save_path="/home/läuf"'
    """
    return shlex.quote(f"{key}={quoted(value)}")


def assigned(key: str, value: str) -> str:
    """Writes the override as it is typed in a shell, in quotes where Hydra would not read it without."""
    value = os.path.expanduser(value.strip())  # a shell leaves ~ within quotes alone
    plain = f"{key}={value}"
    return shlex.quote(plain) if readable(plain) else in_quotes(key, value)


def advice(key: str, value: str) -> str:
    """Says how to type a value that Hydra cannot read."""
    given, text = f"{key}={value}", in_quotes(key, os.path.expanduser(value))
    close = re.sub(r"\s*,\s*", ",", value)
    if close != value and (swept := parsed(f"{key}={close}")) is not None and swept.is_sweep_override():
        return f"{given}: there are spaces in it; type -m {key}={close} for one run each, or as a text {text}"
    if value[:1] in ("[", "{") or "(" in value:
        ends = ("".join(brackets) for number in (1, 2, 3) for brackets in product("]})", repeat=number))
        if closed := next((given + end for end in ends if readable(given + end)), None):
            return f"{given}: a bracket is not closed; type {shlex.quote(closed)}, or as a text {text}"
    if value[:1] == "[":
        items = [item.strip() for item in value[1:-1].split(",")]
        listed = f"{key}=[{','.join(item if readable(f'{key}=[{item}]') else quoted(item) for item in items)}]"
        if readable(listed):
            return f"{given}: some of its items need quotes; type {shlex.quote(listed)}"
    return f"{given}: Hydra cannot read this value as it stands; put it in quotes: type {text}"


@cache
def files(group: str) -> dict[str, Any]:
    """Reads the files of a group, unresolved, by option; none where it is no group of the project's."""
    paths = [path for path in sorted(CONF.glob("*/*.yaml")) if path.parent.name == group]
    return {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in paths}


def walk(node: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Gives the keys of a node and of all below it, with their path and what they hold."""
    for key, value in node.items():
        if not str(key).startswith("_"):
            yield f"{path}{key}", value
            if isinstance(value, Mapping):
                yield from walk(value, f"{path}{key}.")


class Names:
    """The keys and groups of the configuration that these words compose, leaving out what is wrong with them.

    error: what Hydra says of them, so that what it names is left out at once. config: unresolved, with Hydra's own in it.
    keys: with their path, as optimization.epochs, and what they hold. groups: as they are typed, as head@tasks.target.head.
    choices: the groups that have one option, with it.
    """

    def __init__(self, words: Sequence[str], error: str = "") -> None:
        given = get_args_parser().parse_known_intermixed_args(words)[0]
        self.overrides: list[str] = list(given.overrides)
        searched = [f"hydra.searchpath=[file://{Path(given.config_dir).resolve()}]"] if given.config_dir else []
        self.config = _composed([*filter(readable, [*searched, *self.overrides])], error)
        self.keys = dict(walk(self.config))
        options: dict[str, Any] = self.config["hydra"]["runtime"]["choices"]
        self.choices = {group: option for group, option in options.items() if isinstance(option, str)}
        self.groups = sorted({*self.choices, "tasks", "regulariser", "augmentation", "evaluations", "experiment"})
        self.all = [*dict.fromkeys([*self.keys, *self.groups])]

    def near(self, key: str) -> list[str]:
        """Finds at most three names, the nearest to a mistyped one first; none where no name is near."""
        scores = {name: _near(key, name) for name in self.all}
        least = max(0.75, max(scores.values()) - 0.05)
        return sorted((name for name in scores if scores[name] >= least), key=lambda name: -scores[name])[:3]


def _composed(words: list[str], error: str) -> dict[str, Any]:
    while True:
        named = re.findall(r"'([^'\s]+)'", error)
        words = [word for word in words if not {word, word.lstrip("+~").partition("=")[0]}.intersection(named)]
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                return OmegaConf.to_container(compose("config", overrides=words, return_hydra_config=True))  # type: ignore[return-value]
        except (HydraException, OmegaConfBaseException, ValueError) as wrong:
            if not words:  # what is wrong is not in them
                return {"hydra": {"runtime": {"choices": {}}}}
            if str(wrong) == error:  # it names none of the words
                words.pop()
            error = str(wrong)


def _near(key: str, name: str) -> float:
    """Tells how near a name is to a mistyped key, above 1 for sure: in path, end, or last words."""
    if name.startswith(f"{key}@"):  # the group stands elsewhere: head is head@tasks.target.head
        return 1.1
    if ("@" in key, key.startswith(HYDRA)) != ("@" in name, name.startswith(HYDRA)):
        return 0.0
    (above, _, last), (above_name, _, last_name) = key.rpartition("."), name.rpartition(".")
    whole, words = _alike(key, name) if above else 0.0, re.split(r"[._]", last)
    scores = [whole - 0.05 if name != above else 0.0]
    if above_name == above or not above:
        scores.append(_alike(last, last_name) + (0.0 if above_name else 0.06))
    if "@" not in key and re.split(r"[._]", name)[-len(words) :] == words:  # lr is optimization.encoder_lr
        scores.append(0.6 + 0.4 * whole if above else 0.8)
    return max(scores)


def _alike(a: str, b: str) -> float:
    return SequenceMatcher(None, a.lower(), b.lower()).ratio()
