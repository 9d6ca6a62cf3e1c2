"""Reads the cells of a user's table as the annotation that a head expects."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hatemtl.corpora.base import Column, Posts, Raw
from hatemtl.corpora.questions import padded, places
from hatemtl.corpora.rows import NO, NOTHING, YES, shown
from hatemtl.errors import UserError, did_you_mean
from hatemtl.labels import Kind, name_of

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
    span: the answers to a question, as `questions.places` reads them, in the one second text.
    choice: which second text is right, as its number, counted from 0, or as its column's name.
    A cell that is empty, null, NA or NaN leaves the post without this annotation; of several columns, any such cell does.

    names: the labels, in their order; None finds them in the cells and sorts them, as numbers if all are, else by name. Of a
        score, tokens or span, whose column else gives it, one name.
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
    wanted = None if names is None else tuple(map(name_of, names))
    cells = [_Cells(posts, raw, name, wanted) for name in several]
    match kind:
        case "multiclass" | "ordinal":
            return cells[0].labels(kind)
        case "multilabel":
            return cells[0].sets() if isinstance(column, str) else _shares(cells)
        case "score":
            return cells[0].numbers()
        case "tokens":
            return cells[0].words()
        case "span":
            return cells[0].answers()
        case _:
            return cells[0].choices()


def is_given(value: Any) -> bool:
    """Tells whether a cell says anything."""
    return value is not None and str(value).strip() not in NOTHING


def _number(value: Any) -> float:
    """A number, however it is written; NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    found = sorted(set(names))
    return tuple(sorted(found, key=float) if all(math.isfinite(_number(name)) for name in found) else found)


def _shares(cells: Sequence["_Cells"]) -> Column:
    """Several columns as a label each; a post has the annotation where all are given."""
    columns, names = tuple(of.column for of in cells), cells[0].names
    if names not in (None, columns):
        raise UserError(f"names={list(names or ())}: expected the columns themselves, {list(columns)}, or null")
    found = [{i: of.share(i, value) for i, value in of.given.items()} for of in cells]
    whole = {i: [shares[i] for shares in found] for i in found[0] if all(i in shares for shares in found)}
    return cells[0].filled("multilabel", columns, whole, [0.0] * len(cells))


