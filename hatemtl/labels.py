"""Defines label spaces and their parts."""

import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from hatemtl.errors import UserError

IGNORED = -100.0  # a token that counts in no loss and no metric: special, padding, or not the first piece of its word

Kind = Literal["multiclass", "multilabel", "tokens", "score", "ordinal", "choice", "masked", "span"]
About = Literal["posts", "words", "second texts", "masked tokens", "answers"]


class Sort(NamedTuple):
    """Says what an annotation is about, and how many labels a post carries; None where something else is annotated."""

    about: About
    carries: Literal["one", "any"] | None = None


SORTS: dict[Kind, Sort] = {
    "multiclass": Sort("posts", "one"),
    "multilabel": Sort("posts", "any"),
    "tokens": Sort("words"),
    "score": Sort("posts"),
    "ordinal": Sort("posts", "one"),
    "choice": Sort("second texts"),
    "masked": Sort("masked tokens"),
    "span": Sort("answers"),
}


def name_of(value: Any) -> str:
    """Reads a value as a name, the same whether a file holds text, numbers or (beside gaps) fractions of whole numbers.

    >>> name_of(" rude "), name_of(2.0), name_of(True)
    ('rude', '2', 'true')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


@dataclass(frozen=True)
class LabelSpace:
    """The labels of one column, in order.

    kind: `multiclass` (one label a post), `multilabel` (any number of them), `tokens` (one yes or no a word), `score` (a
        number; the one name is the scale's), `ordinal` (one of ordered levels, lowest first), `choice` (which of a post's
        second texts is right; names are their places), `masked` (the masked tokens of a text; the one name says so) or
        `span` (the answer to a question, in its second text; the one name says so).
    """

    kind: Kind
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.kind not in SORTS:
            raise UserError(f"label kind {self.kind!r}: expected one of {', '.join(SORTS)}")
        if not self.names or len(set(self.names)) != len(self.names):
            raise UserError(f"label names must be distinct and at least one, given {list(self.names)}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def about(self) -> About:
        return SORTS[self.kind].about

    @property
    def carries(self) -> Literal["one", "any"] | None:
        return SORTS[self.kind].carries

    def part(self, part: "Part") -> "LabelSpace":
        """Gives the labels of this space that belong to `part`, in their order here."""
        if self.carries != "any":
            cut = f"mask_pattern={str(part)!r} cuts a multilabel task into parts"
            raise UserError(f"{cut}, but this task is {self.kind}: leave it null")
        return LabelSpace(self.kind, tuple(self.names[i] for i in part.indices(len(self))))


@dataclass(frozen=True)
class Part:
    """Part `index` of `of`: every `of`-th label, starting at the `index`-th (counted from 1)."""

    index: int
    of: int

    @classmethod
    def parse(cls, pattern: str) -> "Part":
        """Reads a mask pattern such as "1 4".

        >>> Part.parse("1 4").indices(11)
        (0, 4, 8)
        """
        match, right = re.fullmatch(r"\s*(\d+)\s+(\d+)\s*", str(pattern)), 'type mask_pattern="1 4"'
        if match is None:
            raise UserError(f"mask_pattern={pattern!r}: expected two whole numbers, 'i n' for part i of n; {right}")
        index, of = map(int, match.groups())
        if of == 0:
            raise UserError(f"mask_pattern={pattern!r}: nothing can be cut into 0 parts; {right}")
        if not 1 <= index <= of:
            parts = ", ".join(f'"{i} {of}"' for i in range(1, of + 1)) if of <= 4 else f'"1 {of}" to "{of} {of}"'
            raise UserError(f"mask_pattern={pattern!r}: there is no part {index} of {of}; type one of {parts}")
        return cls(index, of)

    def indices(self, labels: int) -> tuple[int, ...]:
        """Gives the positions of this part's labels among `labels`."""
        if self.of > labels:
            raise UserError(f'mask_pattern="{self}": {labels} labels cannot be cut into {self.of} parts')
        return tuple(range(self.index - 1, labels, self.of))

    def __str__(self) -> str:
        return f"{self.index} {self.of}"
