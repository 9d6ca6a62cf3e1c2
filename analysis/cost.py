"""What runs took and cost: minutes and price, for each per cent of text and of labels, and what a score costs.

A row for each kind of run, seeds averaged, from the ledger in run.json: every phase from loading to testing, of all
sittings. "a %" divides by the share of the training posts that the run read, of text where it guessed masked tokens, else of
labels. "in all" adds what the runs that it started from took, where they are still there; "/ price" is the score over that.

With --grid the runs are samples, of one small share each, and the table is an estimate: what runs of the shares --text and
--labels would take. Of a sample's time that of training grows with the share, and the rest stays.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dapt_table import WAYS, kinds, method_keys
from results import Results, ResultsError, find_results, note, read_results, sidecar
from table import Table, add_output_options

EXAMPLES = """examples:
  uv run analysis/cost.py "adapters/dapt/*" --per_hour 1.18
  uv run analysis/cost.py "adapters/small/*" --metric macro_f1 --format org --output cost.org
  uv run analysis/cost.py "adapters/dapt/estimate/*" --grid --text 0.25 1 --labels 0.05 1 --seeds 3 --ways 2 --per_hour 1.18
"""
COLUMNS = ("minutes", "minutes a %", "price", "price a %", "kJ", "minutes in all", "price in all")
GRID = ("runs", "minutes each", "minutes", "price")
WHOLE = {"minutes": 1, "minutes a %": 2, "price": 2, "price a %": 4, "kJ": 1, "minutes in all": 1, "price in all": 2}


@dataclass(frozen=True)
class Run:
    """What a run was, and what it took.

    learns: whether the encoder side does. share: of the training posts, None where its tasks read unlike ones. seconds: by
    phase. price: by its own ledger.
    """

    results: Results
    tasks: Sequence[str]
    encoder: str
    masked: bool
    learns: bool
    share: float | None
    method: str
    keys: Mapping[str, str]
    sources: Sequence[Path]
    seconds: Mapping[str, float]
    price: float | None
    joules: float | None

    def priced(self, per_hour: float | None) -> float | None:
        return self.price if per_hour is None else per_hour * sum(self.seconds.values()) / 3600


def describe(results: Results) -> Run | None:
    """Reads what a run was and took; None of one without a whole ledger, as of versions before it."""
    config, record = sidecar(results, "config.yaml"), sidecar(results, "run.json")
    if config is None or record is None or "method" not in record:
        raise ResultsError(f"{results.path}: no config.yaml and run.json of a training beside it; expected a saved run")
    if not (ledger := record.get("ledger")) or not ledger.keys() >= {"seconds", "price", "joules"}:
        return None
    tasks: Mapping[str, Any] = config["tasks"]
    shares = {task["corpus"].get("fraction") for task in tasks.values()}
    return Run(
        results,
        [*tasks],
        encoder=record["encoder_source"],
        masked=all(task["column"] is None for task in tasks.values()),
        learns=config["optimization"]["encoder_lr"] > 0,
        share=next(iter(shares)) if len(shares) == 1 else None,
        method=record["method"],
        keys=method_keys(config),
        sources=[Path(source).resolve() for source in record.get("sources") or {}],
        seconds=ledger["seconds"],
        price=ledger["price"],
        joules=ledger["joules"],
    )


def read(paths: Iterable[Path]) -> list[Run]:
    """The runs that have a ledger; others are noted. Raises ResultsError where none has."""
    found = {path: describe(read_results(path)) for path in paths}
    if without := [str(path.parent) for path, run in found.items() if run is None]:
        some = ", ".join(without[:3]) + (f" and {len(without) - 3} more" if len(without) > 3 else "")
        if len(without) == len(found):
            raise ResultsError(
                f"{some}: no ledger in run.json, as of an older version; train them again with overwrite=true"
            )
        note(f"without a ledger, and left out: {some}")
    return [run for run in found.values() if run is not None]


def behind(run: Run, known: dict[Path, Run | None]) -> list[Run] | None:
    """All runs that a run started from, and they from others; None where one is not there any more. known: by folder."""
    found: dict[Path, Run] = {}
    todo = [*run.sources]
    while todo:
        folder = todo.pop()
        if folder not in known:
            there = (folder / "results.csv").is_file()
            known[folder] = describe(read_results(folder / "results.csv")) if there else None
        source = known[folder]
        if source is None:
            return None
        if folder not in found:
            found[folder] = source
            todo += source.sources
    return [*found.values()]


def named(runs: Sequence[Run], known: Mapping[Path, Run | None]) -> list[str]:
    """Each run's row: kind of adapter, shares of text and labels, how it goes on; tasks and encoders where they differ."""
    there = list({id(run): run for run in (*runs, *known.values()) if run is not None}.values())
    kind = dict(zip(map(id, there), kinds([(run.method, run.keys) for run in there]), strict=True))
    tasks = {(run.masked, *run.tasks) for run in runs if not run.masked}
    encoders = {run.encoder for run in runs}
    names = []
    for run in runs:
        first = next((known.get(source) for source in run.sources if known.get(source)), None)
        parts = [kind[id(run)]]
        if first is not None and first.masked:
            way = kind[id(run)].replace(run.method, WAYS.get(run.method, run.method), 1)
            parts = [kind[id(first)], f"text {_percent(first)}", way]
        parts.insert(1, f"{'text' if run.masked else 'labels'} {_percent(run)}")
        parts += [] if run.learns else ["encoder as it was"]
        parts += ["+".join(run.tasks)] if len(tasks) > 1 and not run.masked else []
        parts += [Path(run.encoder).name] if len(encoders) > 1 else []
        names.append(", ".join(parts))
    return names


