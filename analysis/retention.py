"""Shows what a merge kept of its parts: for each label, the merged model's F1 minus that of the part that learned the label.

The row of macro-F1 holds the mean of these differences, and the retention: merged over partitioned macro-F1, the parts
pooled as partition_f1.py does. Several seeds are several --merged, each with the --parts (and --single) of its place, or all
with the same; cells are then means ± standard deviations of what each seed gives, differences and ratios too.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from partition_f1 import Counts, check_same_posts, multilabel_tasks, pool, read_counts, read_parts
from results import Results, ResultsError, find_results, note, read_results, sidecar, testing_line
from summaries import averaged
from table import Table, add_output_options

EXAMPLES = """examples:
  uv run analysis/retention.py --merged adapters/small/lora16/target_merge --parts "adapters/small/lora16/target_part_*" \\
      --single adapters/small/lora16/target_single
  uv run analysis/retention.py --merged adapters/seed0/merge --parts "adapters/seed0/part_*" \\
      --merged adapters/seed1/merge --parts "adapters/seed1/part_*" --output retention.csv
"""
COLUMNS = ["parts", "merged", "difference", "retention", "single", "of single"]  # the last two with --single
T = TypeVar("T")


def read_whole(
    run: Results, stage: str, task: str, labels: Mapping[str, Counts], parts: Sequence[Results]
) -> dict[str, float]:
    """The pooled rows of a run of all labels. Raises ResultsError where it has others, or was tested on other posts."""
    if f"{stage}_{task}_micro_f1" not in run.rows:
        raise ResultsError(f"{run.path} has no {stage} rows of {task!r}; test it: {testing_line(run)}")
    counts = read_counts(run, stage, task)
    if differing := sorted(labels.keys() ^ counts.keys()):
        where = f"in {run.path} or in the parts, but not in both"
        raise ResultsError(f"labels of {task!r}: {', '.join(differing)} {where}; name a run of all labels and its parts")
    check_same_posts(task, [parts[0], run])
    return pool(counts)


def check_sources(merged: Results, parts: Sequence[Results]) -> None:
    """Says so where run.json names other sources than the parts."""
    sources = (sidecar(merged, "run.json") or {}).get("sources") or {}
    known = {Path(folder).resolve() for folder in sources}
    if sources and (others := [str(part.path.parent) for part in parts if part.path.parent.resolve() not in known]):
        note(f"{merged.path.parent} started from {', '.join(sources)}, not from {', '.join(others)}")


def compare(merged: Results, parts: Sequence[Results], single: Results | None, stage: str) -> dict[str, list[float | None]]:
    """The columns of COLUMNS for every label, macro-F1 and micro-F1 of every task; ratios for the last two alone."""
    rows: dict[str, list[float | None]] = {}
    for task in multilabel_tasks(parts, stage):
        labels = read_parts(parts, stage, task)
        apart, whole = pool(labels), read_whole(merged, stage, task, labels, parts)
        alone = None if single is None else read_whole(single, stage, task, labels, parts)
        for name, value in apart.items():
            total = name in ("macro_f1", "micro_f1")
            row = [value, whole[name], whole[name] - value, whole[name] / value if total and value else None]
            if alone is not None:
                row += [alone[name], whole[name] / alone[name] if total and alone[name] else None]
            rows[f"{stage}_{task}_{name}"] = row
    check_sources(merged, parts)
    return rows


def one(option: str, pattern: str) -> Results:
    """The run that an option names."""
    paths = find_results([pattern])
    if len(paths) > 1:
        raise ResultsError(f"{option} {pattern!r} names {len(paths)} runs; expected one; type {option} once for each seed")
    return read_results(paths[0])


def each(option: str, given: Sequence[T], seeds: int) -> list[T]:
    """One a seed: as many as were given, or the only one again and again."""
    if len(given) not in (1, seeds):
        raise ResultsError(f"{option} is given {len(given)} times for {seeds} of --merged; expected once, or once for each")
    return list(given) * (seeds if len(given) == 1 else 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; 2 where the user has something to mend."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=verbatim)
    add = partial(parser.add_argument, action="append", metavar="RUN")
    add("--merged", required=True, help="run folder or results.csv of a merge; once a seed")
    add("--parts", required=True, nargs="+", help="its parts, or a quoted glob of them")
    add("--single", help="a run trained on all labels, to compare with")
    add_output_options(parser)
    args = parser.parse_args(argv)
    try:
        merged = [one("--merged", pattern) for pattern in args.merged]
        seeds = len(merged)
        parts = [[read_results(path) for path in find_results(of)] for of in each("--parts", args.parts, seeds)]
        singles: list[Results | None] = [None] * seeds
        if args.single:
            singles = [one("--single", pattern) for pattern in each("--single", args.single, seeds)]
        found = [compare(*runs, args.stage) for runs in zip(merged, parts, singles, strict=True)]
        columns = COLUMNS if args.single else COLUMNS[:4]
        blank: list[float | None] = [None] * len(columns)
        metrics = list(dict.fromkeys(metric for rows in found for metric in rows))
        rows = {metric: [value for of in found for value in of.get(metric, blank)] for metric in metrics}
        inputs = [run.path for group in (merged, *parts, filter(None, singles)) for run in group]
        make = averaged if seeds > 1 else Table
        make(columns * seeds, rows, digits=args.digits).show(args.format, args.output, inputs)
    except (ResultsError, OSError) as error:
        print(f"retention.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
