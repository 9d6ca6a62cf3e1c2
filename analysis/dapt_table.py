"""The table of a study of domain pre-training: does an adapter that first guessed masked tokens classify better?

A row for each training: by kind of adapter, which is its method and the keys of it in which the study's runs differ, what
text of so large a share made of the loss on masked tokens, and what score each way to go on gave with so large a share of
labelled posts; beside it the cost, in thousands of trained parameters, optimizer steps and seconds. Seeds are averaged. What
a run is, its config.yaml and run.json say.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from results import Results, ResultsError, find_results, leaves, note, read_results, sidecar
from retention_table import cost
from table import Table, add_output_options

EXAMPLES = """examples:
  uv run analysis/dapt_table.py "adapters/dapt/*/results.csv"
  uv run analysis/dapt_table.py "adapters/dapt/*/results.csv" --metric accuracy --format org --output adapters/dapt/table.org
"""
COST = ("thousands", "steps", "s")  # as `cost` gives them
WAYS = {"ah_load": "goes on", "ah_stack": "stacked"}  # by the method of the classifying run
NO_KIND = ("path", "sources", "learning_rate")  # keys of a method that make no other kind of adapter


@dataclass(frozen=True)
class Run:
    """What a run of the study is.

    share: of the training posts. keys: of its method, with their values. cost: the values of COST, None where run.json lacks
    one. source: where its pre-training lies, if it has any.
    """

    results: Results
    task: str
    masked: bool
    trained: bool
    share: float
    method: str
    keys: Mapping[str, str]
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
        keys=method_keys(config),
        seed=record["seed"],
        cost=cost(results),
        source=Path(sources[0]).resolve() if sources else None,
    )


def method_keys(config: Mapping[str, Any]) -> dict[str, str]:
    """The keys of a run's method that tell kinds of adapters apart, with their values as they are typed."""
    found = leaves(config.get("method") or {})
    return {key: str(value) for key, value in found if key not in NO_KIND and not key.startswith("_") and value is not None}


def kinds(runs: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    """Names for the kinds of adapters of runs, each given by method and keys: the method, and the keys that differ in it.

    >>> kinds([("ah_par_bn", {"reduction_factor": "2"}), ("ah_par_bn", {"reduction_factor": "6"}), ("ah_mam", {})])
    ['ah_par_bn reduction_factor=2', 'ah_par_bn reduction_factor=6', 'ah_mam']
    """
    values: dict[tuple[str, str], set[str | None]] = defaultdict(set)
    known = {method: {key for of, keys in runs for key in keys if of == method} for method, _ in runs}
    for method, keys in runs:
        for key in known[method]:
            values[method, key].add(keys.get(key))
    return [
        " ".join([method, *(f"{key}={keys[key]}" for key in sorted(keys) if len(values[method, key]) > 1)])
        for method, keys in runs
    ]


def tabulate(runs: Sequence[Run], stage: str, metric: str) -> dict[str, dict[str, list[float]]]:
    """The values of each cell, one a seed, by row and column; amounts of labels that nothing goes on with are left out."""
    pretrained = {run.results.path.parent.resolve(): run for run in runs if run.masked and run.trained}
    before = {(run.share, run.seed): run for run in runs if run.masked and not run.trained}
    classified = [run for run in runs if not run.masked]
    learned = [run for run in runs if not run.masked or run.trained]
    kind = dict(zip(map(id, learned), kinds([(run.method, run.keys) for run in learned]), strict=True))
    cells: dict[tuple[str, float, int, float, str], tuple[str, dict[str, list[float]]]] = {}

    def value(run: Run, name: str) -> float:
        row = f"{stage}_{run.task}_{name}"
        if row not in run.results.rows:
            near = ", ".join(r for r in run.results.rows if r.startswith(f"{stage}_{run.task}"))
            raise ResultsError(f"{run.results.path} has no row {row}; it has {near or f'no {stage} rows'}")
        return run.results.rows[row]

    def add(place: tuple[str, float, int, float, str], name: str, run: Run, values: Mapping[str, float]) -> None:
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
        used.add((kind[id(first)], run.share))
        way = kind[id(run)].replace(run.method, WAYS[run.method], 1)
        name = f"{kind[id(first)]}, labelled {run.share:g}, text {first.share:g}, {way}"
        place = kind[id(first)], run.share, 1 + list(WAYS).index(run.method), first.share, way
        add(place, name, run, {metric: value(run, metric)})
    for run in classified:
        if run.source is None and (kind[id(run)], run.share) in used:
            name = f"{kind[id(run)]}, labelled {run.share:g}, without"
            add((kind[id(run)], run.share, 0, 0.0, ""), name, run, {metric: value(run, metric)})
    for first in pretrained.values():
        losses = {"masked loss after": value(first, "loss")}
        if start := before.get((first.share, first.seed)):
            losses["masked loss before"] = value(start, "loss")
        else:
            note(f"no run of {first.share:g} of the text before pre-training, seed {first.seed}")
        if used:
            add((kind[id(first)], -1.0, 0, first.share, ""), f"{kind[id(first)]}, text {first.share:g}", first, losses)
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
