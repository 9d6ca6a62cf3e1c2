"""Shows whether tested runs are as sure as they are right: a reliability diagram, or its table with a row a bin.

Posts are put into bins of equal width by p: of a task with one right label a post by that of the likeliest label, of a
multilabel task by that of each label, every post with every label (or one, --label). Beside how many there are stand their
mean p, the share of them that is right (or carries the label), and the gap between both. The gap of all bins is the expected
calibration error: the bins' gaps, each by its share of the posts. Reads predictions.parquet, which a test leaves. With an
--output that is a picture (.svg, .pdf, .png) runs are drawn side by side.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from pictures import content, draws, pyplot
from results import Results, ResultsError, chosen, find_results, read_predictions, read_results, sidecar
from table import Table, add_output_options, run_names

EXAMPLES = """examples:
  uv run analysis/reliability.py adapters/label_tenth --task label
  uv run analysis/reliability.py adapters/joint adapters/single --task label --bins 10 --output reliability.svg
  uv run analysis/reliability.py adapters/run --task target --label women --format markdown
"""
PICTURES = (".svg", ".pdf", ".png")
Vector = np.ndarray[Any, Any]


class Bins(NamedTuple):
    """By bin, from the least p to the largest: how many answers there are, their mean p, and the share that is true.

    Both means are NaN of an empty bin. error: the expected calibration error.
    """

    posts: Vector
    p: Vector
    right: Vector
    error: float


def read_answers(run: Results, task: str | None, label: str | None) -> tuple[Vector, Vector]:
    """Each answer's p, and whether it is true (or to what share): (N,), of the likeliest label a post, or of every label.

    task: needed where the run has several. Raises ResultsError where the run was not tested, or the task has no labels.
    """
    task, mine = read_predictions(run, task)
    if f"test_{task}_accuracy" in run.rows:
        if label is not None:
            raise ResultsError(f"--label {label}: task {task!r} has one right label a post; leave it out")
        top = [scores.index(max(scores)) for scores in (row["scores"] for row in mine)]
        right = [at == row["gold"][0] for at, row in zip(top, mine, strict=True)]
        return np.array([row["scores"][at] for at, row in zip(top, mine, strict=True)]), np.array(right, float)
    if f"test_{task}_micro_f1" not in run.rows:
        raise ResultsError(
            f"{run.path}: task {task!r} has no labels with probabilities; expected one with head=multiclass, ordinal, "
            f"choice or multilabel, whose test leaves a row test_{task}_accuracy or test_{task}_micro_f1"
        )
    p, true = (np.array([row[of] for row in mine], float) for of in ("scores", "gold"))
    if label is not None:
        names = ((sidecar(run, "labels.json") or {}).get(task) or {}).get("names") or []
        at = names.index(chosen("label", label, names))
        p, true = p[:, at], true[:, at]
    return p.ravel(), true.ravel()


def binned(p: Vector, true: Vector, bins: int) -> Bins:
    """Puts answers into bins ((m - 1) / bins, m / bins], 0 into the first.

    >>> binned(np.array([0.8, 0.6, 0.6, 0.1]), np.array([1, 0, 1, 0]), 2).posts.tolist()
    [1, 3]
    """
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], p)
    count, sure, right = (np.bincount(place, of, minlength=bins) for of in (np.ones(len(p)), p, true))
    with np.errstate(invalid="ignore"):
        return Bins(count.astype(int), sure / count, right / count, float(abs(right - sure).sum() / len(p)))


def table_of(found: Mapping[str, Bins], digits: int | None) -> Table:
    """A row a bin that is empty in no run of them all, and one of all bins; four columns a run."""
    bins = len(next(iter(found.values())).posts)
    several = len(found) > 1
    columns = [f"{name} {of}" if several else of for name in found for of in ("posts", "p", "right", "gap")]
    rows: dict[str, list[float | None]] = {}
    for m in range(bins):
        if any(of.posts[m] for of in found.values()):
            cells: list[float | None] = []
            for of in found.values():
                here = [float(of.p[m]), float(of.right[m]), float(abs(of.right[m] - of.p[m]))]
                cells += [float(of.posts[m]), *(here if of.posts[m] else [None] * 3)]
            rows[f"{m / bins:.3f} to {(m + 1) / bins:.3f}"] = cells
    whole: list[float | None] = []
    for of in found.values():
        mean = [float(np.nansum(part * of.posts) / of.posts.sum()) for part in (of.p, of.right)]
        whole += [float(of.posts.sum()), *mean, of.error]
    rows["every bin"] = whole
    counted = {column: 0 for column in columns if column.endswith("posts")}
    return Table(columns, rows, digits, corner="p", counts=False, decimals=counted)


def drawn(found: Mapping[str, Bins], *, format: str) -> bytes:
    """A diagram a run, side by side: what is right in each bin against how sure it is, above the bins' share of posts."""
    figure, axes = pyplot().subplots(
        2, len(found), figsize=(0.8 + 3.2 * len(found), 4.2), height_ratios=[4, 1], sharex=True, squeeze=False
    )
    for (name, of), (above, below) in zip(found.items(), axes.T, strict=True):
        bins = len(of.posts)
        middles, there = (np.arange(bins) + 0.5) / bins, of.posts > 0
        above.plot([0, 1], [0, 1], color="#808080", linewidth=1, linestyle="--", gid="diagonal")
        above.bar(middles[there], of.right[there], 0.94 / bins, color="C0", alpha=0.6, gid="bars")
        above.plot(of.p[there], of.right[there], "o", color="C0", markersize=3, gid="means")
        above.set(xlim=(0, 1), ylim=(0, 1), title=f"{name}: ECE {of.error:.3f}")
        below.bar(middles, of.posts / of.posts.sum(), 0.94 / bins, color="#b0b0b0")
        below.set(xlabel="p")
    axes[0, 0].set_ylabel("share that is right")
    axes[1, 0].set_ylabel("posts")
    return content(figure, format)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; 2 where the user has something to mend."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=verbatim)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="tested run, its results.csv, or a quoted glob of them")
    parser.add_argument("--task", help="needed where a run has several")
    parser.add_argument("--label", help="the one of a multilabel task; default: all, pooled")
    parser.add_argument("--bins", type=int, default=15, metavar="N", help="of equal width (default: %(default)s)")
    parser.add_argument("--name", nargs="+", action="extend", help="names of the runs, in their order")
    add_output_options(parser, stage=False)
    args = parser.parse_args(argv)
    try:
        if not 1 <= args.bins <= 1000:
            raise ResultsError(f"--bins {args.bins}: expected a number from 1 to 1000")
        paths = find_results(args.runs)
        names, found = run_names(args.name, args.runs, paths), {}
        if len({*names}) < len(names):
            raise ResultsError(f"--name: {', '.join(names)}; expected another name for each run")
        for name, path in zip(names, paths, strict=True):
            p, true = read_answers(read_results(path), args.task, args.label)
            if not all(map(math.isfinite, p)) or p.min() < 0 or p.max() > 1 + 1e-6:
                raise ResultsError(f"{path.parent}: a score is no probability; expected all from 0 to 1; train it again")
            found[name] = binned(p, true, args.bins)
        if draws(args.output, PICTURES, partial(drawn, found)):
            args.output = None
        table_of(found, args.digits).show(args.format, args.output, paths)
    except (ResultsError, OSError) as error:
        print(f"reliability.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
