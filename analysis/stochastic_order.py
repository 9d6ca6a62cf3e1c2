"""Almost stochastic order: how far one sample of runs is from lying above another at every quantile."""

from typing import Any

import numpy as np
from scipy import stats

Array = np.ndarray[Any, Any]


def distances(x: Array, y: Array) -> tuple[Array, Array]:
    """∫ (F⁻¹ - G⁻¹)² over where x's quantile is the greater, and over where it is the lower; runs are on the last axis.

    >>> distances(np.array([1.0, 3.0]), np.array([2.0, 2.0]))
    (np.float64(0.5), np.float64(0.5))
    """
    n, m = x.shape[-1], y.shape[-1]
    ends = np.unique(np.concatenate([np.arange(n + 1) / n, np.arange(m + 1) / m]).round(12))
    middles = (ends[1:] + ends[:-1]) / 2
    above = np.sort(x, axis=-1)[..., (middles * n).astype(int)] - np.sort(y, axis=-1)[..., (middles * m).astype(int)]
    squares = above**2 * np.diff(ends)
    return (squares * (above > 0)).sum(axis=-1), (squares * (above < 0)).sum(axis=-1)


def violation(x: Array, y: Array) -> Array:
    """ε: the share of the squared distance in which x is the lower (del Barrio et al. 2018); a half where there is none."""
    above, below = distances(x, y)
    return np.divide(below, above + below, out=np.full(np.shape(above), 0.5), where=above + below > 0)


def upper_bound(x: Array, y: Array, alpha: float, draw: np.random.Generator, resamples: int = 1000) -> float:
    """ε_min: ε - z(α)·σ·√((n + m)/nm), σ by a bootstrap of the runs (Dror et al. 2019). In [0, 1]."""
    scale = np.sqrt(x.size * y.size / (x.size + y.size))
    again = violation(*(draw.choice(side, (resamples, len(side))) for side in (x, y)))
    deviation = (scale * (again - violation(x, y))).std()
    return float(np.clip(violation(x, y) - stats.norm.ppf(alpha) * deviation / scale, 0, 1))


def net_distance_p(x: Array, y: Array, resamples: int, draw: np.random.Generator) -> float:
    """p, two-sided, of the squared distance above less that below when runs are dealt out anew; exact where it can be."""

    def net(one: Array, other: Array, axis: int) -> Array:
        above, below = distances(np.moveaxis(one, axis, -1), np.moveaxis(other, axis, -1))
        return above - below

    return float(stats.permutation_test((x, y), net, n_resamples=resamples, vectorized=True, rng=draw).pvalue)
