"""The table of a study of domain pre-training: does an adapter that first guessed masked tokens classify better?

A row for each training: by kind of adapter, what text of so large a share made of the loss on masked tokens, and what score
each way to go on gave with so large a share of labelled posts; beside it the cost, in thousands of trained parameters,
optimizer steps and seconds. Seeds are averaged. What a run is, its config.yaml and run.json say.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from results import Results, ResultsError, find_results, note, read_results, sidecar
from retention_table import cost
from table import Table, add_output_options

EXAMPLES = """examples:
  uv run analysis/dapt_table.py "adapters/dapt/*/results.csv"
  uv run analysis/dapt_table.py "adapters/dapt/*/results.csv" --metric accuracy --format org --output adapters/dapt/table.org
"""
COST = ("thousands", "steps", "s")  # as `cost` gives them
WAYS = {"ah_load": "goes on", "ah_stack": "stacked"}  # by the method of the classifying run


@dataclass(frozen=True)
class Run:
    """What a run of the study is.

    share: of the training posts. cost: the values of COST, None where run.json lacks one. source: where its pre-training
    lies, if it has any.
    """

    results: Results
    task: str
    masked: bool
    trained: bool
    share: float
    method: str
    seed: int
    cost: Sequence[float | None]
    source: Path | None


def describe(results: Results) -> Run:
    """Reads what a run is from the files beside its results.

    Raises ResultsError where it has more than one task, or the files are missing.
    """
    config, record = sidecar(results, "config.yaml"), sidecar(results, "run.json")
    if config is None or record is None:
        raise ResultsError(f"{results.path}: no config.yaml and run.json beside it; expected a saved run of dapt_study.sh")
    tasks: Mapping[str, Any] = config["tasks"]
    if len(tasks) != 1:
        raise ResultsError(f"{results.path}: a run of {', '.join(tasks)}; expected one task, as dapt_study.sh trains")
    [(task, settings)] = tasks.items()
    sources = list(record["sources"])
    return Run(
        results,
        task,
        masked=settings["column"] is None,
        trained=config["optimization"]["encoder_lr"] > 0,
        share=settings["corpus"]["fraction"],
        method=record["method"],
        seed=record["seed"],
        cost=cost(results),
        source=Path(sources[0]).resolve() if sources else None,
    )


def tabulate(runs: Sequence[Run], stage: str, metric: str) -> dict[str, dict[str, list[float]]]:
    """The values of each cell, one a seed, by row and column; amounts of labels that nothing goes on with are left out."""
    pretrained = {run.results.path.parent.resolve(): run for run in runs if run.masked and run.trained}
    before = {(run.share, run.seed): run for run in runs if run.masked and not run.trained}
    classified = [run for run in runs if not run.masked]
    cells: dict[tuple[str, float, int, float], tuple[str, dict[str, list[float]]]] = {}

    def value(run: Run, name: str) -> float:
        row = f"{stage}_{run.task}_{name}"
        if row not in run.results.rows:
            near = ", ".join(r for r in run.results.rows if r.startswith(f"{stage}_{run.task}"))
            raise ResultsError(f"{run.results.path} has no row {row}; it has {near or f'no {stage} rows'}")
        return run.results.rows[row]

    def add(place: tuple[str, float, int, float], name: str, run: Run, values: Mapping[str, float]) -> None:
        _, row = cells.setdefault(place, (name, defaultdict(list)))
        for column, amount in {**values, **dict(zip(COST, run.cost, strict=True))}.items():
            if amount is not None:
                row[column].append(amount)

    used = set()
    for run in classified:
        if run.source is None:
            continue
        first = pretrained.get(run.source)
        if first is None:
            raise ResultsError(f"{run.results.path} goes on from {run.source}, which is not among the runs; name it too")
        if run.method not in WAYS:
            raise ResultsError(f"{run.results.path} goes on with method={run.method}; expected {' or '.join(WAYS)}")
        used.add((first.method, run.share))
        name = f"{first.method}, labelled {run.share:g}, text {first.share:g}, {WAYS[run.method]}"
        place = first.method, run.share, 1 + list(WAYS).index(run.method), first.share
        add(place, name, run, {metric: value(run, metric)})
    for run in classified:
        if run.source is None and (run.method, run.share) in used:
            name = f"{run.method}, labelled {run.share:g}, without"
            add((run.method, run.share, 0, 0.0), name, run, {metric: value(run, metric)})
    for first in pretrained.values():
        losses = {"masked loss after": value(first, "loss")}
        if start := before.get((first.share, first.seed)):
            losses["masked loss before"] = value(start, "loss")
        else:
            note(f"no run of {first.share:g} of the text before pre-training, seed {first.seed}")
        if used:
            add((first.method, -1.0, 0, first.share), f"{first.method}, text {first.share:g}", first, losses)
    return {name: row for _, (name, row) in sorted(cells.items(), key=lambda cell: cell[0])}


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; 2 where the user has something to mend."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=verbatim)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or a quoted glob of them")
    parser.add_argument("--metric", default="macro_f1", help="of the classifying runs (default: %(default)s)")
    add_output_options(parser)
    args = parser.parse_args(argv)
    try:
        paths = find_results(args.runs)
        cells = tabulate([describe(read_results(path)) for path in paths], args.stage, args.metric)
        if not cells:
            raise ResultsError("no run among these goes on from masked pre-training; train them with scripts/dapt_study.sh")
        names = ["masked loss before", "masked loss after", args.metric, *COST]
        seeds = {row: max(map(len, of.values())) for row, of in cells.items()}
        for row, number in seeds.items():
            if number < max(seeds.values()):
                note(f"{row}: the mean of {number} seeds, others are of {max(seeds.values())}")
        rows = {row: [fmean(of[name]) if of[name] else None for name in names] for row, of in cells.items()}
        spread = {row: [stdev(of[name]) if len(of[name]) > 1 else None for name in names] for row, of in cells.items()}
        Table(names, rows, args.digits, spread=spread, corner="trained", decimals=dict.fromkeys(COST, 0)).show(
            args.format, args.output, paths
        )
    except (ResultsError, OSError) as error:
        print(f"dapt_table.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
