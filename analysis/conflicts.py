"""Shows who fights whom, and when: the cosines of tasks' gradients, and the weights of tasks, over the steps of training.

Columns are parts of training, quarters by default. Of each pair of tasks there is the mean cosine of their gradients and the
share of steps in which they were in conflict, the cosine below 0; of each task its mean weight. Reads objective.csv, which
every run of several tasks leaves; cosines are in that of a weighting that takes gradients (weighting=pcgrad and the like).
With an --output that is a picture (.svg, .pdf, .png) both are drawn over the steps, a running mean of --smooth of them. Of
more than ten, as of the labels of a task, those pairs are named that fight most, and those weights that are farthest from 1.
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pictures import content, draws, pyplot
from results import ResultsError
from table import Table, add_output_options

EXAMPLES = """examples:
  uv run analysis/conflicts.py adapters/joint
  uv run analysis/conflicts.py adapters/joint --parts 8 --format markdown
  uv run analysis/conflicts.py adapters/joint --smooth 50 --output conflicts.svg
"""
PICTURES = (".svg", ".pdf", ".png")
STEPS = "objective.csv"
NAMED = 10  # lines of a picture, which has no more colours
Series = np.ndarray[Any, Any]


def read_steps(folder: Path) -> tuple[Series, dict[str, Series]]:
    """The optimizer steps, (N,), and each column of figures, (N,), NaN where a step has none."""
    path = folder / STEPS
    if not path.is_file():
        raise ResultsError(
            f"{folder}: no {STEPS}, which a run of several tasks leaves; give the folder of one, trained with "
            f"tasks=[label,target] and, for cosines, weighting=pcgrad"
        )
    with path.open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    names = [name for name in rows[0] if name.startswith(("weight_", "cosine_"))] if rows else []
    if not names:
        raise ResultsError(f"{path}: no columns weight_TASK; expected what a run of several tasks leaves; train it again")
    try:
        figures = {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
        return np.array([int(row["step"]) for row in rows]), figures
    except (KeyError, ValueError, TypeError) as error:
        raise ResultsError(f"{path}: expected numbers in every column ({error}); train the run again") from error


def table_of(figures: Mapping[str, Series], parts: int, digits: int | None) -> Table:
    """A row a pair or task, a column a part of training, and one of all of it."""
    count = len(next(iter(figures.values())))
    pieces = {
        f"{100 * i // parts}-{100 * (i + 1) // parts} %": slice(i * count // parts, (i + 1) * count // parts)
        for i in range(parts)
    }
    pieces["all"] = slice(None)
    rows: dict[str, list[float | None]] = {}
    for name in sorted(figures):
        there = [values[~np.isnan(values)] for values in (figures[name][piece] for piece in pieces.values())]
        rows[name.replace("_", " ", 1)] = [float(values.mean()) if len(values) else None for values in there]
        if name.startswith("cosine_"):
            shares = [float((values < 0).mean()) if len(values) else None for values in there]
            rows[f"conflict {name.removeprefix('cosine_')}"] = shares
    return Table([*pieces], rows, digits=digits, corner="of", counts=False)


def running(values: Series, width: int) -> Series:
    """The mean of the last `width` values that are there, at each step."""
    there = ~np.isnan(values)
    sums, counts = np.cumsum(np.where(there, values, 0.0)), np.cumsum(there)
    sums[width:], counts[width:] = sums[width:] - sums[:-width], counts[width:] - counts[:-width]
    with np.errstate(invalid="ignore"):
        return sums / counts


def outstanding(figures: Mapping[str, Series], kind: str) -> list[str]:
    """The names of a kind in the order of how much they tell: the lowest mean cosine, the mean weight farthest from 1."""
    means = {name: float(np.nanmean(values)) for name, values in figures.items() if name.startswith(kind)}
    return sorted(means, key=lambda name: means[name] if kind == "cosine_" else -abs(means[name] - 1))


def drawn(steps: Series, figures: Mapping[str, Series], smooth: int, format: str) -> bytes:
    """Weights above, cosines below where there are any."""
    kinds = [kind for kind in ("weight_", "cosine_") if any(name.startswith(kind) for name in figures)]
    figure, axes = pyplot().subplots(len(kinds), 1, sharex=True, squeeze=False, figsize=(9, 2.6 * len(kinds)))
    for kind, axis in zip(kinds, axes[:, 0], strict=True):
        told = outstanding(figures, kind)[:NAMED]
        for name in (name for name in figures if name.startswith(kind) and name not in told):
            axis.plot(steps, running(figures[name], smooth), color="lightgray", linewidth=0.5)
        for name in (name for name in figures if name in told):
            axis.plot(steps, running(figures[name], smooth), label=name.removeprefix(kind).replace("_", " "), linewidth=1)
        axis.set_ylabel(kind.removesuffix("_"))
        axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    if "cosine_" in kinds:
        axes[-1, 0].axhline(0, color="gray", linewidth=0.5)
    axes[-1, 0].set_xlabel("optimizer step")
    return content(figure, format)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; 2 where the user has something to mend."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=verbatim)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a saved run of several tasks")
    parser.add_argument("--parts", type=int, default=4, metavar="N", help="columns of the table (default: %(default)s)")
    parser.add_argument(
        "--smooth", type=int, default=20, metavar="STEPS", help="in a point of a picture (default: %(default)s)"
    )
    add_output_options(parser, stage=False)
    args = parser.parse_args(argv)
    try:
        for name in ("parts", "smooth"):
            if not 1 <= getattr(args, name) <= 1000:
                raise ResultsError(f"--{name} {getattr(args, name)}: expected a number from 1 to 1000")
        steps, figures = read_steps(args.run)
        if draws(args.output, PICTURES, partial(drawn, steps, figures, args.smooth)):
            args.output = None
        table_of(figures, args.parts, args.digits).show(args.format, args.output, [args.run / STEPS])
    except (ResultsError, OSError) as error:
        print(f"conflicts.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
