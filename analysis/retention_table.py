"""One row for each way to put trained parts together: what it kept of their macro-F1, over seeds, and what it cost.

STUDY holds a folder a seed, as the study scripts write them: parts named PART, a run of all labels named `single`, and any
number of runs that put the parts together, each under one name in every seed. Retention is a run's macro-F1 over that of its
seed's parts, pooled as partition_f1.py does; the intervals are Student's at 95 % over seeds. With --plot: retention against
optimizer steps. With --wide: a row a merge and a column a kind of training, for runs named MERGE-TRAINING.
"""

import argparse
import io
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean, stdev

from intervals import half
from partition_f1 import multilabel_tasks, pool, read_parts
from results import Results, ResultsError, mask_pattern, read_results, sidecar, write_whole
from retention import read_whole
from table import Table, add_output_options

EXAMPLES = """examples:
  uv run analysis/retention_table.py adapters/merge_study
  uv run analysis/retention_table.py adapters/fusion_study --part "target_part_*" --plot retention.png --output table.org
"""
COLUMNS = ["seeds", "macro-F1 %", "retention %", "from", "to", "of single %", "trained, thousands", "steps", "seconds"]
WHOLE_NUMBERS = {"seeds": 0, "steps": 0, "seconds": 0}
WHOLE = "1 1"  # the part that is all labels


def read_study(study: Path, part: str, single: str, names: Sequence[str], stage: str) -> dict[str, list[list[float | None]]]:
    """By the name of each run of all labels, and `parts`, for every seed the values of COLUMNS but the interval.

    names: globs of the runs wanted beside `single`.

    Raises ResultsError where there is no folder of a seed, or one lacks its parts.
    """
    found: dict[str, list[list[float | None]]] = defaultdict(list)
    seeds = sorted(path for path in study.iterdir() if path.is_dir() and any(path.glob(part))) if study.is_dir() else []
    if not seeds:
        raise ResultsError(f"{study}: no folder in it holds runs named {part}; train them with scripts/merge_study.sh")
    for seed in seeds:
        parts = [read_results(path / "results.csv") for path in sorted(seed.glob(part))]
        task, *more = multilabel_tasks(parts, stage)
        if more:
            raise ResultsError(f"{seed}: parts of {', '.join([task, *more])}; expected those of one task")
        labels = read_parts(parts, stage, task)
        apart = pool(labels)["macro_f1"]
        if not apart:
            raise ResultsError(f"{seed}: the parts' macro-F1 is 0, so there is nothing to keep; train them longer")
        found["parts"].append([100 * apart, 100.0, None, *sums([cost(part) for part in parts])])
        others = [read_results(path) for path in sorted(seed.glob("[!.]*/results.csv"))]
        runs = {run.path.parent.name: run for run in others if mask_pattern(run, task) == WHOLE}
        runs = {name: run for name, run in runs.items() if any(fnmatchcase(name, glob) for glob in [single, *names])}
        f1 = {name: read_whole(run, stage, task, labels, parts)["macro_f1"] for name, run in runs.items()}
        for name, run in runs.items():
            of_single = 100 * f1[name] / f1[single] if f1.get(single) else None
            found[name].append([100 * f1[name], 100 * f1[name] / apart, of_single, *cost(run)])
    return found


def cost(run: Results) -> list[float | None]:
    """Thousands of trained parameters, optimizer steps, and seconds of training and of what came before it."""
    record = sidecar(run, "run.json") or {}
    trained, seconds = record.get("trained_parameters"), record.get("seconds")
    thousands = None if trained is None else trained / 1000
    return [thousands, record.get("steps"), None if seconds is None else seconds + record.get("preparing_seconds", 0.0)]


