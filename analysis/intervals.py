"""Intervals of means over seeds, over posts and over both; the differences that so many runs can find, and how many would.

Posts are drawn (see resampling.py); seeds, of which there are few, enter by their variance and Student's t.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from outcomes import Array, Measure
from scipy import optimize, stats

POWER = 0.8
# What a metric can be, by its name; of others, as of a loss, nothing is known.
RANGES = {
    re.compile(r"_(f1|em|accuracy|precision|recall|auroc|auc|auprc|ece|false_(positive|negative)_rate)(_|$)"): (0.0, 1.0),
    re.compile(r"_(matthews|quadratic_kappa|spearman|pearson|sufficiency|comprehensiveness)(_|$)"): (-1.0, 1.0),
}
RUNS = np.unique(np.geomspace(2, 10_000, 400).round())  # that are looked at: each up to 40, then one in so many


@dataclass(frozen=True)
class Scored:
    """One system by one metric. values: its runs', (n,), in the order of seeds. lower: whether less of the metric is better.

    draws: each run's in each draw of units (posts or groups of them), (R, n), all systems' from the same; None where the
    metric cannot be recomputed. measures: a run's, over units.
    """

    values: Array
    seeds: tuple[int, ...]
    draws: Array | None = None
    measures: tuple[Measure, ...] = ()
    lower: bool = False

    @property
    def units(self) -> int:
        return len(self.measures[0].indicators)


class Spread(NamedTuple):
    """The variance of a mean over runs, in parts. of_runs: of each side's runs, with their number. shared: what remains.

    units: posts, or groups of them, that the remainder is of.
    """

    of_runs: Sequence[tuple[float, int]]
    shared: float
    units: float

    def mixed(self, runs: Array | None = None) -> tuple[Array, Array, Array]:
        """Standard error, and the weight of one Student's t against that of the posts, with its degrees of freedom.

        runs: a side, in place of those that there are. Two sides: Satterthwaite's t, as Welch's. One side (seeds paired): t
        of the runs and of the posts, weighed by their variances (Cochran and Cox 1950; Mickey and Brown 1966,
        doi:10.1214/aoms/1177699517), since Satterthwaite's (with one side, Hillis's of 2007) rejects .078 of true nulls at
        three runs where the posts add a tenth to the variance, and this at most .050. Two runs a side, where both reject
        more: t of one degree of freedom.
        """
        counts = [np.asarray(n if runs is None else runs, float) for _, n in self.of_runs]
        parts = [variance / n for (variance, _), n in zip(self.of_runs, counts, strict=True)]
        total, least = np.maximum(sum(parts) + self.shared, 0), np.min(counts, axis=0)
        few = (least == 2) & (self.shared > 0)
        if len(parts) == 1:
            weight = np.minimum(1, np.divide(parts[0], total, out=np.ones(total.shape), where=total > 0))
            return np.sqrt(total), np.where(few, 1.0, weight), least - 1
        below = sum(part**2 / (n - 1) for part, n in zip(parts, counts, strict=True))
        below = below + max(self.shared, 0) ** 2 / (self.units - 1)
        df = np.maximum(np.divide(total**2, below, out=np.full(total.shape, np.inf), where=below > 0), least - 1)
        return np.sqrt(total), np.ones(total.shape), np.where(few, 1.0, df)

    def reach(self, tail: float, runs: Array | None = None) -> tuple[Array, Array]:
        """Standard error, and how many of them lie on one side of the mean but for this tail."""
        error, weight, df = self.mixed(runs)
        return error, weight * stats.t.isf(tail, df) + (1 - weight) * stats.t.isf(tail, self.units - 1)

    def df(self, tail: float) -> float:
        """The degrees of freedom of the one Student's t that reaches as far."""
        (_, quantile), (_, weight, df) = self.reach(tail), map(float, self.mixed())
        if weight == 1:
            return df
        ends = (min(df, self.units - 1) * (1 - 1e-6), max(df, self.units - 1) * (1 + 1e-6))
        return float(optimize.brentq(lambda of: stats.t.isf(tail, of) - quantile, *ends))

    def p(self, difference: float) -> float:
        """The two-sided p at which the interval would just reach 0."""
        error, weight, df = map(float, self.mixed())
        if not error:
            return float(difference == 0)
        high, low = (float(stats.t.sf(abs(difference) / error, of)) for of in (df, self.units - 1))
        if weight == 1 or high == low or not low:
            return min(1.0, 2 * high)

        def beyond(power: float) -> float:
            return float(self.reach(10**power)[1]) - abs(difference) / error

        ends = sorted([math.log10(low) - 1e-9, math.log10(high) + 1e-9])
        return float(2 * 10 ** optimize.brentq(beyond, *ends))


