"""What a measurement gives, and what may be said of several rounds of it."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

Stage = Literal["train", "eval"]
Tasks = tuple[str, ...]
THREE: Tasks = ("label", "target", "rationale")


@dataclass(frozen=True)
class Reading:
    """One pass over posts. tokens: real ones; squares: Σ (tokens of a post)²; padded: positions computed, with padding.

    peak: the best FLOP/s of bf16 products in the same process just before or after the pass; 0 where nobody measured.
    memory: the most bytes that the process held during it, of a GPU or, on a CPU, of the machine; 0 where nobody measured.
    """

    posts: int
    seconds: float
    tokens: int
    squares: int
    padded: int
    peak: float = 0.0
    memory: int = 0

    @property
    def posts_per_second(self) -> float:
        return self.posts / self.seconds


class Spread(NamedTuple):
    """The median of several rounds, with the least and the greatest of them."""

    middle: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """Median, minimum and maximum.

    >>> spread([3.0, 1.0, 2.0])
    Spread(middle=2.0, low=1.0, high=3.0)
    """
    known = list(values)
    return Spread(statistics.median(known), min(known), max(known))


def times(value: Spread | None) -> str:
    """A ratio with the least and greatest of the rounds.

    >>> times(Spread(3.14159, 3.0, 3.5))
    '3.14 (3.00–3.50)'
    """
    return "" if value is None else f"{value.middle:.2f} ({value.low:.2f}–{value.high:.2f})"


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """The spread of the ratios of each round: what slows the machine in one round slows both sides of it.

    >>> ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0])
    Spread(middle=2.0, low=2.0, high=3.0)
    """
    return spread(a / b for a, b in zip(numerators, denominators, strict=True))


def one_after_another(readings: Sequence[Reading]) -> Reading:
    """Passes of separate models over the same posts as one reading: seconds and work add up, posts do not.

    A task that annotates only some posts has a shorter pass; the posts are those of the longest.
    """
    return Reading(
        posts=max(r.posts for r in readings),
        seconds=sum(r.seconds for r in readings),
        tokens=sum(r.tokens for r in readings),
        squares=sum(r.squares for r in readings),
        padded=sum(r.padded for r in readings),
        peak=sum(r.peak * r.seconds for r in readings) / sum(r.seconds for r in readings),
        memory=max(r.memory for r in readings),
    )


def lasting(measure: Callable[[], Reading], seconds: float) -> Reading:
    """Passes again and again until they have taken so many seconds, one at least, as one reading of all.

    The machine's mood changes within seconds: a pass of two would catch one of them, where a rival's of twenty has several.
    """
    found = [measure()]
    while sum(reading.seconds for reading in found) < seconds:
        found.append(measure())
    return replace(one_after_another(found), posts=sum(reading.posts for reading in found))


@dataclass(frozen=True)
class Line:
    """A straight line through points, by least squares. r2: the share of the variance that it explains."""

    slope: float
    intercept: float
    r2: float


def fit(x: Sequence[float], y: Sequence[float]) -> Line:
    """The least-squares line.

    >>> fit([1, 2, 3], [5, 7, 9])
    Line(slope=2.0, intercept=3.0, r2=1.0)
    """
    slope, intercept = statistics.linear_regression(x, y)
    return Line(slope, intercept, 1.0 if len(set(y)) == 1 else statistics.correlation(x, y) ** 2)


def org(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in org format: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "| "
        + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in (head, *rows)
    ]
    return "\n".join([lines[0], "|" + "+".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
