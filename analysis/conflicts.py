"""Shows who fights whom, and when: the cosines of tasks' gradients, and the weights of tasks, over the steps of training.

A row of the table is a pair of tasks or a task, a column a part of training (quarters by default). Of a pair stand there the mean cosine of
their gradients and, in brackets, the share of steps in which they were in conflict, the cosine below 0; of a task its mean weight. Reads objective.csv,
which every run of several tasks leaves; cosines are in those of a weighting that takes gradients (weighting=pcgrad and the like).
With an --output that is a picture (.svg, .pdf, .png) both are drawn over the steps, a running mean of --smooth of them.
"""

import argparse
import csv
import sys
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
Series = np.ndarray[Any, Any]


def read_steps(folder: Path) -> tuple[Series, dict[str, Series]]:
    """The optimizer steps, (N,), and each column of figures, (N,), NaN where a step has none."""
    path = folder / "objective.csv"
    if not path.is_file():
        raise ResultsError(
            f"{folder}: no objective.csv, which a run of several tasks leaves; give the folder of one, trained with "
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


def table(figures: dict[str, Series], parts: int) -> Table:
    """A row a pair or task, a column a part of training, and one of all of it."""
    count = len(next(iter(figures.values())))
    pieces = [slice(i * count // parts, (i + 1) * count // parts) for i in range(parts)]
    columns = [f"steps {100 * i // parts}-{100 * (i + 1) // parts} %" for i in range(parts)]

    def cell(name: str, values: Series) -> str:
        values = values[~np.isnan(values)]
        if not len(values):
            return ""
        mean = f"{values.mean():.3f}"
        return f"{mean} ({(values < 0).mean():.0%})" if name.startswith("cosine_") else mean

    ordered = sorted(figures, key=lambda name: name.startswith("weight_"))
    rows = [
        [name.replace("_", " ", 1), *(cell(name, figures[name][piece]) for piece in pieces), cell(name, figures[name])]
        for name in ordered
    ]
    return Table(["of", *columns, "all"], rows)


def running(values: Series, width: int) -> Series:
    """The mean of the last `width` values that are there, at each step."""
    there = ~np.isnan(values)
    sums, counts = np.cumsum(np.where(there, values, 0.0)), np.cumsum(there)
    sums[width:], counts[width:] = sums[width:] - sums[:-width], counts[width:] - counts[:-width]
    with np.errstate(invalid="ignore"):
        return sums / counts


def picture(steps: Series, figures: dict[str, Series], smooth: int, format: str) -> bytes:
    """Weights above, cosines below where there are any."""
    kinds = [kind for kind in ("weight_", "cosine_") if any(name.startswith(kind) for name in figures)]
    figure, axes = pyplot().subplots(len(kinds), 1, sharex=True, squeeze=False, figsize=(7, 2.6 * len(kinds)))
    for kind, axis in zip(kinds, axes[:, 0], strict=True):
        for name in (name for name in figures if name.startswith(kind)):
            axis.plot(steps, running(figures[name], smooth), label=name.removeprefix(kind).replace("_", " "), linewidth=1)
        axis.set_ylabel(kind.removesuffix("_"))
        axis.legend(fontsize="small")
    if "cosine_" in kinds:
        axes[-1, 0].axhline(0, color="gray", linewidth=0.5)
    axes[-1, 0].set_xlabel("optimizer step")
    return content(figure, format)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a saved run of several tasks")
    parser.add_argument("--parts", type=int, default=4, help="parts of training that the table has columns of (4)")
    parser.add_argument("--smooth", type=int, default=20, help="steps that a point of the picture is the mean of (20)")
    add_output_options(parser)
    options = parser.parse_args(arguments)
    for name in ("parts", "smooth"):
        if getattr(options, name) < 1:
            raise ResultsError(f"--{name} {getattr(options, name)}: expected 1 or more")
    steps, figures = read_steps(options.run)
    if not draws(options.output, PICTURES, partial(picture, steps, figures, options.smooth)):
        table(figures, options.parts).write(options)


if __name__ == "__main__":
    try:
        main()
    except ResultsError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