class _Cells:
    """The cells of one column of a table, and what an error about one says."""

    def __init__(self, posts: Posts, raw: Raw, column: str, names: tuple[str, ...] | None) -> None:
        self.posts, self.raw, self.column, self.names = posts, raw, column, names
        self.given = {i: value for i, value in enumerate(raw.cells[column]) if is_given(value)}

    def filled(self, kind: Kind, names: Sequence[str], found: Mapping[int, Any], blank: Any = 0) -> Column:
        """Makes the column of what was found for some posts; the others have the blank."""
        values = [found.get(i, blank) for i in range(len(self.posts))]
        return Column.of(kind, names, values, np.array([i in found for i in range(len(self.posts))], bool))

    def labels(self, kind: Kind) -> Column:
        for i, value in self.given.items():
            if isinstance(value, list | dict):
                raise self._wrong(i, "one label (several are for head=multilabel)")
        found = {i: name_of(value) for i, value in self.given.items()}
        different = len(set(found.values()))
        if self.names is None and different > max(MANY, len(found) / 2):
            many = f"column {self.column!r} has {different:,} different values in {len(found):,} rows"
            numbers = all(math.isfinite(_number(name)) for name in found.values())
            told = "are numbers, not labels; type head@tasks.TASK.head=score" if numbers else "are no labels; give another"
            raise UserError(f"{self.raw.source}: {many}, which {told}")
        names, places = self._placed({i: [name] for i, name in found.items()})
        return self.filled(kind, names, {i: place for i, (place,) in places.items()})

    def sets(self) -> Column:
        found = {i: [name_of(item) for item in self._items(i, value)] for i, value in self.given.items()}
        names, places = self._placed(found)
        values, has = np.zeros((len(self.posts), len(names)), np.float32), np.zeros(len(self.posts), bool)
        for i, of_cell in places.items():
            values[i, of_cell], has[i] = 1, True
        return Column.of("multilabel", names, values, has)

    def numbers(self) -> Column:
        found = {i: _number(value) for i, value in self.given.items()}
        for i, number in found.items():
            if not abs(number) <= LARGEST:
                raise self._wrong(i, "a number, of at most 38 digits")
        return self.filled("score", self.names or (self.column,), found)

    def words(self) -> Column:
        found, lengths = {}, [text.count(" ") + 1 for text in self.posts.texts]
        for i, value in self.given.items():
            items = self._items(i, value, separator=None)
            if len(items) != lengths[i]:
                raise self._wrong(i, f"a number for each of the text's {lengths[i]} words, found {len(items)}")
            found[i] = np.array([self.share(i, item) for item in items], np.float32)
        values = np.fromiter((found.get(i, np.zeros(n, np.float32)) for i, n in enumerate(lengths)), object)
        has = np.array([i in found for i in range(len(lengths))], bool)
        return Column.of("tokens", self.names or (self.column,), values, has)

    def choices(self) -> Column:
        pairs = self.raw.pairs
        if len(pairs) < 2:
            needed = "a choice task needs the columns of second texts"
            raise UserError(f"column={self.column!r}: {needed}; type tasks.TASK.corpus.pair=[first,second]")
        position = {str(i): i for i in range(len(pairs))} | {name: i for i, name in enumerate(pairs)}
        found = {i: position.get(name_of(value)) for i, value in self.given.items()}
        for i, place in found.items():
            if place is None:
                raise self._wrong(i, f"one of {', '.join(position)}")
        return self.filled("choice", pairs, found)

    def answers(self) -> Column:
        if len(self.raw.pairs) != 1 or self.raw.seconds is None:
            needed = "a span task needs the one column of texts that hold the answers"
            raise UserError(f"column={self.column!r}: {needed}; type tasks.TASK.corpus.pair=COLUMN, or corpus=squad")
        found: dict[int, list[tuple[int, int]]] = {}
        for i, value in self.given.items():
            try:
                found[i] = places(value, self.raw.seconds[i][0])
            except ValueError as error:
                raise self._wrong(i, str(error)) from None
        each = [found.get(i, []) for i in range(len(self.posts))]
        return Column.of("span", self.names or (self.column,), padded(each), np.array([*map(bool, each)], bool))

    def share(self, i: int, value: Any) -> float:
        name, number = name_of(value).lower(), _number(value)
        if name in TRUE or name in FALSE:
            return float(name in TRUE)
        if not 0 <= number <= 1:
            raise self._wrong(i, "true or false, yes or no, or a number from 0 to 1")
        return number

    def _placed(self, found: Mapping[int, list[str]]) -> tuple[tuple[str, ...], dict[int, list[int]]]:
        """The labels, and the places among them of those that posts have."""
        given = [(i, name) for i, of_cell in found.items() for name in of_cell]
        names = self.names if self.names is not None else _in_order(name for _, name in given)
        if not names:
            raise UserError(f"{self.raw.source}: column {self.column!r} is empty throughout, so it has no labels to learn")
        places = {name: place for place, name in enumerate(names)}
        for i, name in given:
            if name not in places:
                raise UserError(f"{self._where(i)}: this task knows no label {name!r}; {did_you_mean(name, names)}")
        return names, {i: [places[name] for name in of_cell] for i, of_cell in found.items()}

    def _items(self, i: int, value: Any, separator: str | None = "") -> list[Any]:
        """The items of a cell: of a list, of a JSON list, or of a text between separators (None: spaces)."""
        if isinstance(value, str) and value.strip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:  # a number or a nesting that is too long, too
                said = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise self._wrong(i, f"a JSON list ({said})") from None
        if isinstance(value, str):
            return [item for item in value.split(self.raw.separator if separator == "" else separator) if item.strip()]
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, list | dict) or not is_given(item) for item in items):
            raise self._wrong(i, "a list of names, or of numbers")
        return items

    def _where(self, i: int) -> str:
        return f"{self.raw.places[i]}, column {self.column!r}"

    def _wrong(self, i: int, expected: str) -> UserError:
        mend = "mend the cell, or leave it empty for a post without annotation"
        return UserError(f"{self._where(i)}: {shown(self.given[i])}, expected {expected}; {mend}")
