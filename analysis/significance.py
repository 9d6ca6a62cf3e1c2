"""Tests whether one system is better than another: over posts, over seeds, over both; intervals and power.

Every test gives a Finding: the difference of means (b less a), its interval, p, the smallest p that this many runs or posts
can give, and what it would take to see more. scipy does the mathematics.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from intervals import Scored, Spread, crossed, detectable, errors_found, expanded, percentiles, runs_needed, tail_of
from outcomes import Array
from resampling import swapped
from scipy import stats
from stochastic_order import net_distance_p, upper_bound, violation


class Cannot(Exception):
    """A test that these runs cannot be put to, and why."""


class How(NamedTuple):
    """How to test. level: α of one comparison of several at Holm's first step, which power is computed for."""

    alpha: float
    level: float
    resamples: int
    seed: int
    paired: bool


@dataclass(frozen=True)
class Finding:
    """A comparison. floor: the smallest p that can come out. error: of the difference; df: of the t that makes the interval.

    detectable: the difference that is found with a power of 80 %; inf where p cannot come down to the level, NaN where
    nothing varies. needed: runs a side to find the one seen with that power; inf where no number would do, None where one
    run cannot say. effect: the name of the effect size, then its size. tail: the two-sided p of a value so far from the
    difference seen; None of t by df.
    """

    difference: float
    low: float
    high: float
    p: float
    floor: float
    error: float
    df: float
    detectable: float
    effect: tuple[str, float]
    needed: float | None = None
    notes: Sequence[str] = field(default_factory=tuple)
    tail: Callable[[float], float] | None = None


def _hedges(a: Scored, b: Scored) -> tuple[str, float]:
    """Hedges' g: the difference in standard deviations over seeds, less its bias at few."""
    n = len(a.values) + len(b.values) - 2
    pooled = (a.values.var(ddof=1) * (len(a.values) - 1) + b.values.var(ddof=1) * (len(b.values) - 1)) / n
    return "g", (1 - 3 / (4 * n - 1)) * _difference(a, b) / math.sqrt(pooled) if pooled else math.nan


def _difference(a: Scored, b: Scored) -> float:
    return float(b.values.mean() - a.values.mean())


def _pairs(a: Scored, b: Scored) -> Array:
    """Differences of runs of one seed, (n,)."""
    if sorted(a.seeds) != sorted(b.seeds):
        raise Cannot(f"pairs runs of one seed, but one system has seeds {_list(a.seeds)}, the other {_list(b.seeds)}")
    return b.values - a.values


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _several(a: Scored, b: Scored) -> None:
    if min(len(a.values), len(b.values)) < 2:
        raise Cannot("is over seeds, and one system has one run: one seed says nothing of others")


def _by_t(a: Scored, b: Scored, how: How, spread: Spread, *, floor: float = 0.0, **given: Any) -> Finding:
    """A finding whose interval is Student's, and p and the rest, where they are not given.

    floor: where it is above the level, no difference is detectable, however great.
    """
    difference, (error, quantile) = _difference(a, b), spread.reach(how.alpha / 2)
    if not error and difference:
        raise Cannot("has no error to measure the difference by: the runs of each system gave one and the same value")
    found = {
        "p": spread.p(difference),
        "floor": floor,
        "effect": _hedges(a, b),
        "needed": runs_needed(difference, spread, how.level),
        "low": difference - float(error * quantile),
        "high": difference + float(error * quantile),
        "error": float(error),
        "df": spread.df(how.alpha / 2),
        "detectable": math.inf if floor > how.level else float(detectable(spread, how.level)) or math.nan,
        "tail": spread.p,
    }
    return Finding(difference, **{**found, **given})


def _of_seeds(a: Scored, b: Scored, *, paired: bool) -> Spread:
    if paired:
        return Spread([(float(_pairs(a, b).var(ddof=1)), len(a.values))], 0.0, math.inf)
    return Spread([(float(side.values.var(ddof=1)), len(side.values)) for side in (a, b)], 0.0, math.inf)


def hierarchical(a: Scored, b: Scored, how: How) -> Finding:
    """Seeds × posts: posts are drawn (bootstrap), seeds enter by their variance and Student's t; see `crossed`.

    paired: runs of one seed are subtracted first, right whatever they share; else seeds are taken as unrelated.
    """
    _several(a, b)
    draws_a, draws_b = _draws(a, b)
    pairs = [(_pairs(a, b), draws_b - draws_a)] if how.paired else [(b.values, draws_b), (-a.values, -draws_a)]
    return _by_t(a, b, how, crossed(pairs, a.units))


def _few_draws(floor: float, share: float, how: How) -> list[str]:
    """Says how many draws it takes where p cannot come down to the level for want of them: one of them is this share."""
    if floor <= how.level or share < 1e-6:  # more than a million draws: it is posts that are few
        return []
    unit = 10 ** (len(str(math.ceil(1 / share))) - 2)  # two digits are plenty
    return [
        f"{how.resamples:,} draws keep p above {how.level:.2g}, which the first of all comparisons must reach: type "
        f"--resamples {math.ceil(1 / share / unit) * unit}"
    ]


