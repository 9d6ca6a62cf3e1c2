"""Lists the names that a command line may use, and those nearest to one that it may not."""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hatemtl.command.quoting import parsed


class Names:
    """The keys and groups of the configuration that these words compose, leaving out what is wrong with them.

    error: what Hydra says of them, so that what it names is left out at once.
    A key is written with its path, optimization.epochs; a group as it is typed, head@tasks.target.head.
    """

    def __init__(self, conf: Path, words: Sequence[str], error: str = "") -> None:
        given = get_args_parser().parse_known_intermixed_args(words)[0]
        self.conf, self.overrides, self._error = conf, list(given.overrides), error
        self._searched = [f"hydra.searchpath=[file://{Path(given.config_dir).resolve()}]"] if given.config_dir else []

    @cached_property
    def config(self) -> dict[str, Any]:
        """Composes the configuration, unresolved, with Hydra's own at `hydra`."""
        read = {word: override for word in self.overrides if (override := parsed(word)) and not override.is_sweep_override()}
        words = _without(read, self._error)
        while True:
            try:
                with initialize_config_dir(str(self.conf), version_base="1.3"):
                    whole = compose("config", overrides=[*self._searched, *words], return_hydra_config=True)
                return OmegaConf.to_container(whole)  # type: ignore[return-value]
            except (HydraException, OmegaConfBaseException, ValueError) as error:
                if not words:
                    if not self._searched:
                        raise
                    self._searched = []  # what a user added is itself wrong
                kept = _without({word: read[word] for word in words}, str(error))
                words = kept if len(kept) < len(words) else words[:-1]

    @property
    def tasks(self) -> list[str]:
        """Lists the tasks, by name."""
        return list(self.config.get("tasks", {}))

    @cached_property
    def keys(self) -> dict[str, Any]:
        """Lists every key with its path, and what it holds."""
        return dict(_walk(self.config, ""))

    @cached_property
    def choices(self) -> dict[str, str]:
        """Lists every group that has one option, as it is typed, and the option."""
        return {key: choice for key, choice in self.config["hydra"]["runtime"]["choices"].items() if isinstance(choice, str)}

    @property
    def groups(self) -> list[str]:
        """Every group as it is typed."""
        return sorted({*self.choices, "tasks", "regulariser", "evaluations", "experiment"})

    def options(self, group: str) -> list[str]:
        """Lists the options of a group; none where it is no group of the project's."""
        return sorted(path.stem for path in (self.conf / group).glob("*.yaml")) if group else []

    def option_at(self, key: str) -> tuple[str, str, str] | None:
        """Finds the group that a key is of, its option, and the key within it; None where it is of none."""
        found = [(group.rpartition("@")[2], group.partition("@")[0], option) for group, option in self.choices.items()]
        of = max((entry for entry in found if key.startswith(f"{entry[0]}.")), key=lambda entry: len(entry[0]), default=None)
        return (of[1], of[2], key.removeprefix(f"{of[0]}.")) if of else None

    def options_with(self, group: str, key: str) -> list[str]:
        """Lists the options of a group that have a key."""
        files = [self.conf / group / f"{option}.yaml" for option in self.options(group)]
        nodes = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) or {} for file in files}
        return [option for option, node in nodes.items() if key in dict(_walk(node, ""))]

    def near(self, key: str) -> list[str]:
        """Finds at most three names, the nearest to a mistyped one first; none where no name is near."""
        kept = [name for name in {**self.keys, **dict.fromkeys(self.groups)} if _of_hydra(name) == _of_hydra(key)]
        if "@" in key:
            return _closest(key, {name: name for name in kept if "@" in name}, 0.75)
        if self.options(key):  # it stands elsewhere: head is head@tasks.target.head
            return [name for name in self.groups if name.partition("@")[0] == key][:3]
        kept = [name for name in kept if "@" not in name]
        parent, _, last = key.rpartition(".")
        beside = _closest(last, {name: _last(name) for name in kept if name.rpartition(".")[0] == parent}, 0.75)
        words = _words(last)
        ending = [name for name in kept if _words(name)[-len(words) :] == words]  # lr is optimization.encoder_lr
        ending.sort(key=lambda name: (_last(name) != last, -_alike(name, key) if parent else 0))
        if parent:
            best = [name for name in ending if _alike(name, key) > _alike(ending[0], key) - 0.15]
            return (beside or best or _closest(key, {name: name for name in kept if name != parent}, 0.8))[:3]
        return [*dict.fromkeys([*ending, *beside])][:3] or _closest(key, {name: _last(name) for name in kept}, 0.75)


def _without(overrides: Mapping[str, Override], error: str) -> list[str]:
    """The overrides that an error does not name."""
    named = set(re.findall(r"'([^'\s]+)'", error))
    return [word for word, override in overrides.items() if not {override.get_key_element().lstrip("+~"), word} & named]


def _walk(node: Mapping[Any, Any], path: str) -> Iterator[tuple[str, Any]]:
    """The keys of a node and of all below it, with their path and what they hold."""
    for key, value in node.items():
        if not str(key).startswith("_"):
            yield f"{path}{key}", value
            if isinstance(value, Mapping):
                yield from _walk(value, f"{path}{key}.")


def _closest(given: str, names: Mapping[str, str], cutoff: float) -> list[str]:
    """At most three names, by how alike what they stand for is to what was given; none much less alike than the first."""
    scores = {name: _alike(given, text) for name, text in names.items()}
    least = max(cutoff, max(scores.values(), default=0.0) - 0.05)
    return sorted((name for name in scores if scores[name] >= least), key=lambda name: -scores[name])[:3]


def _alike(a: str, b: str) -> float:
    return SequenceMatcher(None, a.lower(), b.lower()).ratio()


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _words(name: str) -> list[str]:
    return re.split(r"[._]", name)


def _of_hydra(name: str) -> bool:
    return re.match(r"hydra[./]", name) is not None
