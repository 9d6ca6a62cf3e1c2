"""The table of a study of domain pre-training: does an adapter that first guessed masked tokens classify better?

A row for each kind of adapter, share of text and share of labelled posts: the loss on masked tokens before and after, the
score of each way to go on, and the seconds of training. Seeds are averaged. What a run is, its config.yaml and run.json say.
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
from table import Table, add_output_options

EXAMPLES = """examples:
  uv run analysis/dapt_table.py "adapters/dapt/*/results.csv"
  uv run analysis/dapt_table.py "adapters/dapt/*/results.csv" --metric accuracy --format org --output adapters/dapt/table.org
"""
WAYS = {"none": "without", "ah_load": "goes on", "ah_stack": "stacked"}  # by the method of the classifying run


@dataclass(frozen=True)
class Run:
    """What a run of the study is. share: of the training posts. source: where its pre-training lies, if it has any."""

    results: Results
    task: str
    masked: bool
    trained: bool
    share: float
    method: str
    seed: int
    seconds: float
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
        seconds=record["seconds"],
        source=Path(sources[0]).resolve() if sources else None,
    )


def columns(metric: str) -> list[str]:
    """The names of the columns, in their order."""
    return [
        *("masked loss before", "masked loss after", "pre-training s"),
        *(f"{metric} {way}" for way in WAYS.values()),
        *(f"{way} s" for way in WAYS.values()),
    ]


def tabulate(runs: Sequence[Run], stage: str, metric: str) -> dict[str, dict[str, list[float]]]:
    """The values of each cell, one a seed, by row and column."""
    pretrained = {run.results.path.parent.resolve(): run for run in runs if run.masked and run.trained}
    before = {(run.share, run.seed): run for run in runs if run.masked and not run.trained}
    classified = [run for run in runs if not run.masked]
    cells: dict[tuple[str, float, float], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def value(run: Run, name: str) -> float:
        row = f"{stage}_{run.task}_{name}"
        if row not in run.results.rows:
            near = ", ".join(r for r in run.results.rows if r.startswith(f"{stage}_{run.task}"))
            raise ResultsError(f"{run.results.path} has no row {row}; it has {near or f'no {stage} rows'}")
        return run.results.rows[row]

    for run in classified:
        if run.source is None:
            continue
        first = pretrained.get(run.source)
        if first is None:
            raise ResultsError(f"{run.results.path} goes on from {run.source}, which is not among the runs; name it too")
        if run.method not in WAYS:
            raise ResultsError(
                f"{run.results.path} goes on with method={run.method}; expected {' or '.join(list(WAYS)[1:])}"
            )
        row = cells[first.method, first.share, run.share]
        row[f"{metric} {WAYS[run.method]}"].append(value(run, metric))
        row[f"{WAYS[run.method]} s"].append(run.seconds)
        if run.method != "ah_load":
            continue  # a seed's pre-training counts once
        row["masked loss after"].append(value(first, "loss"))
        row["pre-training s"].append(first.seconds)
        if start := before.get((first.share, first.seed)):
            row["masked loss before"].append(value(start, "loss"))
        else:
            note(f"no run of {first.share:g} of the text before pre-training, seed {first.seed}")
        for other in classified:
            if other.source is None and (other.method, other.share, other.seed) == (first.method, run.share, run.seed):
                row[f"{metric} {WAYS['none']}"].append(value(other, metric))
                row[f"{WAYS['none']} s"].append(other.seconds)
    return {f"{kind}, text {text:g}, labelled {of:g}": cells[kind, text, of] for kind, text, of in sorted(cells)}


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
        names = columns(args.metric)
        rows = {row: [fmean(of[name]) if of[name] else None for name in names] for row, of in cells.items()}
        spread = {row: [stdev(of[name]) if len(of[name]) > 1 else None for name in names] for row, of in cells.items()}
        Table(names, rows, args.digits, spread=spread, corner="adapter").show(args.format, args.output, paths)
    except (ResultsError, OSError) as error:
        print(f"dapt_table.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
