"""Makes one page of saved runs: the verdicts in sentences, tables with intervals, and figures with the numbers behind them.

The page is a single file that needs no network. Each of RUNS is a system, a run or a quoted glob of its seeds, as
compare.py takes them; the first is the baseline. All must share a task. Figures whose files the runs do not have are left
out: learning curves need logs/metrics.csv, conflicts objective.csv, retention and interference the runs that were merged.
"""

import argparse
import base64
import csv
import hashlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from compare import add_testing_options, check_testing_options, rows_of
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from ranking import command
from report_figures import FORMATS, Figure, Value, bars
from report_merges import interference, retention, retention_curves
from report_posts import wrong
from report_sections import (
    MEANS,
    Asked,
    by_group,
    by_label,
    conflicts,
    cost,
    learning,
    primary,
    reliability,
    table_of,
    tasks_of,
)
from results import ResultsError, sidecar, write_whole
from summaries import settings
from systems import System, find_systems
from table import Cell, Table
from verdicts import UNDECIDED, Saying, shown_cells

from hatemtl.harmless import shown

EXAMPLES = """examples:
  uv run analysis/report.py "adapters/full_seed_?" "adapters/lora_seed_?" --output report.html
  uv run analysis/report.py "adapters/single_?" "adapters/part_*" "adapters/merge_?" --name single parts merged --letters
  uv run analysis/report.py adapters/run --posts posts.csv --id id --text text --figures figures
"""


def verdicts(asked: Asked, letters: bool) -> tuple[Saying, dict[str, dict[str, Cell]]]:
    """Every main metric of every system, compared as compare.py does."""
    return rows_of(asked.systems, argparse.Namespace(**{**vars(asked.how), "metric": [*asked.metrics], "letters": letters}))


def question(asked: Asked) -> str:
    """The question in a sentence."""
    first, *others = map(shown, asked.names)
    by = f"{', '.join(asked.metrics)} on the test posts of {', '.join(asked.tasks)}"
    seeds = sorted({len(system.runs) for system in asked.systems})
    runs = f"{seeds[0]} {'seed' if seeds == [1] else 'seeds'}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    if not others:
        return f"How good is {first} by {by}? There is one system, of {runs}, so nothing is compared."
    listed = others[0] if len(others) == 1 else f"any of {', '.join(others)}" if len(others) < 8 else f"any of {len(others)}"
    return f"Is {listed} better than {first}, the baseline, by {by}? Of each there {'is' if seeds == [1] else 'are'} {runs}."


ORDER = ("better", "worse", "cannot", "no", "alone")  # of verdicts in the page


class Told(NamedTuple):
    """How a system came out: in a word, in a short sentence, in its numbers, and in the whole sentence of compare.py."""

    metric: str
    kind: str
    headline: str
    numbers: str
    full: str = ""


def told(row: Mapping[str, Cell], base: Mapping[str, Cell], say: Saying) -> Told:
    """How a system came out beside the baseline, or by itself where nothing is compared."""
    cells, name, metric = shown_cells(row, say), row["system"], row["metric"]
    if "sentence" not in row:
        span = f"{say.confidence} {cells[say.confidence]}" if cells[say.confidence] else "with no interval: one run alone"
        return Told(str(metric), "alone", f"{name}: {cells['mean']} {metric}.", span)
    than, verdict = base["system"], str(row["verdict"])
    headline = {
        "better": f"{name} is better than {than}.",
        "worse": f"{name} is worse than {than}.",
        UNDECIDED: f"{name} against {than} cannot be decided with these runs.",
    }.get(verdict, f"{name} against {than}: no difference was shown.")
    means = f"{metric} {cells['mean']} against {shown_cells(base, say)['mean']}"
    ends = f"difference {cells['difference']}, {say.confidence} {cells[f'its {say.confidence}']}"
    return Told(str(metric), verdict.split()[0], headline, f"{means}; {ends}.", str(row["sentence"]))


