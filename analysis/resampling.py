"""Draws posts again and again; every metric of every run is computed of each draw by one product of matrices.

A draw of N posts with replacement is a row of counts. Counts (R, N) times the indicators of all runs (N, runs × K) gives the
sums that the metrics are formulas over (see outcomes.py), for all runs from the same draws: what a pair of runs shares by
having seen the same posts stays in the differences. Sums of whole numbers are exact in float32.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from outcomes import Array, Measure

CHUNK = 1 << 20  # counts held at a time


def counts(size: int, resamples: int, draw: np.random.Generator) -> Iterator[Array]:
    """How often each of `size` units is in each draw of as many, (rows, size) float32, `resamples` rows in all."""
    rows = max(1, CHUNK // size)
    for start in range(0, resamples, rows):
        number = min(rows, resamples - start)
        places = draw.integers(0, size, (number, size)) + size * np.arange(number)[:, None]
        yield np.bincount(places.ravel(), minlength=number * size).reshape(number, size).astype(np.float32)


def flips(size: int, resamples: int, draw: np.random.Generator) -> Iterator[Array]:
    """Which units change sides, (rows, size) of 0 and 1: all 2^size ways where those are no more than `resamples`."""
    rows = max(1, CHUNK // size)
    every = size < 60 and 2**size <= resamples
    total = 2**size if every else resamples
    for start in range(0, total, rows):
        number = min(rows, total - start)
        if every:
            yield ((np.arange(start, start + number)[:, None] >> np.arange(size)) & 1).astype(np.float32)
        else:
            packed = draw.integers(0, 256, (number, -(-size // 8)), dtype=np.uint8)
            yield np.unpackbits(packed, axis=1, count=size).astype(np.float32)


def exact(indicators: Array) -> Array:
    """In float32 where that loses nothing, for speed."""
    return indicators.astype(np.float32) if np.array_equal(indicators, np.rint(indicators)) else indicators


def bootstrap(measures: Sequence[Measure], resamples: int, seed: int) -> Array:
    """The metric of each run in each draw of posts, (R, runs); all runs from the same draws."""
    of, joined = measures[0].of, exact(np.concatenate([measure.indicators for measure in measures], axis=1))
    drawn = counts(len(joined), resamples, np.random.default_rng(seed))
    sums = ((weights @ joined).astype(float) for weights in drawn)
    return np.concatenate([of(each.reshape(len(each), len(measures), -1)) for each in sums])


def swapped(a: Sequence[Measure], b: Sequence[Measure], resamples: int, seed: int) -> Array:
    """Mean metric of b less that of a after the two change sides at random posts, (R,); as many runs in each."""
    of = a[0].of
    of_a, of_b = (np.stack([measure.indicators for measure in side], axis=1) for side in (a, b))  # (N, n, K)
    change, (size, runs, width) = of_b - of_a, of_a.shape
    flat, found = exact(change.reshape(size, -1)), []
    for moved in flips(size, resamples, np.random.default_rng(seed)):
        sums = (moved @ flat).astype(float).reshape(-1, runs, width)
        found.append((of(of_b.sum(axis=0) - sums) - of(of_a.sum(axis=0) + sums)).mean(axis=1))
    return np.concatenate(found)
