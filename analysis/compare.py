"""Says whether one system is better than another, how sure that is, and what it would take to know.

The first system is the baseline. A system is a run, or a quoted glob of its seeds; parts that each learned some labels count
as one run a seed. A metric that can be recomputed from predictions.parquet is tested over posts, over seeds, or over both
(the default where there are several seeds); any other row of results.csv over seeds alone. p is after Holm, over all
comparisons made: each system with the baseline by each metric, or with --letters all pairs.
"""

import argparse
import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
from functional_tests import read_groups
from intervals import Scored
from many_comparisons import letters
from outcomes import Array, Outcome
from resampling import bootstrap
from results import ResultsError, is_count, note, sidecar, testing_line
from significance import TESTS, Cannot, How
from systems import System, check_validated, comparable, find_systems, judged_otherwise, siblings
from table import LOWER_IS_BETTER, SUFFIXES, Cell, Table, add_output_options, has_no_better
from verdicts import Comparison, Saying, compared_row, judged, row_of, sentence, short, shown_cells

EXAMPLES = """examples:
  uv run analysis/compare.py "adapters/full_seed_?" "adapters/lora_seed_?" --metric test_label_macro_f1
  uv run analysis/compare.py adapters/a adapters/b --metric test_label_accuracy --test mcnemar
  uv run analysis/compare.py "adapters/single_?" "adapters/part_*" "adapters/merge_?" --name single parts merged \\
      --metric test_target_macro_f1 test_target_micro_f1 --output table.tex
  uv run analysis/compare.py "adapters/a_?" "adapters/b_?" --metric test_label_macro_f1 \\
      --posts posts.csv --id id --group author
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
MOST = 1_000_000  # draws, each of which is held for every run


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
    for task in spaces:
        if metric.startswith(f"val_{task}_"):
            check_validated(systems, task, leaked=args.leaked)
    if differing := judged_otherwise(systems):
        note(f"{differing}; a row of that evaluation is of two kinds, and no other is touched")
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
        if not math.isfinite(run.rows[metric]):
            raise ResultsError(
                f"--metric {metric}: {run.rows[metric]} in {run.path}, expected a number; leave that run or metric out, or "
                f"test it: {testing_line(run)}"
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
            f"--posts {args.posts}: no tested post is in a group of {args.group}; ids in it are {', '.join(list(of)[:3])}, "
            f"..., expected some of {', '.join(outcome.posts[:3])}, ...; type --id with the column of post ids"
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
        rows = "" if posts else " (this metric is no sum over posts, so only seeds tell)"
        raise ResultsError(f"{a} and {b}: --test {test} {reason}{rows}") from None
    sizes = " and ".join(dict.fromkeys(str(len(side.values)) for side in (first, second)))
    seeds, units = (
        f"{sizes} seeds",
        f"{first.units:,} {f'groups of {args.group}' if args.group else 'posts'}" if posts else "",
    )
    over = seeds if test in ON_SEEDS else f"{seeds} × {units}" if test == "hierarchical" else units
    if test == "wilcoxon" or (test == "hierarchical" and paired):
        over += ", paired by seed"
    elif test not in (*ON_SEEDS, "hierarchical"):  # posts alone
        over += f", these {sizes} runs as they are" if several or sizes != "1" else ", one run each: other seeds may differ"
    name = "cluster bootstrap" if args.group and test == "bootstrap" else OVER[test]
    notes = [text.replace("{a}", a).replace("{b}", b) for text in finding.notes]
    if not posts:
        notes.append(f"{metric} is no sum over posts, so seeds alone tell")
    if metric.startswith("val_"):
        notes.append("validation posts chose the epochs of these runs, so this is no test of either")
    return Comparison(metric, a, b, replace(finding, notes=notes), f"{name} of {over}", over, first.lower)


def picked(system: System, metric: str, *, lower: bool) -> str | None:
    """Says so where the runs given are the best, or the worst, of all seeds of their configuration that lie beside them."""
    mine = [run.rows[metric] for run in system.each() if metric in run.rows]
    others = [run.rows[metric] for run in siblings(system) if metric in run.rows]
    if not mine or not others:
        return None
    sides = ("worst", "best") if lower else ("best", "worst")
    side = sides[0] if min(mine) >= max(others) else sides[1] if max(mine) <= min(others) else None
    given, n = "one" if len(mine) == 1 else f"{len(mine)}", len(mine) + len(others)
    mean = short(float(np.mean([*mine, *others])))
    return (
        side
        and f"{system.name}: the {given} given, {short(float(np.mean(mine)))}, is the {side} of {n}; mean of {n}: {mean}"
    )


def rows_of(systems: Sequence[System], args: argparse.Namespace) -> tuple[Saying, dict[str, dict[str, Cell]]]:
    """A row for each metric and system, with every number and the verdict."""
    names = [system.name for system in systems]
    pairs = [*combinations(names, 2)] if args.letters else [(names[0], name) for name in names[1:]]
    say = Saying(args.alpha, max(1, len(args.metric) * len(pairs)), 3 if args.digits is None else args.digits, args.rope)
    how = How(args.alpha, args.alpha / say.family, args.resamples, args.seed, paired=True)
    said_of: dict[str, dict[str, list[Outcome]]] = {}
    scored = {metric: measured(systems, metric, said_of, args) for metric in args.metric}
    found = [compared(a, b, metric, of_metric, how, args) for metric, of_metric in scored.items() for a, b in pairs]
    judged_of = {(of.metric, of.a, of.b): (of, told) for of, told in zip(found, judged(found, args.alpha), strict=True)}
    rows: dict[str, dict[str, Cell]] = {}
    for metric, of_metric in scored.items():
        picks = {system.name: picked(system, metric, lower=of_metric[system.name].lower) for system in systems}
        for text in filter(None, picks.values()):
            note(text)
        for name in names:
            row: dict[str, Cell] = {"system": name, **row_of(of_metric[name], metric, say)}
            if (metric, names[0], name) in judged_of:
                of, told = judged_of[metric, names[0], name]
                words = sentence(of, told, [pick for which in (of.a, of.b) if (pick := picks[which])], say)
                row |= compared_row(of, told, words, say)
            rows[name if len(scored) == 1 else f"{name}, {metric}"] = row
        if args.letters:
            sign = -1 if of_metric[names[0]].lower else 1
            means = [sign * float(of_metric[name].values.mean()) for name in names]
            differ = {frozenset((a, b)) for a, b in pairs if judged_of[metric, a, b][1].p <= args.alpha}
            marks = letters(means, lambda i, j, differ=differ: frozenset((names[i], names[j])) in differ)  # type: ignore[misc]
            for row, letter in zip([*rows.values()][-len(names) :], marks, strict=True):
                row["letters"] = letter
    return say, rows


def add_testing_options(parser: argparse.ArgumentParser) -> None:
    """Adds what every command that tests differences takes."""
    parser.add_argument("--alpha", type=float, default=0.05, help="default: %(default)s")
    parser.add_argument("--resamples", type=int, default=10_000, help="draws of posts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument("--leaked", action="store_true", help="compare runs that learned from test posts all the same")


def check_testing_options(args: argparse.Namespace) -> None:
    """Raises ResultsError where one of them is out of its range."""
    if not 0 < args.alpha < 1:
        raise ResultsError(f"--alpha {args.alpha:g}: expected a probability between 0 and 1, as 0.05")
    if not 100 <= args.resamples <= MOST:
        raise ResultsError(f"--resamples {args.resamples}: expected 100 or more, up to {MOST}, as 10000")
    if args.seed < 0:
        raise ResultsError(f"--seed {args.seed}: expected 0 or more, as 0")


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
    parser.add_argument(
        "--letters", action="store_true", help="compare all pairs: systems that share a letter do not differ"
    )
    parser.add_argument("--unpaired", action="store_true", help="take runs of one seed as unrelated")
    parser.add_argument(
        "--group", metavar="COLUMN", help="draw groups of posts, those with one value in this column of --posts"
    )
    parser.add_argument("--posts", type=Path, metavar="FILE", help="CSV with a row a post")
    parser.add_argument("--id", default="case_id", metavar="COLUMN", help="its column of post ids (default: %(default)s)")
    add_testing_options(parser)
    parser.add_argument(
        "--rope", type=float, metavar="WIDTH", help="differences up to this are practically none: adds probabilities"
    )
    add_output_options(parser, stage=False)
    args = parser.parse_args(argv)
    try:
        check_testing_options(args)
        if args.rope is not None and not 0 < args.rope < math.inf:
            raise ResultsError(f"--rope {args.rope:g}: expected a difference above 0, as 0.01")
        systems = find_systems(args.systems, args.name)
        args.metric = [*dict.fromkeys(args.metric)]
        for metric in args.metric:
            if has_no_better(metric):
                raise ResultsError(f"--metric {metric}: neither more nor less of it is better; leave it out")
        say, rows = rows_of(systems, args)
        full = (args.format or (SUFFIXES.get(args.output.suffix) if args.output else None)) in ("csv", "json")
        cells = rows if full else {key: shown_cells(row, say) for key, row in rows.items()}
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
