"""Lists the names that a command line may use, and those nearest to one that it may not."""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hatemtl.command.quoting import readable

CONF = Path(__file__).parents[2] / "conf"


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

    error: what Hydra says of them, so that what it names is left out at once.
    A key is written with its path, optimization.epochs; a group as it is typed, head@tasks.target.head.
    """

    def __init__(self, words: Sequence[str], error: str = "") -> None:
        given = get_args_parser().parse_known_intermixed_args(words)[0]
        self.overrides, self._error = list(given.overrides), error
        searched = [f"hydra.searchpath=[file://{Path(given.config_dir).resolve()}]"] if given.config_dir else []
        self._readable = [*filter(readable, [*searched, *self.overrides])]

    @cached_property
    def config(self) -> dict[str, Any]:
        """Composes the configuration, unresolved, with Hydra's own at `hydra`."""
        words, error = self._readable, self._error
        while True:
            named = re.findall(r"'([^'\s]+)'", error)
            words = [word for word in words if not {word, word.lstrip("+~").partition("=")[0]}.intersection(named)]
            try:
                with initialize_config_dir(str(CONF), version_base="1.3"):
                    whole = compose("config", overrides=words, return_hydra_config=True)
                return OmegaConf.to_container(whole)  # type: ignore[return-value]
            except (HydraException, OmegaConfBaseException, ValueError) as wrong:
                if not words:
                    raise
                if str(wrong) == error:  # it names none of the words
                    words.pop()
                error = str(wrong)

    @cached_property
    def keys(self) -> dict[str, Any]:
        """Lists every key with its path, and what it holds."""
        return dict(walk(self.config))

    @cached_property
    def choices(self) -> dict[str, str]:
        """Lists every group that has one option, as it is typed, and the option."""
        return {key: choice for key, choice in self.config["hydra"]["runtime"]["choices"].items() if isinstance(choice, str)}

    @property
    def groups(self) -> list[str]:
        """Every group as it is typed."""
        return sorted({*self.choices, "tasks", "regulariser", "evaluations", "experiment"})

    def near(self, key: str) -> list[str]:
        """Finds at most three names, the nearest to a mistyped one first; none where no name is near."""
        scores = {name: _near(key, name) for name in {**self.keys, **dict.fromkeys(self.groups)}}
        least = max(0.75, max(scores.values()) - 0.05)
        return sorted((name for name in scores if scores[name] >= least), key=lambda name: -scores[name])[:3]


def _near(key: str, name: str) -> float:
    """Tells how near a name is to a mistyped key, above 1 for sure: in path, end, or last words."""
    if name.startswith(f"{key}@"):  # the group stands elsewhere: head is head@tasks.target.head
        return 1.1
    if ("@" in key, _of_hydra(key)) != ("@" in name, _of_hydra(name)):
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


def _of_hydra(name: str) -> bool:
    return re.match(r"hydra[./]", name) is not None
