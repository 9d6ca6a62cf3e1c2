"""Reads the cells of a user's table as the annotation that a head expects."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from hatemtl.corpora.base import Column, Posts, Raw
from hatemtl.corpora.rows import NO, NOTHING, YES
from hatemtl.errors import UserError, did_you_mean
from hatemtl.labels import Kind, LabelSpace

MEND = "mend the cell, or leave it empty for a post without annotation"
TRUE = {*map(str, YES), "yes"}
FALSE = {*map(str, NO), "no"}
MANY = 100  # different labels from which a column is looked at twice
LARGEST = float(np.finfo(np.float32).max)


def as_column(posts: Posts, column: str | Sequence[str], kind: Kind, names: Sequence[Any] | None = None) -> Column:
    """One column of `posts.raw`, or for multilabel several, as a head of this kind expects it.

    multiclass: a label a cell. ordinal: the same, from the lowest level to the highest.
    multilabel: one column with any number of labels a cell, between separators or in a JSON list (the separator alone, or
        []: none of them); or several, a label each, whose cells hold a share from 0 to 1, true or false, yes or no.
    score: a number. tokens: a number from 0 to 1 for each word of the text, between spaces or in a JSON list.
    choice: which second text is right, as its number, counted from 0, or as its column's name.
    A cell that is empty, null, NA or NaN leaves the post without this annotation; of several columns, any such cell does.

    names: the labels, in their order; None finds them in the cells and sorts them, as numbers if all are, else by name. Of a
        score or tokens, whose column else gives it, one name.
    Raises UserError with file, line and column where a cell is none of this, or names a label that is not among `names`.
    """
    raw = posts.raw
    if raw is None:
        raise ValueError("these posts are of no table")
    several = [column] if isinstance(column, str) else list(column)
    for name in several:
        if name not in raw.cells:
            raise UserError(f"{raw.source} has no column {name!r} for a task: {did_you_mean(name, raw.cells)}")
    if not isinstance(column, str) and kind != "multilabel":
        raise UserError(f"column={several}: several columns are for a multilabel task, but this head is {kind}")
    table = _Table(posts, raw, names)
    match kind:
        case "multiclass" | "ordinal":
            return table.labels(several[0], kind)
        case "multilabel":
            return table.sets(several[0]) if isinstance(column, str) else table.shares(several)
        case "score":
            return table.numbers(several[0])
        case "tokens":
            return table.words(several[0])
        case "choice":
            return table.choices(several[0])
    raise UserError(f"column={column!r}: a {kind} task does without a column of labels")


def is_given(value: Any) -> bool:
    """Tells whether a cell says anything."""
    if isinstance(value, float):
        return not math.isnan(value)
    return not (value is None or (isinstance(value, str) and value.strip() in NOTHING))


def name_of(value: Any) -> str:
    """Reads a cell as a name, the same whether a file holds text, numbers or (beside gaps) fractions of whole numbers.

    >>> name_of(" rude "), name_of(2.0), name_of(True)
    ('rude', '2', 'true')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _number(value: Any) -> float | None:
    """A finite number, however it is written; None where it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    found = sorted(set(names))
    return tuple(sorted(found, key=float) if all(_number(name) is not None for name in found) else found)


class _Table:
    """The cells of one table, and what an error about one says."""

    def __init__(self, posts: Posts, raw: Raw, names: Sequence[Any] | None) -> None:
        self.posts, self.raw, self.names = posts, raw, None if names is None else tuple(map(name_of, names))

    def labels(self, column: str, kind: Kind) -> Column:
        for i, value in self._given(column):
            if isinstance(value, list | dict):
                raise self._wrong(i, column, "one label (several are for head=multilabel)")
        found = {i: name_of(value) for i, value in self._given(column)}
        if self.names is None:
            self._check_labels(column, list(found.values()))
        space = LabelSpace(kind, self._known(column, found.values()))
        position = {name: place for place, name in enumerate(space.names)}
        values = np.zeros(len(self.posts), np.int64)
        for i, name in found.items():
            values[i] = self._position(i, column, name, position)
        return Column(space, values, self._has(found))

    def sets(self, column: str) -> Column:
        found = {i: [name_of(item) for item in self._items(i, column, value)] for i, value in self._given(column)}
        space = LabelSpace("multilabel", self._known(column, (name for names in found.values() for name in names)))
        position = {name: place for place, name in enumerate(space.names)}
        values = np.zeros((len(self.posts), len(space)), np.float32)
        for i, names in found.items():
            for name in names:
                values[i, self._position(i, column, name, position)] = 1
        return Column(space, values, self._has(found))

    def shares(self, columns: Sequence[str]) -> Column:
        space = LabelSpace("multilabel", tuple(columns))
        if self.names is not None and self.names != space.names:
            raise UserError(f"names={list(self.names)}: expected the columns themselves, {list(columns)}, or null")
        values: np.ndarray = np.full((len(self.posts), len(columns)), np.nan, np.float32)
        for place, column in enumerate(columns):
            for i, value in self._given(column):
                values[i, place] = self._share(i, column, value)
        has = np.isfinite(values).all(axis=1)
        return Column(space, np.where(has[:, None], values, np.float32(0)), has)

    def numbers(self, column: str) -> Column:
        values, has = np.zeros(len(self.posts), np.float32), np.zeros(len(self.posts), bool)
        for i, value in self._given(column):
            number = _number(value)
            if number is None or abs(number) > LARGEST:
                raise self._wrong(i, column, "a number, of at most 38 digits")
            values[i], has[i] = number, True
        return Column(LabelSpace("score", self.names or (column,)), values, has)

    def words(self, column: str) -> Column:
        values = np.fromiter((np.zeros(t.count(" ") + 1, np.float32) for t in self.posts.texts), object, len(self.posts))
        has = np.zeros(len(self.posts), bool)
        for i, value in self._given(column):
            items = self._items(i, column, value, separator=None)
            if len(items) != len(values[i]):
                raise self._wrong(i, column, f"a number for each of the text's {len(values[i])} words, found {len(items)}")
            values[i][:] = [self._share(i, column, item) for item in items]
            has[i] = True
        return Column(LabelSpace("tokens", self.names or (column,)), values, has)

    def choices(self, column: str) -> Column:
        if len(self.raw.pairs) < 2:
            raise UserError(
                f"column={column!r}: a choice task needs the columns of second texts; type "
                "tasks.TASK.corpus.pair=[first,second]"
            )
        position = {str(i): i for i in range(len(self.raw.pairs))} | {name: i for i, name in enumerate(self.raw.pairs)}
        found = {i: name_of(value) for i, value in self._given(column)}
        values = np.zeros(len(self.posts), np.int64)
        for i, name in found.items():
            if name not in position:
                raise self._wrong(i, column, f"one of {', '.join(position)}")
            values[i] = position[name]
        return Column(LabelSpace("choice", self.raw.pairs), values, self._has(found))

    def _given(self, column: str) -> Iterator[tuple[int, Any]]:
        return ((i, value) for i, value in enumerate(self.raw.cells[column]) if is_given(value))

    def _has(self, found: Iterable[int]) -> np.ndarray:
        has = np.zeros(len(self.posts), bool)
        has[list(found)] = True
        return has

    def _wrong(self, i: int, column: str, expected: str, then: str = MEND) -> UserError:
        shown = repr(self.raw.cells[column][i])
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return UserError(f"{self.raw.places[i]}, column {column!r}: {shown}, expected {expected}; {then}")

    def _known(self, column: str, found: Iterable[str]) -> tuple[str, ...]:
        names = self.names if self.names is not None else _in_order(found)
        if not names:
            raise UserError(f"{self.raw.source}: column {column!r} is empty throughout, so it has no labels to learn")
        return names

    def _check_labels(self, column: str, found: list[str]) -> None:
        different = len(set(found))
        if different > max(MANY, len(found) / 2):
            numbers = all(_number(name) is not None for name in found)
            raise UserError(
                f"{self.raw.source}: column {column!r} has {different:,} different values in {len(found):,} rows, which "
                + ("are numbers, not labels; type head@tasks.TASK.head=score" if numbers else "are no labels; give another")
            )

    def _position(self, i: int, column: str, name: str, position: dict[str, int]) -> int:
        if name not in position:
            raise UserError(
                f"{self.raw.places[i]}, column {column!r}: this task knows no label {name!r}; {did_you_mean(name, position)}"
            )
        return position[name]

    def _items(self, i: int, column: str, value: Any, separator: str | None = "") -> list[Any]:
        """The items of a cell: of a list, of a JSON list, or of a text between separators (None: spaces)."""
        if isinstance(value, str) and value.strip().startswith("["):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise self._wrong(i, column, f"a JSON list ({error.msg})") from None
        if isinstance(value, str):
            return [item for item in value.split(self.raw.separator if separator == "" else separator) if item.strip()]
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, list | dict) or not is_given(item) for item in items):
            raise self._wrong(i, column, "a list of names, or of numbers")
        return items

    def _share(self, i: int, column: str, value: Any) -> float:
        name = name_of(value).lower()
        if name in TRUE or name in FALSE:
            return float(name in TRUE)
        number = _number(value)
        if number is None or not 0 <= number <= 1:
            raise self._wrong(i, column, "true or false, yes or no, or a number from 0 to 1")
        return number
