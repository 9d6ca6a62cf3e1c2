"""Says whether one system is better than another, how sure that is, and what it would take to know.

The first system is the baseline. A system is a run, or a quoted glob of its seeds; parts that each learned some labels count
as one run a seed. A metric that can be recomputed from predictions.parquet is tested over posts, over seeds, or over both
(the default where there are several seeds); any other row of results.csv over seeds alone. p is after Holm, over all
comparisons of the table; letters are after Holm over all pairs: systems that share one were not shown to differ.
"""

import argparse
import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from functional_tests import read_groups
from intervals import Scored, mean_interval
from outcomes import Array, Outcome
from resampling import bootstrap
from results import ResultsError, is_count, note, sidecar
from scipy import stats
from significance import TESTS, Cannot, Finding, How, holm, letters
from systems import System, comparable, find_systems, siblings
from table import LOWER_IS_BETTER, SUFFIXES, Cell, Table, add_output_options

EXAMPLES = """examples:
  uv run analysis/compare.py "adapters/full_seed_?" "adapters/lora_seed_?" --metric test_label_macro_f1
  uv run analysis/compare.py adapters/a adapters/b --metric test_label_accuracy --test mcnemar
  uv run analysis/compare.py "adapters/single_?" "adapters/part_*" "adapters/merge_?" --name single parts merged \\
      --metric test_target_macro_f1 test_target_micro_f1 --output table.tex
  uv run analysis/compare.py "adapters/a_?" "adapters/b_?" --metric test_label_macro_f1 --posts posts.csv --id id --group author
"""
OVER = {
    "hierarchical": "hierarchical bootstrap",
    "bootstrap": "paired bootstrap",
    "permutation": "paired permutations",
    "mcnemar": "McNemar's exact test",
    "wilcoxon": "Wilcoxon's signed ranks",
    "mann_whitney": "Mann-Whitney's U",
    "welch": "Welch's t",
    "aso": "almost stochastic order",
}
ON_SEEDS = ("wilcoxon", "mann_whitney", "welch", "aso")


class Comparison(NamedTuple):
    """Two systems by one metric, and the test that they were put to, in words."""

    metric: str
    a: str
    b: str
    finding: Finding
    test: str
    over: str


def measured(
    systems: Sequence[System], metric: str, said_of: dict[str, dict[str, list[Outcome]]], args: argparse.Namespace
) -> dict[str, Scored]:
    """Each system by a metric: recomputed, or out of results.csv. Raises ResultsError where neither can be.

    said_of: what the systems said, by task; filled in.
    """
    spaces = sidecar(next(systems[0].each()), "labels.json") or {}
    lower, known = bool(LOWER_IS_BETTER.search(metric)), []
    for task in sorted(spaces, key=len, reverse=True):
        if not metric.startswith(f"test_{task}_") or spaces[task]["kind"] == "masked":  # of which no predictions are kept
            continue
        if task not in said_of:
            said_of[task] = comparable(systems, task, leaked=args.leaked)
        said = said_of[task]
        measures = {name: [of.measures() for of in outcomes] for name, outcomes in said.items()}
        name = metric.removeprefix(f"test_{task}_")
        if all(name in of for each in measures.values() for of in each):
            first, *_ = said.values()
            groups = read_post_groups(args, first[0]) if args.group else None
            found = {
                key: [of[name] if groups is None else of[name].grouped(groups) for of in each]
                for key, each in measures.items()
            }
            draws = bootstrap([of for each in found.values() for of in each], args.resamples, args.seed)
            parts = np.split(draws, np.cumsum([len(each) for each in found.values()])[:-1], axis=1)
            return {
                system.name: Scored(
                    np.array([of.value() for of in found[system.name]]),
                    tuple(system.runs),
                    mine,
                    tuple(found[system.name]),
                    lower,
                )
                for system, mine in zip(systems, parts, strict=True)
            }
        known += [f"test_{task}_{name}" for name in measures[systems[0].name][0]]
    return {system.name: _of_rows(system, metric, known, lower=lower) for system in systems}