def _percent(run: Run) -> str:
    return "of unlike shares" if run.share is None else f"{100 * run.share:g} %"


def score(run: Run, stage: str, metric: str) -> float | None:
    """The mean of the metric over the tasks of a run; None where it has none, as of one that guesses masked tokens."""
    values = [run.results.rows.get(f"{stage}_{task}_{metric}") for task in run.tasks]
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def figures(run: Run, known: dict[Path, Run | None], per_hour: float | None, value: float | None) -> list[float | None]:
    """The values of COLUMNS, the score, and the score over the price of all."""
    minutes, price, whole = sum(run.seconds.values()) / 60, run.priced(per_hour), behind(run, known)
    share = 100 * run.share if run.share else None
    prices = None if whole is None else [price, *(source.priced(per_hour) for source in whole)]
    in_all = None if prices is None or None in prices else sum(one for one in prices if one is not None)
    each = [None if share is None or amount is None else amount / share for amount in (minutes, price)]
    spent = None if whole is None else minutes + sum(sum(source.seconds.values()) / 60 for source in whole)
    joules = None if run.joules is None else run.joules / 1000
    of_price = None if value is None or not in_all else value / in_all
    return [minutes, each[0], price, each[1], joules, spent, in_all, value, of_price]


def estimate(
    samples: Sequence[Run], text: Sequence[float], labels: Sequence[float], *, seeds: int, ways: int, per_hour: float | None
) -> dict[str, list[float | None]]:
    """The values of GRID for each kind and share, and of all. ways: that go on from each share of text, by share of labels.

    Raises ResultsError where a sample reads unlike shares.
    """
    rows: dict[str, list[float | None]] = {}
    for run, kind in zip(samples, kinds([(run.method, run.keys) for run in samples]), strict=True):
        if run.share is None:
            raise ResultsError(f"{run.results.path}: its tasks read unlike shares of posts; expected one share in a sample")
        for share in text if run.masked else labels:
            runs = seeds * (1 if run.masked else 1 + ways * len(text))
            training = run.seconds.get("training", 0.0)
            each = (sum(run.seconds.values()) + training * (share / run.share - 1)) / 60
            price = None if per_hour is None else per_hour * runs * each / 60
            rows[f"{kind}, {'text' if run.masked else 'labels'} {100 * share:g} %"] = [runs, each, runs * each, price]
    totals = [[cell for cell in column if cell is not None] for column in zip(*rows.values(), strict=True)]
    rows["all"] = [sum(totals[0]), None, sum(totals[2]), sum(totals[3]) if totals[3] else None]
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; 2 where the user has something to mend."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=verbatim)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or a quoted glob of them")
    parser.add_argument("--per_hour", type=float, metavar="PRICE", help="of an hour; default: cost.per_hour of each run")
    parser.add_argument("--metric", default="macro_f1", help="the score, a mean over tasks (default: %(default)s)")
    parser.add_argument("--grid", action="store_true", help="the runs are samples: estimate what a grid would take")
    parser.add_argument(
        "--text", nargs="*", type=float, default=[], metavar="SHARE", help="with --grid: shares read as text"
    )
    parser.add_argument("--labels", nargs="*", type=float, default=[], metavar="SHARE", help="the same, read with labels")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="with --grid: runs of each (default: %(default)s)")
    parser.add_argument("--ways", type=int, default=0, metavar="N", help="with --grid: runs that go on from each text")
    add_output_options(parser)
    args = parser.parse_args(argv)
    try:
        if args.per_hour is not None and not 0 <= args.per_hour < float("inf"):
            raise ResultsError(f"--per_hour {args.per_hour}: expected a number of at least 0")
        paths = find_results(args.runs)
        runs = read(paths)
        if args.grid:
            if not (args.text or args.labels) or min([*args.text, *args.labels]) <= 0:
                raise ResultsError("--grid: expected shares above 0 to estimate; type --text 0.25 1 --labels 0.05 1")
            grid = {"seeds": args.seeds, "ways": args.ways, "per_hour": args.per_hour}
            table = estimate(runs, args.text, args.labels, **grid)
            digits = {"runs": 0, "minutes each": 1, "minutes": 1, "price": 2}
            Table(GRID, table, args.digits, corner="about", decimals=digits).show(args.format, args.output, paths)
            return 0
        known: dict[Path, Run | None] = {run.results.path.parent.resolve(): run for run in runs}
        for run in runs:
            behind(run, known)  # which finds the sources
        names = named(runs, known)
        cells: dict[str, list[list[float | None]]] = defaultdict(list)
        for name, run in sorted(zip(names, runs, strict=True), key=lambda pair: pair[0]):
            cells[name].append(figures(run, known, args.per_hour, score(run, args.stage, args.metric)))
        columns = [*COLUMNS, args.metric, f"{args.metric} / price"]
        rows = {row: [_over(fmean, column, 1) for column in zip(*of, strict=True)] for row, of in cells.items()}
        spread = {row: [_over(stdev, column, 2) for column in zip(*of, strict=True)] for row, of in cells.items()}
        Table(columns, rows, args.digits, spread=spread, corner="run", decimals=WHOLE).show(args.format, args.output, paths)
    except (ResultsError, OSError) as error:
        print(f"cost.py: {error}", file=sys.stderr)
        return 2
    return 0


def _over(figure: Any, column: Sequence[float | None], least: int) -> float | None:
    """A figure of a row's seeds, where so many know the value and none lacks it."""
    known = [value for value in column if value is not None]
    return figure(known) if len(known) == len(column) >= least else None


if __name__ == "__main__":
    sys.exit(main())