def _detectable(error: float, units: int, level: float, floor: float) -> float:
    """The same over posts alone; inf where the smallest p is above the level, NaN without an error."""
    found = float(errors_found(stats.t.isf(level / 2, units - 1), 1 / (units - 1))) * error
    return math.inf if floor > level else found or math.nan


def _draws(a: Scored, b: Scored) -> tuple[Array, Array]:
    if a.draws is None or b.draws is None:
        raise Cannot("is over posts, and this metric cannot be recomputed from predictions.parquet")
    if a.units < 2:
        raise Cannot("needs two groups of posts or more")
    return a.draws, b.draws


def paired_bootstrap(a: Scored, b: Scored, how: How) -> Finding:
    """Posts alone, these runs as they are: share of draws in which the sign turns (Efron, Tibshirani 1993; Koehn 2004).

    Expanded percentiles (see `percentiles`), p by inverting them. Where groups of posts are drawn: the cluster bootstrap.
    """
    draws_a, draws_b = _draws(a, b)
    draws, units, n = draws_b.mean(axis=1) - draws_a.mean(axis=1), a.units, len(draws_a)
    error = float(draws.std(ddof=1)) * math.sqrt(units / (units - 1))
    low, high = percentiles(draws, units, how.alpha)
    beyond = min((draws <= 0).sum(), (draws >= 0).sum())
    difference, floor = _difference(a, b), expanded(1 / (n + 1), units)
    return Finding(
        difference,
        low,
        high,
        p=expanded((1 + beyond) / (n + 1), units),
        floor=floor,
        error=error,
        df=units - 1,
        detectable=_detectable(error, units, how.level, floor),
        effect=("d", difference / (error * math.sqrt(units)) if error else math.nan),
        notes=_few_draws(floor, tail_of(how.level, units), how),
    )


def permutation(a: Scored, b: Scored, how: How) -> Finding:
    """Posts alone: how often the difference is as great when the systems change sides at random posts (Noreen 1989).

    Its interval, which permutations do not give, is the bootstrap's.
    """
    boot = paired_bootstrap(a, b, how)
    if len(a.values) != len(b.values):
        raise Cannot(f"changes the sides of runs, and needs as many in each, given {len(a.values)} and {len(b.values)}")
    moved = swapped(a.measures, b.measures, how.resamples, how.seed)
    as_great = int((np.abs(moved) >= abs(boot.difference) - 1e-12).sum())
    every = a.units < 60 and 2**a.units <= how.resamples
    p = as_great / len(moved) if every else (1 + as_great) / (len(moved) + 1)
    floor = 2 / 2**a.units if every else max(1 / (len(moved) + 1), 2.0 ** (1 - a.units))
    few = [] if 2.0 ** (1 - a.units) > how.level else _few_draws(floor, how.level, how)
    found = _detectable(boot.error, a.units, how.level, floor)
    return Finding(**{**vars(boot), "p": p, "floor": floor, "detectable": found, "notes": few})


def mcnemar(a: Scored, b: Scored, how: How) -> Finding:
    """Posts that one run alone gets right: McNemar's exact test (1947), for accuracy of one run a side.

    Interval: Bonett and Price (2012, J. Educ. Behav. Stat. 37:479), adjusted Wald. Effect: odds of the discordant posts.
    """
    _draws(a, b)
    if len(a.values) > 1 or len(b.values) > 1:
        raise Cannot("compares one run with one run; give one each, or leave --test out")
    right = [side.measures[0].indicators for side in (a, b)]
    if a.lower:  # misses by one level, where none is greater
        raise Cannot("is for accuracy, and less of this metric is better")
    if right[0].shape[1] != 2 or not all(np.isin(each[:, 0], (0, 1)).all() and (each[:, 1] == 1).all() for each in right):
        raise Cannot("is for accuracy over posts that no group joins")
    first, second, posts = right[0][:, 0] > 0, right[1][:, 0] > 0, len(right[0])
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    up, down = (gained + 1) / (posts + 2), (lost + 1) / (posts + 2)
    error = math.sqrt((up + down - (up - down) ** 2) / (posts + 2))
    reach, floor = float(stats.norm.ppf(1 - how.alpha / 2)) * error, min(1.0, 2 * 0.5 ** (gained + lost))
    return Finding(
        _difference(a, b),
        up - down - reach,
        up - down + reach,
        p,
        floor=floor,
        error=error,
        df=posts - 1,
        detectable=_detectable(error, posts, how.level, floor),
        effect=("odds", gained / lost if lost else math.inf if gained else math.nan),
        notes=[f"{gained} posts right in {{b}} alone, {lost} in {{a}} alone"],
    )