def crossed(sides: Sequence[tuple[Array, Array]], units: int) -> Spread:
    """The variance of a sum of means over runs, where runs and posts are drawn and each run saw each post.

    sides: values (n,) and draws (R, n) of each. The posts' part is the bootstrap's variance of the sum. The runs' part is
    their sample variance, but the bootstrap already holds what one run's posts add to it, and is relieved of that:
    σ²(runs)/n + σ²(posts) + σ²(runs×posts)/n, the two-way layout of readers and cases of Obuchowski and Rockette (1995,
    doi:10.1080/03610919508813243).

    Not a percentile of draws of seeds and posts: n seeds drawn with replacement vary by (n - 1)/n of what seeds do, and
    percentiles know no Student's t, so at three seeds it rejects a true null two or three times too often; and where runs
    and posts are crossed, drawing both counts their interaction thrice (Owen 2007, doi:10.1214/07-AOAS122). Nor may runs
    vary less than their posts alone make them: where the sample says so, it is luck, and the posts' share is taken.
    """
    inflated = units / (units - 1)
    posts = np.sum([draws.mean(axis=1) for _, draws in sides], axis=0).var(ddof=1) * inflated
    within = [float((draws - draws.mean(axis=0)).var(axis=1, ddof=1).mean()) * inflated for _, draws in sides]
    of_runs = [(max(float(values.var(ddof=1)), w), len(values)) for (values, _), w in zip(sides, within, strict=True)]
    shared = posts - sum(w / n for w, (_, n) in zip(within, of_runs, strict=True))
    return Spread(of_runs, float(shared), units)


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean over seeds; NaN for one seed, which says nothing of others.

    >>> [round(end, 3) for end in interval([0.70, 0.72, 0.74])]
    [0.67, 0.77]
    """
    if len(values) < 2:
        return math.nan, math.nan
    reach = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values)
    return float(np.mean(values) - reach), float(np.mean(values) + reach)


def half(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of their mean; None of one value."""
    return interval(values)[1] - float(np.mean(values)) if len(values) > 1 else None


def within(metric: str, low: float, high: float) -> tuple[float, float]:
    """Cuts an interval of a mean to what the metric can be.

    It holds the true mean as often as before, for that lies there too; Student's, of two seeds, knows nothing of it.

    >>> within("test_label_macro_f1", -0.2, 1.4), within("test_label_matthews", -0.2, 1.4), within("val_loss", -0.2, 1.4)
    ((0.0, 1.0), (-0.2, 1.0), (-0.2, 1.4))
    """
    least, most = next((ends for name, ends in RANGES.items() if name.search(metric)), (-math.inf, math.inf))
    return max(low, least), min(high, most)  # in this order, for NaN is neither


def beyond(metric: str, values: Sequence[float]) -> bool:
    """Tells whether the 95 % interval of their mean reaches beyond what the metric can be."""
    low, high = interval(values)
    least, most = within(metric, low, high)
    return least > low or most < high


def mean_interval(system: Scored, alpha: float) -> tuple[float, float]:
    """The interval of one system's mean, over what there is: seeds and posts, either alone, or neither, NaN."""
    if system.draws is None:
        return interval(system.values.tolist(), 1 - alpha)
    if system.units < 2:
        return math.nan, math.nan
    if len(system.values) == 1:
        return percentiles(system.draws[:, 0], system.units, alpha)
    error, quantile = crossed([(system.values, system.draws)], system.units).reach(alpha / 2)
    reach = float(error * quantile)
    return float(system.values.mean()) - reach, float(system.values.mean()) + reach


def percentiles(draws: Array, units: int, alpha: float) -> tuple[float, float]:
    """The bootstrap's percentile interval, widened for few units: t for the normal, n - 1 for n.

    Hesterberg's expanded percentiles (2015, doi:10.1080/00031305.2015.1089789).
    """
    tail = tail_of(alpha, units)
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def tail_of(alpha: float, units: int) -> float:
    """The share of draws beyond either end of the expanded percentile interval; `expanded` is its inverse."""
    return float(stats.norm.cdf(math.sqrt(units / (units - 1)) * stats.t.ppf(alpha / 2, units - 1)))


def expanded(tail: float, units: int) -> float:
    """The two-sided p whose expanded percentile interval just reaches the value that this share of draws lies beyond."""
    return min(1.0, 2 * float(stats.t.cdf(stats.norm.ppf(tail) / math.sqrt(units / (units - 1)), units - 1)))


def errors_found(quantile: Array | float, inverse: Array | float) -> Array:
    """How many standard errors are found with a power of 80 % by Student's t beyond this quantile. inverse: of its df.

    Of the noncentral t (Abramowitz and Stegun 1964, 26.7.10): at few degrees of freedom up to a twentieth more than it
    takes, while the sum of two quantiles is up to a fifth less, since the error that is measured varies as well.
    """
    return quantile * (1 - inverse / 4) + stats.norm.ppf(POWER) * np.sqrt(1 + quantile**2 * inverse / 2)


def detectable(spread: Spread, level: float, runs: Array | None = None) -> Array:
    """The difference that is found at this level, two-sided, with a power of 80 %; with `runs` a side, if given."""
    error, quantile = spread.reach(level / 2, runs)
    _, weight, df = spread.mixed(runs)
    return error * errors_found(quantile, weight**2 / df + (1 - weight) ** 2 / (spread.units - 1))  # Satterthwaite's


def runs_needed(difference: float, spread: Spread, level: float, floor: Callable[[Array], Array] | None = None) -> float:
    """Runs a side from which a difference as great as the one seen is found with a power of 80 %; inf for none.

    floor: the smallest p of so many runs, where it must come down to the level too.
    """
    found = (detectable(spread, level, RUNS) <= abs(difference)) & (difference != 0)
    if floor is not None:
        found &= floor(RUNS) <= level
    return float(RUNS[found.argmax()]) if found.any() else math.inf