def described(systems: Sequence[System]) -> Table:
    """The seeds of each system, its parameters, and the settings in which the first runs differ."""
    first = [next(system.each()) for system in systems]
    differing = settings(first)
    rows: dict[str, list[Cell]] = {"seeds": [], "trained parameters": []}
    for system in systems:
        parts = next(iter(system.runs.values()))
        counts: list[int | None] = [(sidecar(part, "run.json") or {}).get("trained_parameters") for part in parts]
        rows["seeds"].append(", ".join(map(str, system.runs)))
        known = [count for count in counts if count is not None]
        rows["trained parameters"].append(f"{sum(known):,}" if len(known) == len(parts) else None)
    rows |= {name: [*values] for name, values in differing.items()}
    return Table([system.name for system in systems], rows, corner="setting", counts=False)


def overview(asked: Asked, rows: Mapping[str, Mapping[str, Cell]], typed: str) -> tuple[Figure, dict[str, dict[str, Value]]]:
    """The main metrics as bars, and their values by metric and system."""
    quality: dict[str, dict[str, Value]] = {}
    for row in rows.values():
        mean, low, high = (float(row[of]) for of in ("mean", "low", "high"))  # type: ignore[arg-type]
        quality.setdefault(str(row["metric"]), {})[str(row["system"])] = Value(mean, low, high)
    table = table_of(quality, asked.names, "metric")
    x, values = "value", {metric.removeprefix("test_"): of for metric, of in quality.items()}
    return Figure("main", "Main metrics", MEANS, partial(bars, asked.names, values, x), table, typed), quality


