"""Holds the rows of a file, each with the place that an error names, and reads what their cells say."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hatemtl.errors import UserError, did_you_mean

NOTHING = (None, "", "NA", "nan", "NaN")  # how files write that a number or a flag was not given
LONGEST = 1_000_000  # characters of a field: beyond it a quote was never closed, or it is no file of posts
YES, NO = (1, "1", "1.0", "True", "TRUE", "true"), (0, "0", "0.0", "False", "FALSE", "false")


@dataclass(frozen=True)
class Rows:
    """The rows of one file: `columns[name][i]` is a string, or whatever JSON or Parquet hold; None where there is none.

    lines[i]: the line that row i starts at, counted from 1. again: the way out of a broken file, which ends its errors.
    unit: what `lines` count, if not lines. arrow: the Arrow table that they are of, where all of one was read.
    """

    path: Path
    columns: Mapping[str, list[Any]]
    lines: Sequence[int]
    again: str
    unit: str = "line"
    arrow: Any = None

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, name: str) -> list[Any]:
        """Gives a column. Raises UserError where there is none of this name."""
        if name not in self.columns:
            raise UserError(f"{self.path} has no column {name!r}: {did_you_mean(name, self.columns)}; {self.again}")
        return self.columns[name]

    def at(self, rows: Sequence[int]) -> "Rows":
        """Takes the rows at these positions, in that order."""
        columns = {name: [column[i] for i in rows] for name, column in self.columns.items()}
        return replace(self, columns=columns, lines=[self.lines[i] for i in rows], arrow=None)

    def where(self, i: int, column: str | None = None) -> str:
        """Names row i as an error does."""
        return f"{self.path}, {self.unit} {self.lines[i]}" + (f", column {column!r}" if column else "")

    def wrong(self, i: int, column: str, expected: str) -> UserError:
        """Makes the error about one cell."""
        return UserError(f"{self.where(i, column)}: {shown(self.columns[column][i])}, expected {expected}; {self.again}")

    def texts(self, name: str) -> list[str]:
        """Reads a column of texts, without space around. Raises UserError where one is empty or none at all."""
        texts = []
        for i, value in enumerate(self[name]):
            if not isinstance(value, str) or not value.strip():
                raise self.wrong(i, name, "a text")
            texts.append(value.strip())
        return texts

    def posts(self, name: str) -> list[str]:
        """Reads a column of texts as posts: space collapsed, half an emoji made "?". Raises UserError as `texts` does."""
        posts = [as_post(text) for text in self.texts(name)]
        for i, post in enumerate(posts):
            if len(post) > LONGEST:
                raise self.wrong(i, name, f"a post of at most {LONGEST:,} characters, found {len(post):,}")
        return posts

    def array(self, name: str, low: float = -np.inf, high: float = np.inf, *, gaps: bool = False) -> np.ndarray:
        """Reads a column of numbers, (N,) float64; with `gaps`, NaN where the file gives none.

        Raises UserError where one is no number, or lies outside.
        """
        column = [None if gaps and value in NOTHING else value for value in self[name]]
        between = f" from {low} to {high}" if np.isfinite([low, high]).all() else ""
        try:
            numbers = np.array(column, np.float64).reshape(len(column))
        except (TypeError, ValueError):
            wrong = next(i for i, value in enumerate(column) if not (_numeric(value) or (gaps and value is None)))
            raise self.wrong(wrong, name, f"a number{between}") from None
        fits = (np.isfinite(numbers) & (low <= numbers) & (numbers <= high)) | (gaps & np.isnan(numbers))
        if not fits.all():
            raise self.wrong(int(np.argmin(fits)), name, f"a number{between}")
        return numbers

    def flags(self, name: str, *, gaps: bool = False) -> np.ndarray:
        """Reads a column of yes and no as (N,) float64 of 0 and 1; with `gaps`, NaN where the file gives neither."""
        meant: dict[Any, float] = dict.fromkeys(YES, 1.0) | dict.fromkeys(NO, 0.0)
        if gaps:
            meant |= dict.fromkeys(NOTHING, np.nan)
        flags: list[float] = []
        try:
            flags.extend(meant[value] for value in self[name])
        except (KeyError, TypeError):
            raise self.wrong(len(flags), name, "true or false, or 1 or 0") from None
        return np.array(flags, np.float64)

    def positions(
        self, name: str, known: Mapping[str, int] | Sequence[str], meant: Callable[[str], str] = str.strip
    ) -> list[int]:
        """Reads a column of names as the numbers, or the places, that they have. meant: makes a cell one of the known names.

        Raises UserError where one is not known.
        """
        known = known if isinstance(known, Mapping) else {name: i for i, name in enumerate(known)}
        found = []
        for i, value in enumerate(self[name]):
            if (read := meant(str(value))) not in known:
                raise self.wrong(i, name, f"one of {', '.join(known)}")
            found.append(known[read])
        return found


def _numeric(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True


def ids(own: Sequence[Any], posts: int, corpus: str) -> list[str]:
    """Gives the posts' own ids, if all have one and no two the same; else the corpus' name and a post's place."""
    given = [str(one) for one in own]
    return given if len(set(given)) == posts else [f"{corpus}_{i}" for i in range(posts)]


def as_post(text: str) -> str:
    """The text with its space collapsed and half an emoji made "?"."""
    return sound(" ".join(text.split()))


def sound(value: Any) -> Any:
    """Gives the value; if a text, without halves of emojis, which are no text that could be written."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def shown(value: object) -> str:
    """Shows a value as an error quotes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
