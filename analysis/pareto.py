"""Shows the Pareto front of a search for a merge's weights: the candidates that no other dominates by two objectives.

Reads search.csv, which a run of merge=learned leaves: a row a candidate, its weights and what it was worth by each
objective. Of every objective less is better: error is 1 - the tasks' primary metric, such as macro-F1, and bias what
merge.bias_of tells. The table holds the front, in the order of --x, and of equal candidates the first; candidate 1 is where
the search started. With an --output that is a picture (.svg, .png) all candidates are drawn as well, and the front marked.
"""

import argparse
import csv
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pictures import content, draws, pyplot
from results import ResultsError, note
from table import Table, add_output_options

EXAMPLES = """examples:
  uv run analysis/pareto.py adapters/small/lora16/target_learned
  uv run analysis/pareto.py adapters/small/lora16/target_learned --output pareto.svg --format markdown
  uv run analysis/pareto.py adapters/small/lora16/target_learned/search.csv --x loss --y error --output front.csv
"""
WEIGHT = "weight_"  # what the columns begin with that are no objectives
PICTURES = (".svg", ".png")
NUMBERED = 20  # candidates of the front; of more, none has its number beside it
Candidates = dict[str, list[float]]  # each column from the first candidate to the last


def read(path: Path) -> Candidates:
    """The columns of a search.csv.

    Raises ResultsError where there is none, or where it is not what a run leaves.
    """
    if not path.is_file():
        raise ResultsError(
            f"{path}: there is no such file; expected a run of merge=learned; train one: uv run main.py method=ah_merge16 "
            f"merge=learned merge.loss=0 merge.error=1 merge.search=cmaes merge.rate=0.2 heads.merge=concat"
        )
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            names, rows = list(reader.fieldnames or ()), [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError as error:
        raise ResultsError(f"{path}: {error}; expected a CSV file in UTF-8") from None
    if not any(name.startswith(WEIGHT) for name in names):
        raise ResultsError(f"{path}: expected columns {WEIGHT}1, ... and objectives, as a run of merge=learned leaves")
    found: Candidates = {name: [] for name in names}
    for line, row in rows:
        try:
            numbers = [float(row[name]) for name in names]
        except (ValueError, TypeError):
            raise ResultsError(f"{path}:{line}: expected a number in every column") from None
        for name, number in zip(names, numbers, strict=True):
            found[name].append(number)
    if not found[names[0]]:
        raise ResultsError(f"{path}: holds no candidates; train the run again")
    return found


def points_of(candidates: Candidates, x: str, y: str) -> dict[int, tuple[float, float]]:
    """What each candidate is worth by two objectives, numbered from 1; those that came to no finite number are left out.

    Raises ResultsError where the search did not record one of them.
    """
    known = [name for name in candidates if not name.startswith(WEIGHT)]
    for axis, name in (("x", x), ("y", y)):
        if name not in known:
            raise ResultsError(
                f"--{axis} {name}: the search did not record it; known: {', '.join(known)}; for error and bias search with "
                f"merge.search=cmaes merge.error=1"
            )
    if x == y:
        raise ResultsError(f"--x {x} --y {y}: expected two objectives; known: {', '.join(known)}")
    both = enumerate(zip(candidates[x], candidates[y], strict=True), 1)
    points = {n: point for n, point in both if all(map(math.isfinite, point))}
    if not points:
        raise ResultsError(f"no candidate has a finite {x} and {y}; search again with a smaller merge.rate")
    if left_out := len(candidates[x]) - len(points):
        note(f"{left_out} candidates without a finite {x} and {y} are left out")
    return points


def front(points: Mapping[int, tuple[float, float]]) -> list[int]:
    """Those that no other dominates, in the order of x: none is as good by both and better by one. Of equals, the first.

    >>> front({1: (0.5, 0.1), 2: (0.4, 0.2), 3: (0.5, 0.2), 4: (0.4, 0.2), 5: (0.6, 0.1)})
    [2, 1]
    """
    found: list[int] = []
    for n in sorted(points, key=lambda n: (*points[n], n)):
        if not found or points[n][1] < points[found[-1]][1]:
            found.append(n)
    return found


def drawn(points: Mapping[int, tuple[float, float]], x: str, y: str, *, format: str) -> bytes:
    """All candidates, the stairs of the front between what can be had and what cannot, and the start."""
    best = front(points)
    figure, axis = pyplot().subplots(figsize=(6, 4.5))
    everywhere, stairs = (tuple(zip(*of, strict=True)) for of in (points.values(), [points[n] for n in best]))
    axis.scatter(everywhere[0], everywhere[1], s=12, color="#b0b0b0", label="candidates", gid="candidates")
    axis.plot(stairs[0], stairs[1], drawstyle="steps-post", color="C0", linewidth=1)
    axis.scatter(stairs[0], stairs[1], s=24, color="C0", zorder=3, label="front", gid="front")
    if 1 in points:
        a, b = points[1]
        axis.scatter(a, b, s=60, marker="s", facecolors="none", edgecolors="C3", label="start", gid="start")
    if len(best) <= NUMBERED:
        for n in best:
            axis.annotate(str(n), points[n], xytext=(4, 4), textcoords="offset points", fontsize=7)
    axis.set_xlabel(f"{x} (less is better)")
    axis.set_ylabel(f"{y} (less is better)")
    axis.legend(fontsize=8)
    return content(figure, format)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; 2 where the user has something to mend."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=verbatim)
    parser.add_argument("run", type=Path, metavar="RUN", help="run of merge=learned, or its search.csv")
    parser.add_argument("--x", default="error", metavar="OBJECTIVE", help="default: %(default)s")
    parser.add_argument("--y", default="bias", metavar="OBJECTIVE", help="default: %(default)s")
    add_output_options(parser, stage=False)
    args = parser.parse_args(argv)
    try:
        path = args.run / "search.csv" if args.run.is_dir() else args.run
        candidates = read(path)
        points = points_of(candidates, args.x, args.y)
        columns = [args.x, args.y, *(name for name in candidates if name not in (args.x, args.y))]
        rows = {str(n): [candidates[name][n - 1] for name in columns] for n in front(points)}
        if draws(args.output, PICTURES, partial(drawn, points, args.x, args.y)):
            args.output = None
        Table(columns, rows, args.digits, corner="candidate").show(args.format, args.output, [path])
    except (ResultsError, OSError) as error:
        print(f"pareto.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