def read_texts(path: Path, identity: str, text: str) -> dict[str, str]:
    """The text of each post by its id, from a CSV."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names = [*(reader.fieldnames or ())]
            for option, column in (("--id", identity), ("--text", text)):
                if column not in names:
                    raise ResultsError(
                        f"--posts {path} has no column {column!r}; type {option} with one of {', '.join(names)}"
                    )
            return {row[identity]: row[text] or "" for row in reader}
    except OSError as error:
        raise ResultsError(
            f"--posts {path}: {error.strerror}; type --posts with the CSV file that holds the texts"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(f"--posts {path}: {error}; expected a CSV file in UTF-8") from None


def page(**content: Any) -> bytes:
    """The page. Whatever comes from files is escaped, and no script but its own may run."""
    home = Path(__file__).parent
    script = (home / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made = Environment(autoescape=True, loader=FileSystemLoader(home), undefined=StrictUndefined)
    made.filters["shown"] = lambda text: shown(str(text), lines=True)
    return made.get_template("report.html.j2").render(hash=f"sha256-{digest}", script=Markup(script), **content).encode()


def check_outputs(output: Path, figures: Path | None) -> None:
    """Raises ResultsError where what is to be written cannot stand there."""
    if output.is_dir():
        raise ResultsError(f"--output {output}: is a folder; expected a file, as {output / 'report.html'}")
    if output.suffix not in (".html", ".htm"):
        raise ResultsError(f"--output {output}: expected a name that ends in .html, as report.html")
    if figures is not None and figures.exists() and not figures.is_dir():
        raise ResultsError(f"--figures {figures}: is a file; expected a folder, as figures")


def report(args: argparse.Namespace, typed: str) -> tuple[bytes, list[Figure]]:
    """The page and its figures."""
    systems = find_systems(args.runs, args.name, least=1)
    tasks = tasks_of(systems)
    metrics = [*dict.fromkeys(args.metric or primary(systems, tasks))]
    if not metrics:
        raise ResultsError(f"tasks {', '.join(tasks)} have no main metric; type --metric with rows of results.csv")
    how = argparse.Namespace(
        **{of: getattr(args, of) for of in ("alpha", "resamples", "seed", "leaked")},
        **dict.fromkeys(["test", "rope", "digits", "group", "posts"]),
        unpaired=False,
    )
    asked = Asked(systems, tasks, metrics, how, args.runs, typed)
    posts = wrong(asked, read_texts(args.posts, args.id, args.text) if args.posts else None)
    say, rows = verdicts(asked, args.letters and len(systems) > 1)
    first, quality = overview(asked, rows, typed)
    figures = [first, *by_label(asked), *by_group(asked), *learning(asked), *cost(asked, quality), *conflicts(asked)]
    figures += [*reliability(asked), *retention(asked), *retention_curves(asked), *interference(asked)]
    cells = {key: shown_cells(row, say) for key, row in rows.items()}
    columns = ["verdict", "letters", *dict.fromkeys(column for row in cells.values() for column in row)]
    columns = [*dict.fromkeys(column for column in columns if any(row.get(column) for row in cells.values()))]
    grid = {key: [row.get(column) for column in columns] for key, row in cells.items()}
    base = {str(row["metric"]): row for row in reversed(rows.values())}  # the first system's
    said = [told(row, base[str(row["metric"])], say) for row in rows.values()]
    said = sorted([of for of in said if of.full] or said, key=lambda of: ORDER.index(of.kind))
    grouped = {
        of: [[one for one in said if one.metric == of and (one.kind == "no") == plain] for plain in (False, True)]
        for of in metrics
    }
    folders = {system.name: [str(run.path.parent) for run in system.each()] for system in systems}
    lines = {
        system.name: (folders[system.name], command(next(system.each()), folders[system.name][0])) for system in systems
    }
    words = ["--name", *args.name] if args.name else []
    words += [f"--{of}" for of in ("letters", "leaked") if getattr(args, of)]
    words += [word for of in ("alpha", "resamples", "seed") for word in (f"--{of}", str(getattr(args, of)))]
    again = asked.script("compare", *args.runs, "--metric", *metrics, *words) if len(systems) > 1 else typed
    content = {
        "title": "Report of " + ", ".join(map(shown, asked.names[:6])) + (", ..." if len(systems) > 6 else ""),
        "question": question(asked),
        "verdicts": grouped,
        "results": Table(columns, grid, corner="system", counts=False),
        "systems": described(systems),
        "command": again,
        "trained": lines,
        "figures": [(figure, figure.inline()) for figure in figures],
        "posts": posts,
    }
    return page(**content), figures


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; 2 where the user has something to mend."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=verbatim)
    parser.add_argument("runs", nargs="*", metavar="RUNS", help="run folder, or quoted glob of its seeds; baseline first")
    parser.add_argument(
        "--name", nargs="+", action="extend", help="names of the systems; default: what tells the globs apart"
    )
    parser.add_argument("--metric", nargs="+", action="extend", help="rows of results.csv; default: each task's primary one")
    parser.add_argument("--letters", action="store_true", help="compare all pairs, not only each with the baseline")
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="write each figure there as SVG, PDF and PNG as well")
    parser.add_argument("--posts", type=Path, metavar="FILE", help="CSV with posts' texts: shows the most confident errors")
    parser.add_argument("--id", default="id", metavar="COLUMN", help="its column of post ids (default: %(default)s)")
    parser.add_argument("--text", default="text", metavar="COLUMN", help="its column of texts (default: %(default)s)")
    add_testing_options(parser)
    args = parser.parse_args(argv)
    try:
        if not args.runs:
            raise ResultsError(f"no runs given; expected run folders or quoted globs of seeds:\n{EXAMPLES}".rstrip())
        check_testing_options(args)
        check_outputs(args.output, args.figures)
        typed = shlex.join(["uv", "run", "analysis/report.py", *(sys.argv[1:] if argv is None else argv)])
        html, figures = report(args, typed)
        files = (
            {} if args.figures is None else {f"{of.key}.{format}": of.file(format) for of in figures for format in FORMATS}
        )
        for name, content in files.items():
            write_whole(args.figures / re.sub(r"[^\w.-]", "_", name), content)
        write_whole(args.output, html)
        print(f"{args.output}: {len(figures)} figures, {len(html) / 1e6:.2f} MB")
    except (ResultsError, OSError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
