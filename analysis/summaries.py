"""Makes one column of the runs of a name: means over seeds, how far they may be off, and which of them differ."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from many_comparisons import holm, letters
from results import Results, is_aside, leaves, note, sidecar
from table import Cell, Table

ALPHA = 0.05


def averaged(
    columns: Sequence[str],
    rows: Mapping[str, Sequence[float | None]],
    *,
    interval: bool = False,
    letters: bool = False,
    settings: Mapping[str, Sequence[Cell]] | None = None,
    **options: Any,
) -> Table:
    """The table with one column for the runs of a name: the mean of those that have the metric, and its spread.

    That is the standard deviation (n - 1) of two or more; with `interval` half of Student's 95 % interval of the mean.
    Columns whose means are of unlike numbers of runs are noted. letters: whether each row gets them, see `lettered`.
    settings: rows that come first, a value a run; where the runs of a name have several, all of them.
    """
    from intervals import beyond, half  # and scipy

    names = list(dict.fromkeys(columns))

    def by_name(values: Sequence[Any]) -> list[list[Any]]:
        return [[v for n, v in zip(columns, values, strict=True) if n == name and v is not None] for name in names]

    means: dict[str, Sequence[Cell]] = {}
    for key, values in (settings or {}).items():
        means[key] = [", ".join(dict.fromkeys(map(str, of))) for of in by_name(values)]
    spread: dict[str, list[float | None]] = {}
    shown: dict[str, list[str]] = {}
    for metric, values in rows.items():
        known = by_name(values)
        means[metric] = [fmean(of) if of else None for of in known]
        spread[metric] = [half(of) if interval else stdev(of) if len(of) > 1 else None for of in known]
        if letters:
            shown[metric] = lettered(known)
        if len({len(of) for of in known if of}) > 1:
            runs = ", ".join(f"{len(of)} of {name}" for name, of in zip(names, known, strict=True) if of)
            note(f"{metric}: means of unlike numbers of runs, {runs}")
    wide = [metric for metric, values in rows.items() if interval and any(beyond(metric, of) for of in by_name(values))]
    if wide:
        note(f"± reaches beyond what the metric can be in {len(wide)} rows, as {wide[0]}: too few runs to say more")
    measured = "± 95 %" if interval else "sd"
    return Table(names, means, spread=spread, measured=measured, letters=shown, **options)


def lettered(values: Sequence[Sequence[float]]) -> list[str]:
    """Letters of a row's means: those that share one were not shown to differ at 5 %, which is not that they are equal.

    By Welch's t-test over seeds, Holm's correction over all pairs, and Piepho's display. One seed differs from nothing.
    """
    from scipy import stats  # which other tables do without

    known = [place for place, of in enumerate(values) if of]
    pairs = [(i, j) for i in known for j in known if j < i]
    ps = []
    for i, j in pairs:
        enough = min(len(values[i]), len(values[j])) > 1
        p = float(stats.ttest_ind(values[i], values[j], equal_var=False).pvalue) if enough else 1.0
        ps.append(1.0 if p != p else p)  # no number where neither varies
    differ = {frozenset(pair) for pair, p in zip(pairs, holm(ps), strict=True) if p <= ALPHA}
    found = letters([fmean(values[i]) for i in known], lambda a, b: frozenset((known[a], known[b])) in differ)
    return ["" if place not in known else found[known.index(place)] for place in range(len(values))]


def settings(runs: Sequence[Results]) -> dict[str, list[Cell]]:
    """The keys of config.yaml in which the runs differ, but for those that make no other run, with each run's value.

    Where another option of a group was chosen, that stands for all keys of it. None for a run without config.yaml, and for a
    key that it does not have.
    """
    each: list[dict[str, Any]] = []
    for run in runs:
        kept = [(key, value) for key, value in leaves(sidecar(run, "config.yaml") or {}) if not is_aside(key)]
        choices = {key.removeprefix("choices."): option for key, option in kept if key.startswith("choices.")}
        named = {key: value for key, value in kept if "._" not in f".{key}" and not key.startswith("choices")}  # no classes
        each.append({**choices, **named})
    keys = [*dict.fromkeys(key for of in each for key in of)]
    differing = [key for key in keys if len({str(of.get(key)) for of in each}) > 1]
    groups = {key.partition("@")[2] or key for key in differing}
    own = [key for key in differing if not any(key.startswith(f"{group}.") for group in groups)]
    return {key: [None if key not in of else _typed(of[key]) for of in each] for key in own}


def _typed(value: Any) -> str:
    """A value as one would type it: None is a word there.

    >>> _typed(None), _typed(True), _typed(0.5), _typed("1 4")
    ('null', 'true', '0.5', '1 4')
    """
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