def _of_rows(system: System, metric: str, known: Sequence[str], *, lower: bool) -> Scored:
    """A system by a row of results.csv, a value a seed."""
    for run in system.each():
        if metric not in run.rows:
            names = [*dict.fromkeys([*known, *(name for name in run.rows if not is_count(name))])]
            close = difflib.get_close_matches(metric, names, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ResultsError(
                f"--metric {metric}: no row of {run.path}, nor can it be recomputed; {hint}known: {', '.join(sorted(names))}"
            )
    if len({*system.runs}) < len([*system.each()]):
        raise ResultsError(f"--metric {metric}: {system.name} is made of parts, and a row of theirs is not one of the whole")
    return Scored(np.array([run.rows[metric] for run in system.each()]), tuple(system.runs), lower=lower)


def read_post_groups(args: argparse.Namespace, outcome: Outcome) -> Array:
    """The group of each post, (N,) from 0 on; a post in no group is one of its own."""
    if args.posts is None:
        raise ResultsError(
            f"--group {args.group}: in which file? type --posts FILE.csv, and --id with its column of post ids"
        )
    groups = read_groups(args.posts, args.id, [args.group], "--group")
    of = {post: group for group, posts in groups.items() for post in posts}
    if not any(post in of for post in outcome.posts):
        raise ResultsError(
            f"--posts {args.posts}: no tested post is in a group of {args.group}; their ids are {', '.join(list(of)[:3])}, ..., "
            f"expected some of {', '.join(outcome.posts[:3])}, ...; type --id with the column of post ids"
        )
    if others := [post for post in outcome.posts if post not in of]:
        note(f"{len(others)} of {len(outcome.posts)} posts are in no group, as {others[0]}: each is drawn by itself")
    return np.unique([of.get(post, f"\n{post}") for post in outcome.posts], return_inverse=True)[1]


def compared(a: str, b: str, metric: str, scored: Mapping[str, Scored], how: How, args: argparse.Namespace) -> Comparison:
    """Puts two systems to the test asked for, or to the one that fits what there is."""
    first, second = scored[a], scored[b]
    several, posts = min(len(first.values), len(second.values)) > 1, first.draws is not None
    paired = sorted(first.seeds) == sorted(second.seeds) and not args.unpaired
    test = args.test or ("hierarchical" if several and posts else "bootstrap" if posts else "welch")
    try:
        finding = TESTS[test](first, second, how._replace(paired=paired))
    except Cannot as reason:
        rows = "" if posts else " (this metric cannot be recomputed, so only seeds tell)"
        raise ResultsError(f"{a} and {b}: --test {test} {reason}{rows}") from None
    sizes = " and ".join(dict.fromkeys(str(len(side.values)) for side in (first, second)))
    seeds = f"{sizes} seeds" if several or sizes != "1" else "one run each"
    units = f"{first.units:,} {f'groups of {args.group}' if args.group else 'posts'}" if posts else ""
    pairing = ", paired by seed" if test == "wilcoxon" or (test == "hierarchical" and paired) else ""
    over = f"{seeds}{pairing}" if test in ON_SEEDS else f"{seeds} × {units}{pairing}" if test == "hierarchical" else units
    if test in ("bootstrap", "permutation", "mcnemar"):
        over += ", one run each" if not several and sizes == "1" else f", these {sizes} runs as they are"
    name = "cluster bootstrap" if args.group and test == "bootstrap" else OVER[test]
    notes = [text.replace("{a}", a).replace("{b}", b) for text in finding.notes]
    return Comparison(metric, a, b, replace(finding, notes=notes), f"{name} of {over}", sizes)


def judged(ps: Sequence[float], findings: Sequence[Finding], alpha: float) -> list[str]:
    """For each comparison, `differs`, `not shown`, or `cannot be decided`: at its smallest p, Holm would not let it differ."""
    told = []
    for i, (p, finding) in enumerate(zip(holm(ps), findings, strict=True)):
        best = holm([finding.floor if k == i else other for k, other in enumerate(ps)])[i]
        told.append("differs" if p <= alpha else "cannot be decided" if best > alpha else "not shown")
    return told


def bayes(finding: Finding, rope: float, *, lower: bool) -> tuple[float, float, float]:
    """Probabilities that the second is worse, practically equal (within the region ± rope), better.

    The posterior of the difference is Student's t with its standard error and degrees of freedom: the Bayesian correlated
    t-test (Benavoli et al. 2017, JMLR 18:77, section 3.1), the correlation of runs that saw the same posts being that which
    the bootstrap found rather than a rule of thumb for cross-validation.
    """
    if not finding.error:
        return (0.0, 1.0, 0.0) if abs(finding.difference) <= rope else (0.0, 0.0, 1.0)
    below, above = (float(stats.t.cdf((end - finding.difference) / finding.error, finding.df)) for end in (-rope, rope))
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


def picked(system: System, metric: str, *, lower: bool) -> str | None:
    """Says so where the runs given are the best, or the worst, of all seeds of their configuration that lie beside them."""
    mine = [run.rows[metric] for run in system.each() if metric in run.rows]
    others = [run.rows[metric] for run in siblings(system) if metric in run.rows]
    if not mine or not others:
        return None
    sides = ("worst", "best") if lower else ("best", "worst")
    side = sides[0] if min(mine) >= max(others) else sides[1] if max(mine) <= min(others) else None
    of = f"{len(mine) + len(others)}; mean of {len(mine) + len(others)}: {short(float(np.mean([*mine, *others])))}"
    given = "the" if len(mine) == 1 else f"the {len(mine)}"
    return side and f"{system.name} is {given} {side} of {of} ({metric})"


def sentence(
    of: Comparison, told: str, p: float, family: int, picks: Sequence[str], lower: bool, args: argparse.Namespace
) -> str:
    """The verdict in plain words, with all that it stands on."""
    found, digits = of.finding, 3 if args.digits is None else args.digits
    better = (found.difference > 0) != lower
    sign = -1 if told == "differs" and found.difference < 0 else 1
    ends = sorted([sign * found.low, sign * found.high])
    seen = short(sign * found.difference, digits)
    span = f"{100 * (1 - args.alpha):g} % interval {short(ends[0], digits)} to {short(ends[1], digits)}"
    p_told = f"{short_p(p)}{f' after Holm over {family}' if family > 1 else ''}, {of.test}"
    if told == "differs":
        words = f"{of.b} is {'better' if better else 'worse'} than {of.a} by {seen} {of.metric} ({span}; {p_told})."
    elif told == "cannot be decided":
        words = (
            f"{of.b} against {of.a} cannot be decided with {of.over}: the smallest p that can come out is {short(found.floor)}"
            f"{f' before Holm over {family}' if family > 1 else ''}, and α is {args.alpha:g}; {of.metric} differs by {seen} "
            f"({span}; {p_told})."
        )
    else:
        words = f"No difference of {of.b} to {of.a} was shown: {seen} {of.metric} ({span}; {p_told})."
    if told != "differs":
        words += f" One of {short(found.detectable, digits)} would be found with a power of 80 %"
        runs = (
            "no number of runs would do, it takes more posts"
            if found.needed == math.inf
            else f"{_runs(found.needed)} runs a side"
        )
        words += "." if found.needed is None else f"; for the one seen, {runs}."
    if args.rope is not None:
        worse, same, more = bayes(found, args.rope, lower=lower)
        words += f" Probability of worse {short(worse)}, equal within ±{args.rope:g} {short(same)}, better {short(more)}."
    if "bootstrap of" in of.test and of.over.endswith("one run each"):
        words += " This says nothing of other seeds."
    return " ".join([words, *(f"{text[0].upper()}{text[1:]}." for text in (*found.notes, *picks))])


def rows_of(
    metric: str,
    scored: Mapping[str, Scored],
    told: Mapping[str, tuple[Comparison, str, float, str]],
    args: argparse.Namespace,
) -> dict[str, dict[str, Cell]]:
    """For each system, everything that is known of it, by the names that CSV and JSON have."""
    rows: dict[str, dict[str, Cell]] = {}
    for name, system in scored.items():
        low, high = mean_interval(system, args.alpha)
        row: dict[str, Cell] = {"metric": metric, "runs": float(len(system.values)), "mean": float(system.values.mean())}
        row |= {"low": low, "high": high}
        if name in told:
            (of, verdict, p, words), found = told[name], told[name][0].finding
            row |= {"difference": found.difference, "difference_low": found.low, "difference_high": found.high}
            row |= {
                "p": found.p,
                "p_holm": p,
                "smallest_p": found.floor,
                "effect_size": found.effect[1],
                "effect": found.effect[0],
            }
            row |= {
                "standard_error": found.error,
                "df": found.df,
                "detectable": found.detectable,
                "runs_needed": found.needed,
            }
            if args.rope is not None:
                row |= dict(
                    zip(("p_worse", "p_equal", "p_better"), bayes(found, args.rope, lower=system.lower), strict=True)
                )
            row |= {"test": of.test, "verdict": verdict, "sentence": words}
        rows[name] = row
    return rows


def shown_cells(row: Mapping[str, Cell], confidence: str, digits: int) -> dict[str, Cell]:
    """The cells of a row as a reader wants them: numbers that belong together in one."""

    def number(key: str) -> str:
        value = row.get(key)
        return "" if not isinstance(value, float) or math.isnan(value) else f"{value:.{digits}f}"

    def span(low: str, high: str) -> str:
        return f"{number(low)} to {number(high)}" if number(low) else ""

    def p(key: str) -> str:
        value = row.get(key)
        return (
            "" if not isinstance(value, float) else "<0.001" if 0 < value < 0.0005 else f"{value:.3f}" if value else "none"
        )

    effect = f"{row['effect']} {number('effect_size')}" if number("effect_size") else ""
    needed = row.get("runs_needed")
    cells: dict[str, Cell] = {"mean": number("mean"), confidence: span("low", "high"), "difference": number("difference")}
    cells |= {
        f"its {confidence}": span("difference_low", "difference_high"),
        "p": p("p_holm"),
        "smallest p": p("smallest_p"),
    }
    cells |= {
        "effect": effect,
        "detectable": number("detectable"),
        "runs needed": _runs(needed if isinstance(needed, float) else None),
    }
    if "letters" in row:
        cells["letters"] = row["letters"]
    return cells | {"verdict": row.get("verdict", "")}


def lettered(metric: str, scored: Mapping[str, Scored], how: How, args: argparse.Namespace) -> list[str]:
    """A letter display of three systems or more, after Holm over all pairs of them."""
    names = [*scored]
    pairs = [(i, j) for j in range(len(names)) for i in range(j)]
    ps = holm([compared(names[i], names[j], metric, scored, how, args).finding.p for i, j in pairs])
    differ = {frozenset(pair) for pair, p in zip(pairs, ps, strict=True) if p <= args.alpha}
    sign = -1 if scored[names[0]].lower else 1
    means = [sign * float(system.values.mean()) for system in scored.values()]
    return letters(means, lambda i, j: frozenset((i, j)) in differ)


def table_of(systems: Sequence[System], args: argparse.Namespace) -> dict[str, dict[str, Cell]]:
    """A row for each metric and system, with every number and the verdict."""
    names, family = [system.name for system in systems], len(args.metric) * (len(systems) - 1)
    how = How(args.alpha, args.alpha / family, args.resamples, args.seed, paired=True)
    said_of: dict[str, dict[str, list[Outcome]]] = {}
    scored = {metric: measured(systems, metric, said_of, args) for metric in args.metric}
    found = [compared(names[0], name, metric, scored[metric], how, args) for metric in args.metric for name in names[1:]]
    ps = [of.finding.p for of in found]
    verdicts = judged(ps, [of.finding for of in found], args.alpha)
    picks = {(s.name, m): picked(s, m, lower=scored[m][s.name].lower) for s in systems for m in args.metric}
    for told in filter(None, picks.values()):
        note(told)
    rows: dict[str, dict[str, Cell]] = {}
    for metric in args.metric:
        told = {}
        for of, verdict, p in zip(found, verdicts, holm(ps), strict=True):
            if of.metric == metric:
                lower = scored[metric][of.b].lower
                mine = [text for name in (of.a, of.b) if (text := picks[name, metric])]
                words = sentence(of, verdict, p, family, mine, lower, args)
                better = "better" if (of.finding.difference > 0) != lower else "worse"
                told[of.b] = (of, better if verdict == "differs" else verdict, p, words)
        new = rows_of(metric, scored[metric], told, args)
        if len(systems) > 2:
            for row, letter in zip(new.values(), lettered(metric, scored[metric], how, args), strict=True):
                row["letters"] = letter
        rows |= {
            name if len(args.metric) == 1 else f"{name}, {metric}": {"system": name, **row} for name, row in new.items()
        }
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; 2 where the user has something to mend."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=verbatim)
    parser.add_argument(
        "systems", nargs="+", metavar="SYSTEM", help="run folder, or quoted glob of its seeds; baseline first"
    )
    parser.add_argument(
        "--metric", nargs="+", action="extend", required=True, help="rows of results.csv, as test_label_macro_f1"
    )
    parser.add_argument(
        "--name", nargs="+", action="extend", help="names of the systems; default: what tells the globs apart"
    )
    parser.add_argument(
        "--test", choices=[*TESTS], help="default: hierarchical; bootstrap for one run, welch where only seeds tell"
    )
    parser.add_argument("--unpaired", action="store_true", help="take runs of one seed as unrelated")
    parser.add_argument(
        "--group", metavar="COLUMN", help="draw groups of posts, those with one value in this column of --posts"
    )
    parser.add_argument("--posts", type=Path, metavar="FILE", help="CSV with a row a post")
    parser.add_argument("--id", default="case_id", metavar="COLUMN", help="its column of post ids (default: %(default)s)")
    parser.add_argument("--alpha", type=float, default=0.05, help="default: %(default)s")
    parser.add_argument("--resamples", type=int, default=10_000, help="draws of posts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument(
        "--rope", type=float, metavar="WIDTH", help="differences up to this are practically none: adds probabilities"
    )
    parser.add_argument("--leaked", action="store_true", help="compare runs that learned from test posts all the same")
    add_output_options(parser, stage=False)
    args = parser.parse_args(argv)
    try:
        if not 0 < args.alpha < 1:
            raise ResultsError(f"--alpha {args.alpha:g}: expected a probability between 0 and 1, as 0.05")
        if args.resamples < 100:
            raise ResultsError(f"--resamples {args.resamples}: expected 100 or more, as 10000")
        if args.rope is not None and args.rope <= 0:
            raise ResultsError(f"--rope {args.rope:g}: expected a difference above 0, as 0.01")
        systems = find_systems(args.systems, args.name)
        args.metric = [*dict.fromkeys(args.metric)]
        rows = table_of(systems, args)
        form = args.format or (SUFFIXES.get(args.output.suffix) if args.output else None)
        full = form in ("csv", "json")
        confidence = f"{100 * (1 - args.alpha):g} % interval"
        cells = rows if full else {key: shown_cells(row, confidence, args.digits or 3) for key, row in rows.items()}
        columns = [*dict.fromkeys(key for row in cells.values() for key in row)]
        below = [str(row["sentence"]) for row in rows.values() if "sentence" in row]
        grid = {key: [row.get(column) for column in columns] for key, row in cells.items()}
        table = Table(columns, grid, digits=args.digits, corner="row" if full else "system", counts=False, below=below)
        table.show(args.format, args.output, [run.path for system in systems for run in system.each()])
    except (ResultsError, OSError) as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
