"""Says in a row and in a sentence how a comparison ended, and all that the verdict stands on."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from intervals import RUNS, Scored, mean_interval, within
from many_comparisons import holm
from results import note
from scipy import stats
from significance import Finding
from table import Cell

UNDECIDED = "cannot be decided"


class Comparison(NamedTuple):
    """Two systems by one metric. test, over: what b was put to against a, in words, and what that was over.

    lower: whether less of the metric is better.
    """

    metric: str
    a: str
    b: str
    finding: Finding
    test: str
    over: str
    lower: bool


class Judgement(NamedTuple):
    """told: better, worse, no difference shown, cannot be decided. p, floor: after Holm; floor, were its p the smallest."""

    told: str
    p: float
    floor: float


class Saying(NamedTuple):
    """How results are said. family: how many comparisons Holm is over."""

    alpha: float
    family: int
    digits: int
    rope: float | None

    @property
    def confidence(self) -> str:
        return f"{100 * (1 - self.alpha):g} % interval"


def judged(comparisons: Sequence[Comparison], alpha: float) -> list[Judgement]:
    """The verdict on each, after Holm over all; not decided is what Holm would leave even at its smallest p."""
    ps = [of.finding.p for of in comparisons]
    judgements = []
    for i, (p, of) in enumerate(zip(holm(ps), comparisons, strict=True)):
        floor = holm([of.finding.floor if k == i else other for k, other in enumerate(ps)])[i]
        better = "better" if (of.finding.difference > 0) != of.lower else "worse"
        told = better if p <= alpha else UNDECIDED if floor > alpha else "no difference shown"
        judgements.append(Judgement(told, p, floor))
    return judgements


def bayes(finding: Finding, rope: float, *, lower: bool) -> tuple[float, float, float]:
    """Probabilities that the second is worse, practically equal (within the region ± rope), better.

    The posterior of the difference is Student's t with its standard error, which p and interval of a t-test are of, or where
    seeds are paired and posts drawn the mix of two: the Bayesian correlated t-test (Benavoli et al. 2017, JMLR 18:77), the
    correlation of runs that saw the same posts being that which the bootstrap found rather than a rule of thumb for
    cross-validation. Without an error it is all at the difference.
    """
    if finding.error:
        tail = finding.tail or (lambda off: 2 * float(stats.t.sf(off / finding.error, finding.df)))
        halves = (tail(abs(end - finding.difference)) / 2 for end in (-rope, rope))
        below, above = (
            half if end < finding.difference else 1 - half for half, end in zip(halves, (-rope, rope), strict=True)
        )
    else:
        below, above = float(finding.difference < -rope), float(finding.difference <= rope)
    return (1 - above, above - below, below) if lower else (below, above - below, 1 - above)


def short(value: float, digits: int = 3) -> str:
    """A number as prose writes it.

    >>> short(0.0123), short(-0.5), short(12.0)
    ('.012', '-.500', '12.000')
    """
    return f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"


def short_p(p: float) -> str:
    return "p < .001" if p < 0.0005 else f"p = {short(p)}"


def _runs(needed: float | None) -> str:
    return "" if needed is None else "none" if math.isinf(needed) else f"{needed:.0f}"


def sentence(of: Comparison, judgement: Judgement, picks: Sequence[str], say: Saying) -> str:
    """The verdict in plain words.

    picks: what is to be said of how runs were chosen.
    """
    found, told, digits = of.finding, judgement.told, say.digits
    sign = -1 if told in ("better", "worse") and found.difference < 0 else 1  # "worse by .02", not by -.02
    ends = sorted([sign * found.low, sign * found.high])
    seen = f"{short(sign * found.difference, digits)} {of.metric}"
    span = f"{say.confidence} {short(ends[0], digits)} to {short(ends[1], digits)}"
    holm_of = f" after Holm over {say.family}" if say.family > 1 else ""
    on = f"{span}; {short_p(judgement.p)}{holm_of}, {of.test}"
    if told in ("better", "worse"):
        words = f"{of.b} is {told} than {of.a} by {seen} ({on})."
    elif told == UNDECIDED:
        least = ", ".join(short_p(p)[2:].removeprefix("= ") for p in (found.floor, judgement.floor)[: 1 + bool(holm_of)])
        words = (
            f"{of.b} against {of.a} cannot be decided with {of.over}: the smallest p that can come out is {least}{holm_of}, "
            f"above α = {short(say.alpha)}. Seen: {seen} ({on})."
        )
    else:
        words = f"{of.b} against {of.a}: no difference was shown, {seen} ({on})."
    if told not in ("better", "worse"):
        posts = " × " in of.over  # which hide what seeds alone would show
        many = "no number of runs would do: it takes more posts" if posts else f"more than {RUNS[-1]:,.0f} runs a side"
        runs = many if found.needed == math.inf else f"{_runs(found.needed)} runs a side"
        if math.isnan(found.detectable):
            words += " Nothing varies here, so what would be found is not known."
        elif math.isinf(found.detectable):  # p cannot come down to the level with so few
            words += "" if found.needed is None else f" To find the one seen with a power of 80 % takes {runs}."
        else:
            words += f" One of {short(found.detectable, digits)} would be found with a power of 80 %"
            words += "." if found.needed is None else f"; for the one seen, {runs}."
    if say.rope is not None:
        worse, same, more = bayes(found, say.rope, lower=of.lower)
        words += f" Probability of worse {short(worse)}, equal within ±{say.rope:g} {short(same)}, better {short(more)}."
    return " ".join([words, *(f"{text}." for text in (*found.notes, *picks))])


def row_of(system: Scored, metric: str, say: Saying) -> dict[str, Cell]:
    """What is known of a system by itself, by the names that CSV and JSON have."""
    ends = mean_interval(system, say.alpha)
    low, high = within(metric, *ends)
    n, mean = float(len(system.values)), float(system.values.mean())
    if low > ends[0] or high < ends[1]:
        whole = " to ".join(short(end, say.digits) for end in ends)
        note(f"{metric}: the interval of the mean {short(mean, say.digits)}, {whole}, is cut to what the metric can be")
    return {"metric": metric, "runs": n, "mean": mean, "low": low, "high": high}


def compared_row(of: Comparison, judgement: Judgement, words: str, say: Saying) -> dict[str, Cell]:
    """What is known of it beside the baseline."""
    found = of.finding
    row: dict[str, Cell] = {
        "difference": found.difference,
        "difference_low": found.low,
        "difference_high": found.high,
        "p": found.p,
        "p_holm": judgement.p,
        "smallest_p": found.floor,
        "effect": found.effect[0],
        "effect_size": found.effect[1],
        "standard_error": found.error,
        "df": found.df,
        "detectable": found.detectable,
        "runs_needed": found.needed,
    }
    if say.rope is not None:
        row |= zip(("p_worse", "p_equal", "p_better"), bayes(found, say.rope, lower=of.lower), strict=True)
    return {**row, "test": of.test, "verdict": judgement.told, "sentence": words}


def shown_cells(row: Mapping[str, Cell], say: Saying) -> dict[str, Cell]:
    """The cells of a row as a reader wants them: numbers that belong together in one."""

    def number(key: str) -> str:
        value = row.get(key)
        return f"{value:.{say.digits}f}" if isinstance(value, float) and not math.isnan(value) else ""

    def span(low: str, high: str) -> str:
        return f"{number(low)} to {number(high)}" if number(low) else ""

    def p(key: str) -> str:
        value = row.get(key)
        if not isinstance(value, float):
            return ""
        return f"{value:.3f}" if value >= 0.0005 else "<0.001" if value else "none"

    needed = row.get("runs_needed")
    cells: dict[str, Cell] = {
        "mean": number("mean"),
        say.confidence: span("low", "high"),
        "difference": number("difference"),
        f"its {say.confidence}": span("difference_low", "difference_high"),
        "p": p("p_holm"),
        "smallest p": p("smallest_p"),
        "effect": f"{row['effect']} {number('effect_size')}" if number("effect_size") else "",
        "detectable": "none" if row.get("detectable") == math.inf else number("detectable"),
        "runs needed": _runs(needed if isinstance(needed, float) else None),
    }
    if "p_worse" in row:
        cells["worse/equal/better"] = "/".join(map(number, ("p_worse", "p_equal", "p_better")))
    elif say.rope is not None:
        cells["worse/equal/better"] = ""
    if "letters" in row:
        cells["letters"] = row["letters"]
    return {**cells, "verdict": row.get("verdict", "")}
