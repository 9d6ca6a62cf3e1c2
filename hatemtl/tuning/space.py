"""Reads what a search may choose from: ranges and lists of values, by key of the configuration."""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from hatemtl.errors import UserError

Value = str | int | float | bool | None
EXAMPLE = "tune.space.optimization.encoder_lr='log(1e-5, 3e-3)'"
# Keys that a search sets for each trial, and what to type in their place.
INSTEAD = {
    "seed": "for a run a seed, judged by their mean, type tune.seeds=[0,1,2]",
    "save_path": "the study's folder is typed as save_path=FOLDER",
    "action": "what a trial does is train; leave it out",
    "overwrite": "a study goes on where it was; leave it out",
}
FORMS = "log(low, high), uniform(low, high), int(low, high), choice(a, b, ...) or a list [a, b, ...]"


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; of a logarithmic one, each power of ten is as likely as another."""

    kind: Literal["log", "uniform", "int"]
    low: float
    high: float

    @property
    def samples(self) -> tuple[Value, ...]:
        """Gives values to try whether the configuration takes them: both ends."""
        return (int(self.low), int(self.high)) if self.kind == "int" else (self.low, self.high)


@dataclass(frozen=True)
class Choice:
    """One of several values, in no order."""

    values: tuple[Value, ...]

    @property
    def samples(self) -> tuple[Value, ...]:
        """Gives values to try whether the configuration takes them: all."""
        return self.values


Dimension = Range | Choice
Space = Mapping[str, Dimension]


def read_space(given: Mapping[str, Any] | str | None) -> dict[str, Dimension]:
    """Reads `tune.space`, nested or with dots in its keys. Raises UserError where it is empty, or a value is of no form.

    >>> read_space({"optimization.encoder_lr": "log(1e-5, 3e-3)", "method": {"rank": [4, 8]}})
    {'optimization.encoder_lr': Range(kind='log', low=1e-05, high=0.003), 'method.rank': Choice(values=(4, 8))}
    """
    if isinstance(given, str):
        raise UserError(f"tune.space={given}: expected keys, each with what it may be; type for instance {EXAMPLE}")
    space = {key: _dimension(key, value) for key, value in _flat(given or {})}
    if not space:
        raise UserError(f"tune.space is empty, so there is nothing to search; type for instance {EXAMPLE}")
    for key in space.keys() & INSTEAD.keys():
        raise UserError(f"tune.space.{key}: each trial has its own; {INSTEAD[key]}")
    for key, places in _lists(space).items():
        if sorted(places) != [*range(len(places))]:
            some = ", ".join(map(str, sorted(places)))
            raise UserError(
                f"tune.space.{key} has the places {some}: expected each of a list, from 0 on; "
                f"type tune.space.{key}.0='uniform(0, 1)', tune.space.{key}.1='uniform(0, 1)' and so on"
            )
        if key in space:
            raise UserError(f"tune.space.{key} is there whole, and by its places; leave one out")
    return space


def settings(params: Mapping[str, Value]) -> dict[str, Any]:
    """Gives a trial's values as they are typed: those of a list's places, `merge.weights.0` and so on, as that list.

    >>> settings({"merge.weights.1": 0.5, "merge.weights.0": 1.0, "method.rank": 4})
    {'method.rank': 4, 'merge.weights': [1.0, 0.5]}
    """
    lists = _lists(params)
    alone = {key: value for key, value in params.items() if _place(key) is None}
    return {**alone, **{key: [params[f"{key}.{place}"] for place in sorted(places)] for key, places in lists.items()}}


def _lists(keys: Iterable[str]) -> dict[str, list[int]]:
    """The places of lists among the keys, by the key of the list."""
    found: dict[str, list[int]] = {}
    for key in keys:
        if (place := _place(key)) is not None:
            found.setdefault(key.rpartition(".")[0], []).append(place)
    return found


def _place(key: str) -> int | None:
    above, _, last = key.rpartition(".")
    return int(last) if above and last.isdecimal() and str(int(last)) == last else None


def grid(space: Space) -> Iterator[dict[str, Value]]:
    """Gives every combination of the values. Raises UserError where a range has infinitely many."""
    axes = []
    for key, dimension in space.items():
        if isinstance(dimension, Range) and dimension.kind != "int":
            raise UserError(
                f"tune.sampler=grid takes lists, and tune.space.{key} is a range without end; type a list of values for it, "
                f"or tune.sampler=tpe"
            )
        of: Sequence[Value] = (
            range(int(dimension.low), int(dimension.high) + 1) if isinstance(dimension, Range) else dimension.values
        )
        axes.append([(key, value) for value in of])
    return (dict(point) for point in itertools.product(*axes))


def _flat(given: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in given.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _dimension(key: str, given: Any) -> Dimension:
    wrong = UserError(f"tune.space.{key}={given}: expected {FORMS}")
    if isinstance(given, Sequence) and not isinstance(given, str):
        values: list[Any] = [*given]
    elif isinstance(given, str) and (form := re.fullmatch(r"\s*(log|uniform|int|choice)\((.*)\)\s*", given, re.DOTALL)):
        values = [_value(part) for part in form[2].split(",")]
        if form[1] != "choice":
            return _range(key, given, form[1], values)
    else:
        raise wrong
    if not values or not all(value is None or isinstance(value, str | int | float) for value in values):
        raise wrong
    if len({repr(value) for value in values}) < len(values):
        raise UserError(f"tune.space.{key}={given}: holds a value twice; leave one out")
    return Choice(tuple(values))


def _range(key: str, given: str, kind: Any, ends: Sequence[Value]) -> Range:
    wrong = UserError(f"tune.space.{key}={given}: expected {FORMS}, low below high")
    if len(ends) != 2 or any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
        raise wrong
    low, high = (float(end) for end in ends)  # type: ignore[arg-type]
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise wrong
    if kind == "log" and low <= 0:
        raise UserError(f"tune.space.{key}={given}: a logarithmic range begins above 0; type uniform({low:g}, {high:g})")
    if kind == "int" and (low % 1 or high % 1):
        raise wrong
    return Range(kind, low, high)


def _value(text: str) -> Value:
    """Reads a value as it is typed.

    >>> [_value(text) for text in ("1e-5", " 4", "true", "null", " minilm ", "'a b'")]
    [1e-05, 4, True, None, 'minilm', 'a b']
    """
    text = text.strip()
    if text in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[text]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