def wilcoxon(a: Scored, b: Scored, how: How) -> Finding:
    """Seeds alone, pairs of one seed: Wilcoxon's signed ranks (1945), exact, with ties, where 2^n ≤ resamples.

    Interval, detectable difference and runs needed are those of the paired t-test. Effect: matched-pairs rank-biserial.
    """
    _several(a, b)
    pairs = _pairs(a, b).round(12)  # so that equal differences of doubles are ties
    changed = pairs[pairs != 0]
    ranks = stats.rankdata(np.abs(changed))
    exact = stats.PermutationMethod(n_resamples=how.resamples, rng=np.random.default_rng(how.seed))
    return _by_t(
        a,
        b,
        how,
        _of_seeds(a, b, paired=True),
        p=float(stats.wilcoxon(changed, method=exact).pvalue) if len(changed) else 1.0,
        floor=min(1.0, max(2.0 ** (1 - len(changed)), 0 if 2 ** len(changed) <= how.resamples else 2 / (how.resamples + 1))),
        effect=("r", float((ranks * np.sign(changed)).sum() / ranks.sum()) if len(changed) else 0.0),
        needed=runs_needed(
            _difference(a, b), _of_seeds(a, b, paired=True), how.level, lambda n: 2.0 ** (1 - np.asarray(n, float))
        ),
    )


def mann_whitney(a: Scored, b: Scored, how: How) -> Finding:
    """Seeds alone, unrelated: Mann and Whitney's U (1947), exact, with ties, where resamples allow. Effect: Cliff's δ.

    Interval, detectable difference and runs needed are those of Welch's t-test.
    """
    _several(a, b)
    exact = stats.PermutationMethod(n_resamples=how.resamples, rng=np.random.default_rng(how.seed))
    found, n, m = stats.mannwhitneyu(b.values, a.values, method=exact), len(b.values), len(a.values)
    return _by_t(
        a,
        b,
        how,
        _of_seeds(a, b, paired=False),
        p=float(found.pvalue),
        floor=_splits(n, m, how),
        effect=("δ", float(2 * found.statistic / (n * m) - 1)),
        needed=runs_needed(_difference(a, b), _of_seeds(a, b, paired=False), how.level, _least),
    )


def _splits(n: int, m: int, how: How) -> float:
    ways = math.comb(n + m, n)
    return 2 / ways if ways <= how.resamples else 2 / (how.resamples + 1)


def _least(runs: Array) -> Array:
    return np.array([2 / math.comb(2 * int(n), int(n)) if n < 20 else 0.0 for n in runs.tolist()])


def welch(a: Scored, b: Scored, how: How) -> Finding:
    """Seeds alone, unrelated: Welch's t-test (1947), and from three runs on a check of normality (Shapiro and Wilk 1965)."""
    _several(a, b)
    doubts = []
    for side, name in ((a, "{a}"), (b, "{b}")):
        if len(side.values) >= 3 and np.ptp(side.values) > 0 and (odd := float(stats.shapiro(side.values).pvalue)) < 0.05:
            doubts.append(f"{name}'s seeds are not normal (Shapiro p = {odd:.3f}): prefer --test mann_whitney")
    return _by_t(a, b, how, _of_seeds(a, b, paired=False), notes=doubts)


def aso(a: Scored, b: Scored, how: How) -> Finding:
    """Seeds alone, unrelated: almost stochastic order (del Barrio et al. 2018, arXiv:1705.01788; Dror et al. 2019).

    Effect: ε_min, below .5 where the better is almost stochastically the greater. That alone is no test at few seeds: n
    runs a side are in order at every quantile, ε = 0, in 2/(n + 1) of all deals of the same runs. So p is of the signed
    squared distance that ε divides, when the runs are dealt out anew; 1 where that speaks for the side of the lower mean.
    """
    _several(a, b)
    sides = [(-1 if a.lower else 1) * side.values for side in (a, b)]
    better, worse = sorted(sides, key=lambda values: -float(values.mean()))
    draw = np.random.default_rng(how.seed)
    bound = upper_bound(better, worse, how.alpha, draw)
    return _by_t(
        a,
        b,
        how,
        _of_seeds(a, b, paired=False),
        p=net_distance_p(better, worse, how.resamples, draw) if violation(better, worse) < 0.5 else 1.0,
        floor=_splits(len(better), len(worse), how),
        effect=("ε", bound),
        needed=runs_needed(_difference(a, b), _of_seeds(a, b, paired=False), how.level, _least),
        notes=[] if bound < 0.5 else [f"the order is not even almost stochastic, ε_min = {bound:.2f}"],
    )


TESTS: Mapping[str, Callable[[Scored, Scored, How], Finding]] = {
    "hierarchical": hierarchical,
    "bootstrap": paired_bootstrap,
    "permutation": permutation,
    "mcnemar": mcnemar,
    "wilcoxon": wilcoxon,
    "mann_whitney": mann_whitney,
    "welch": welch,
    "aso": aso,
}
