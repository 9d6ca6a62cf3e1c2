"""Ranks the runs of a sweep or of a search by one metric, the best first, with the settings that set them apart.

Runs that differ in seed alone are one row: the mean of their values, and half of its 95 % interval over seeds (Student's).
Below the table stands the command that trains the first one. The metric is a row of results.csv, or a figure of run.json,
such as seconds or trained_parameters.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from intervals import beyond, half
from results import AGAIN, Results, ResultsError, column_names, find_results, note, read_results, sidecar
from summaries import settings
from table import LOWER_IS_BETTER, Cell, Table, add_output_options

from hatemtl.errors import UserError
from hatemtl.machine import json_object

EXAMPLES = """examples:
  uv run analysis/ranking.py "adapters/ranks/*" --by val_label_macro_f1
  uv run analysis/ranking.py "adapters/ranks/*" --by seconds --top 5 --format markdown
  uv run analysis/ranking.py "adapters/ranks/*" --by val_target_macro_f1 --output ranking.csv
"""
# Of run.json, what may be ranked by; of all but the first less is better.
FIGURES = ("examples_per_second", "seconds", "peak_memory_bytes", "trained_parameters", "parameters")


class Group(NamedTuple):
    """Runs that differ in seed alone. settings: the values of the keys that differ among all groups."""

    settings: tuple[Cell, ...]
    runs: list[Results]
    values: list[float]


def value_of(run: Results, by: str) -> float | None:
    """The run's value of a metric, or of a figure of run.json; None where it has none."""
    if by in FIGURES:
        figure = (sidecar(run, "run.json") or {}).get(by)
        return float(figure) if isinstance(figure, int | float) else None
    return run.rows.get(by)


def ranked(runs: Sequence[Results], by: str) -> tuple[list[str], list[Group]]:
    """The keys that differ, and the groups of runs, the best first; those without a value are told and left out.

    Raises ResultsError where no run has the metric.
    """
    values = [value_of(run, by) for run in runs]
    if all(value is None for value in values):
        metrics = sorted({metric for run in runs for metric in run.rows if metric.startswith("val_")})
        raise ResultsError(f"--by {by!r}: no run has it; known: {', '.join([*metrics, *FIGURES])}")
    if lacking := [str(run.path.parent) for run, value in zip(runs, values, strict=True) if value is None]:
        note(f"{len(lacking)} runs have no {by} and are left out, as {lacking[0]}")
    differing = settings(runs)
    groups: dict[tuple[Cell, ...], Group] = {}
    for i, (run, value) in enumerate(zip(runs, values, strict=True)):
        if value is not None:
            key = tuple(of[i] for of in differing.values())
            group = groups.setdefault(key, Group(key, [], []))
            group.runs.append(run)
            group.values.append(value)
    lower = by in FIGURES[1:] or LOWER_IS_BETTER.search(by) is not None
    return [*differing], sorted(groups.values(), key=lambda group: fmean(group.values) * (1 if lower else -1))


def ranking(keys: Sequence[str], groups: Sequence[Group], by: str, digits: int | None) -> Table:
    """The table of the groups in their order."""
    columns = [*keys, by, "runs"] if keys else ["run", by, "runs"]
    rows, spread = {}, {}
    for place, group in enumerate(groups, 1):
        alone = column_names([group.runs[0].path]) if len(group.runs) == 1 else ["any seed"]
        named = group.settings if keys else alone
        rows[str(place)] = [*named, fmean(group.values), len(group.values)]
        spread[str(place)] = [*[None] * len(named), half(group.values), None]
    return Table(columns, rows, digits, corner="rank", spread=spread, measured="± 95 %", decimals={"runs": 0})


def command(run: Results, save_path: str) -> str | None:
    """What to type to train the run; None where it does not say."""
    words = (sidecar(run, "run.json") or {}).get("words")
    if not isinstance(words, list) or not words:
        return None
    kept = [str(word) for word in words if not str(word).startswith(("save_path=", "launcher", "tune.", "action=tune"))]
    return shlex.join(["uv", "run", "main.py", *kept, f"save_path={save_path}"])


def failures(runs: Sequence[Results]) -> list[str]:
    """Names the runs beside these that failed and have not ended well since."""
    found = []
    for folder in dict.fromkeys(run.path.parent.parent for run in runs):
        for path in sorted(folder.glob(".*.failed.json")):
            name = path.name.removeprefix(".").removesuffix(".failed.json")
            try:
                record = json_object.read(path, AGAIN)
                found.append(f"{name} {record['status']}: {str(record['message'])[:80]}")
            except (UserError, KeyError):
                found.append(f"{name} failed")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; 2 where the user has something to mend."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=verbatim)
    parser.add_argument("runs", nargs="+", metavar="GLOB", help="run folders, or a quoted glob of them")
    parser.add_argument("--by", required=True, metavar="METRIC", help="val_TASK_METRIC, or a figure of run.json")
    parser.add_argument("--top", type=int, metavar="N", help="only the first N rows")
    add_output_options(parser, stage=False)
    args = parser.parse_args(argv)
    try:
        if args.top is not None and args.top < 1:
            raise ResultsError(f"--top {args.top}: expected a whole number, 1 or more")
        paths = find_results(args.runs)
        keys, groups = ranked([read_results(path) for path in paths], args.by)
        ranking(keys, groups[: args.top], args.by, args.digits).show(args.format, args.output, paths)
        for failure in failures([run for group in groups for run in group.runs]):
            note(f"not in the table: {failure}")
        if args.by.startswith("test_"):
            note(f"chosen by {args.by}, so it is no test any more: choose by val_*, and test the one that is chosen")
        elif len(groups) > 1 and args.by not in FIGURES:
            note(f"the first of {len(groups)} is high partly because it was chosen: its test says what it is worth")
        if any(beyond(args.by, group.values) for group in groups[: args.top]):
            note(f"± reaches beyond what {args.by} can be: too few runs to say more")
        winner = groups[0].runs[0]
        seeds = f" (with seed={(sidecar(winner, 'run.json') or {}).get('seed')}; of {len(groups[0].runs)} seeds)"
        if (line := command(winner, "adapters/winner")) is None:
            note(f"{winner.path.parent}/run.json does not say what was typed; config.yaml beside it holds every setting")
        else:
            note(f"to train the first{seeds if len(groups[0].runs) > 1 else ''}: {line}")
    except (ResultsError, OSError) as error:
        print(f"ranking.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