def sums(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    """By column; none where a value is missing."""
    return [None if None in column else sum(v for v in column if v is not None) for column in zip(*rows, strict=True)]


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of a mean of a few values; none of one value."""
    around = half(values)
    return (None, None) if around is None else (fmean(values) - around, fmean(values) + around)


def row(seeds: Sequence[Sequence[float | None]]) -> list[float | None]:
    """The values of COLUMNS, as means over seeds."""
    f1, kept, of_single, *cost = ([v for v in column if v is not None] for column in zip(*seeds, strict=True))
    return [len(seeds), mean(f1), mean(kept), *interval(kept), mean(of_single), *map(mean, cost)]


def wide(found: Mapping[str, Sequence[Sequence[float | None]]], digits: int) -> Table:
    """Retention of the runs named MERGE-TRAINING, ± half its interval: the best merges and the cheapest trainings first.

    Raises ResultsError where no run is named so.
    """
    kept: dict[str, dict[str, list[float]]] = defaultdict(dict)
    steps: dict[str, float] = {}
    for name, seeds in found.items():
        merge, dash, training = name.rpartition("-")
        if dash:
            kept[merge][training] = [seed[1] for seed in seeds if seed[1] is not None]
            steps[training] = min(seeds[0][4] or 0, steps.get(training, float("inf")))  # a search has steps too
    if not kept:
        raise ResultsError("--wide: no run is named MERGE-TRAINING, as scripts/merge_study.sh names them; leave it out")
    trainings = sorted(steps, key=lambda training: steps[training])
    values = {merge: [of.get(training, []) for training in trainings] for merge, of in kept.items()}
    means = {merge: [mean(cell) for cell in row] for merge, row in values.items()}
    best = sorted(means, key=lambda merge: -max(value or 0 for value in means[merge]))
    spread = {merge: [half(cell) for cell in row] for merge, row in values.items()}
    return Table(trainings, {merge: means[merge] for merge in best}, digits, spread=spread, corner="retention %")


def deviation(values: Sequence[float | None]) -> float | None:
    """The standard deviation over seeds, of two or more."""
    known = [value for value in values if value is not None]
    return stdev(known) if len(known) > 1 else None


def mean(values: Sequence[float]) -> float | None:
    """Of what is there."""
    return fmean(values) if values else None


def plot(rows: dict[str, list[float | None]]) -> bytes:
    """Retention against optimizer steps, a point a row, as a PNG; the names of those at the same step stand apart."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    points = [(of[7] or 0.0, of[2], name) for name, of in rows.items() if name != "parts" and of[2] is not None]
    lowest = min((kept for _, kept, _ in points), default=0.0)
    apart = (100 - lowest) / 80  # percent between names
    figure, axes = plt.subplots(figsize=(10, 10))
    step, above = None, 0.0
    for steps, kept, name in sorted(points, key=lambda point: (point[0], -point[1])):
        above = kept if steps != step else min(above - apart, kept)
        step = steps
        (drawn,) = axes.plot([steps], [kept], "o", markersize=4)
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": drawn.get_color(), "relpos": (0, 0.5)}
        axes.annotate(
            name, (steps, kept), (18, above), fontsize=6, va="center", textcoords=("offset points", "data"), arrowprops=line
        )
    axes.axhline(100, color="grey", linewidth=0.8)
    axes.margins(x=0.15)
    axes.set_xlabel("optimizer steps after merging")
    axes.set_ylabel("retention: % of the parts' macro-F1")
    file = io.BytesIO()
    figure.savefig(file, dpi=120, format="png", bbox_inches="tight")
    return file.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; 2 where the user has something to mend."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=verbatim)
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of a study: a folder a seed")
    parser.add_argument("--part", default="target_part_*", help="glob of the parts in each (default: %(default)s)")
    parser.add_argument("--single", default="target_single", help="run of all labels in each (default: %(default)s)")
    parser.add_argument("--run", nargs="+", default=["*"], help="globs of the others that are wanted (default: all)")
    parser.add_argument(
        "--wide", action="store_true", help="a row a merge, a column a training: retention ± half its interval"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a plot of retention against steps, as PNG")
    add_output_options(parser)
    args = parser.parse_args(argv)
    try:
        found = read_study(args.study, args.part, args.single, args.run, args.stage)
        rows = dict(sorted(((name, row(seeds)) for name, seeds in found.items()), key=lambda item: -(item[1][1] or 0)))
        spread = {name: [None, deviation([seed[0] for seed in seeds]), *[None] * 7] for name, seeds in found.items()}
        digits = 1 if args.digits is None else args.digits
        long = Table(COLUMNS, rows, digits, spread=spread, corner="run", decimals=WHOLE_NUMBERS)
        (wide(found, digits) if args.wide else long).show(args.format, args.output, [])
        if args.plot:
            write_whole(args.plot, plot(rows))
    except (ResultsError, OSError) as error:
        print(f"retention_table.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
