"""Puts saved runs side by side: metrics as rows, runs as columns, in the terminal or for a paper."""

import argparse
import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from results import (
    ResultsError,
    column_names,
    find_results,
    is_bound,
    is_count,
    note,
    read_results,
    testing_line,
    write_whole,
)
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from hatemtl.harmless import guarded, shown

SUFFIXES = {".org": "org", ".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json"}
LOWER_IS_BETTER = re.compile(
    r"_(loss|error|mae|rmse|ece|brier|nll|perplexity|sufficiency|false_(positive|negative)_(rate|difference)|explaining_seconds)"
    r"(_|$)"
)
NEITHER_IS_BETTER = re.compile(r"_temperature$|_fold_sd(_|$)")
Cell = float | str | None
EXAMPLES = """examples:
  uv run analysis/table.py adapters/small/lora16/target_single adapters/small/lora16/target_merge --best
  uv run analysis/table.py "adapters/small/lora16/target_part_*" --metric "*_f1_*" --counts
  uv run analysis/table.py parts.csv adapters/small/lora16/target_single --name partitioned single --output table.tex
  uv run analysis/table.py "adapters/joint_?" "adapters/single_?" --name joint single --mean
  uv run analysis/table.py "adapters/joint_?" "adapters/single_?" --name joint single --interval --letters --best
  uv run analysis/table.py "adapters/sweep/*" --settings --transpose --metric test_label_macro_f1
"""


def has_no_better(metric: str) -> bool:
    """Tells whether neither more nor less of a row is better: a count, an end of an interval, a spread."""
    return bool(is_count(metric) or is_bound(metric) or NEITHER_IS_BETTER.search(metric))


@dataclass(frozen=True)
class Table:
    """Metrics as rows, runs as columns; None where a run lacks the metric. A cell that is a text is shown as it is.

    digits: after the point; None for 3, and for all of them in CSV.
    best: mark the best value of each row, and with letters all that share one with it: those are within noise of it.
    spread: beside a value that is a mean, how far it may be off; measured: what that is, in short.
    letters: of a row's cells, behind each: those that share one were not shown to differ.
    transposed: shown with runs as rows and metrics as columns.
    corner: the header of the rows' names. counts: whether rows named as counts are whole numbers.
    decimals: after the point, of columns that have their own. below: sentences under the table, but not in CSV and JSON.
    """

    columns: Sequence[str]
    rows: Mapping[str, Sequence[Cell]]
    digits: int | None = None
    best: bool = False
    spread: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    measured: str = "sd"
    letters: Mapping[str, Sequence[str]] = field(default_factory=dict)
    transposed: bool = False
    corner: str = "metric"
    counts: bool = True
    decimals: Mapping[str, int] = field(default_factory=dict)
    below: Sequence[str] = ()

    def cells(self, metric: str, bold: Callable[[str], str] = str) -> list[str]:
        """One row as it is shown, the best values in `bold`."""
        counted = self.counts and is_count(metric) and not self.spread
        digits = 0 if counted else 3 if self.digits is None else self.digits
        places = [self.decimals.get(column, digits) for column in self.columns]
        known = [value for value in self.rows[metric] if isinstance(value, float | int) and not math.isnan(value)]
        means = [_rounded(value, of) for value, of in zip(self.rows[metric], places, strict=True)]
        spread = self.spread.get(metric, [None] * len(means))
        shown = [cell if sd is None else f"{cell} ± {sd:.{of}f}" for cell, sd, of in zip(means, spread, places, strict=True)]
        letters = self.letters.get(metric, [""] * len(means))
        shown = [f"{cell} {letter}" if letter else cell for cell, letter in zip(shown, letters, strict=True)]
        if not self.best or has_no_better(metric) or len(known) < 2:
            return shown
        best = min(known) if LOWER_IS_BETTER.search(metric) else max(known)
        # Compared as shown: of two values that read the same, neither is printed as the better one.
        marked = f"{best:.{digits}f}"
        noise = {of for mean, letter in zip(means, letters, strict=True) if mean == marked for of in letter}
        good = [mean == marked or bool(noise & {*letter}) for mean, letter in zip(means, letters, strict=True)]
        return [bold(cell) if yes else cell for yes, cell in zip(good, shown, strict=True)]

    def grid(self, text: Callable[[str], str], bold: Callable[[str], str]) -> list[list[str]]:
        """The header and the rows as strings, with names on one line passed through `text`."""

        def named(name: str) -> str:
            return text(shown(" ".join(name.split())))

        head = [named(name) for name in (self.corner, *self.columns)]

        def cells(metric: str) -> list[str]:
            pairs = zip(self.cells(metric, bold), self.rows[metric], strict=True)
            return [named(cell) if isinstance(value, str) else cell for cell, value in pairs]

        grid = [head, *([named(metric), *cells(metric)] for metric in self.rows)]
        return [*map(list, zip(*grid, strict=True))] if self.transposed else grid

    def terminal(self) -> RichTable:
        head, *body = self.grid(escape, "[bold green]{}[/]".format)
        table = RichTable(head[0])
        for name in head[1:]:
            table.add_column(name, justify="right", overflow="fold")
        for row in body:
            table.add_row(*row)
        return table

    def org(self) -> str:
        widths, (head, *body) = _aligned(self.grid(lambda name: name.replace("|", r"\vert{}"), "*{}*".format))
        under = ["", *(f"- {shown(sentence)}" for sentence in self.below)] if self.below else []
        return "\n".join([head, f"|{'+'.join('-' * (width + 2) for width in widths)}|", *body, *under])

    def markdown(self) -> str:
        def text(name: str) -> str:
            return re.sub(r"([\\|*`<\[\]])", r"\\\1", name)

        grid = self.grid(text, "**{}**".format)
        widths, (head, *body) = _aligned(grid)
        rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
        under = ["", *(f"- {text(shown(sentence))}" for sentence in self.below)] if self.below else []
        return "\n".join([head, f"|{rule}|", *body, *under])

    def latex(self) -> str:
        named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}

        def text(name: str) -> str:
            return re.sub(r"[\\~^&%$#_{}]", lambda found: named.get(found[0], "\\" + found[0]), name)

        head, *body = (" & ".join(row) + r" \\" for row in self.grid(text, r"\textbf{{{}}}".format))
        start = rf"\begin{{tabular}}{{l{'r' * len(self.rows if self.transposed else self.columns)}}}"
        under = [line for sentence in self.below for line in ("", text(shown(sentence)))]
        return "\n".join([start, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", *under])

    def csv(self) -> str:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        head, *body = self.records()
        lines = [head]
        for metric, *values in body:
            digits = 0 if is_count(str(metric)) and not self.spread else self.digits
            lines.append([metric, *(values if self.digits is None else (_rounded(value, digits) for value in values))])
        writer.writerows([*map(guarded, line)] for line in (zip(*lines, strict=True) if self.transposed else lines))
        return file.getvalue().removesuffix("\n")

    def records(self) -> list[list[Cell]]:
        """The header and the rows, values in full, each followed by what stands behind them in a cell."""
        named = {self.measured: self.spread, "letters": self.letters}
        behind = {name: of for name, of in named.items() if of}
        head: list[Cell] = [self.corner, *self.columns, *(f"{run} {name}" for name in behind for run in self.columns)]
        none: list[Cell] = [None] * len(self.columns)
        more = {row: [cell for of in behind.values() for cell in of.get(row, none)] for row in self.rows}
        return [head, *([row, *values, *more[row]] for row, values in self.rows.items())]

    def json(self) -> str:
        """A list with an object a row; values in full, null where there is none."""
        head, *rows = [*zip(*self.records(), strict=True)] if self.transposed else self.records()
        objects = [dict(zip(head, map(_finite, row), strict=True)) for row in rows]
        return json.dumps(objects, indent=2, ensure_ascii=False)

    def show(self, format: str | None, output: Path | None, inputs: Iterable[Path]) -> None:
        """Prints the table, or writes it to `output`, whole or not at all; without `format`, as fits the place."""
        format = format or (SUFFIXES.get(output.suffix) if output else None if sys.stdout.isatty() else "org")
        if format == "csv" and self.best:
            raise ResultsError("--best: CSV has no bold; leave --best out, or type --format org, markdown or latex")
        if output is None:
            if format:
                return print(getattr(self, format)())
            Console().print(self.terminal(), *map(escape, map(shown, self.below)), sep="\n")
            return None
        if format is None:
            raise ResultsError(f"--output {output}: expected one of {', '.join(SUFFIXES)}, or type --format as well")
        if output.resolve() in {path.resolve() for path in inputs}:
            raise ResultsError(f"--output {output} is one of the results read; expected a new file")
        return write_whole(output, (getattr(self, format)() + "\n").encode())


def _rounded(value: Cell, digits: int | None) -> str:
    return value if isinstance(value, str) else "" if value is None else f"{value:.{digits}f}"


def _finite(value: Cell) -> Cell:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_names(given: Sequence[str] | None, patterns: Sequence[str], paths: Sequence[Path]) -> Sequence[str]:
    """A column's name for each run: those given, one a run or one a pattern of runs, or the runs' own.

    Raises ResultsError for another number of names.
    """
    if given and len(given) == len(patterns) < len(paths):
        of = {
            path.resolve(): name for pattern, name in zip(patterns, given, strict=True) for path in find_results([pattern])
        }
        return [of[path.resolve()] for path in paths]
    names = given or column_names(paths)
    if len(names) != len(paths):
        runs = ", ".join(map(str, paths))
        raise ResultsError(f"--name: {len(names)} names for {len(paths)} runs; expected one for each of {runs}")
    return names


def _aligned(grid: list[list[str]]) -> tuple[list[int], list[str]]:
    """Column widths, and lines with the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = []
    for name, *cells in grid:
        padded = [name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]
        lines.append(f"| {' | '.join(padded)} |")
    return widths, lines


def add_output_options(parser: argparse.ArgumentParser, *, stage: bool = True) -> None:
    """The options that every script with a table has; `stage` where its rows are of one."""
    if stage:
        parser.add_argument("--stage", default="test", choices=["test", "val"], help="which rows (default: %(default)s)")
    parser.add_argument("--format", choices=[*SUFFIXES.values()], help="default: as FILE's name says; piped: org")
    parser.add_argument("--digits", type=int, choices=range(18), metavar="N", help="decimals (default: 3; csv: all)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of printing")


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; 2 where the user has something to mend."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=verbatim)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, CSV of results, or a quoted glob of them")
    parser.add_argument("--name", nargs="+", action="extend", help="names of the columns, one a run or one a glob")
    parser.add_argument("--metric", nargs="+", action="extend", metavar="GLOB", help="only these rows, in this order")
    parser.add_argument("--counts", action="store_true", help="with the rows of counts, and the ends of intervals")
    parser.add_argument("--mean", action="store_true", help="one column for runs of one name: mean ± standard deviation")
    parser.add_argument("--interval", action="store_true", help="the same, ± half the 95 %% interval over seeds (Student's)")
    parser.add_argument(
        "--letters",
        action="store_true",
        help="the same, with letters: means of a row that share one were not shown to differ",
    )
    parser.add_argument(
        "--best", action="store_true", help="mark the best value of each row; with --letters all within noise"
    )
    parser.add_argument("--settings", action="store_true", help="with a row for each key in which the runs' settings differ")
    parser.add_argument("--transpose", action="store_true", help="runs as rows, metrics and settings as columns")
    add_output_options(parser)
    args = parser.parse_args(argv)
    from summaries import averaged, settings  # which makes tables

    try:
        paths = find_results(args.runs)
        runs = [read_results(path) for path in paths]
        names = run_names(args.name, args.runs, paths)
        stage = f"{args.stage}_"
        for run in runs:
            if not any(metric.startswith(stage) for metric in run.rows):
                note(f"{run.path} has no {args.stage} rows: its column stays blank")
        metrics = {
            m for run in runs for m in run.rows if m.startswith(stage) and (args.counts or not (is_count(m) or is_bound(m)))
        }
        for pattern in args.metric or ():
            if not any(fnmatchcase(metric, pattern) for metric in metrics):
                known = f"the rows are {', '.join(sorted(metrics))}" if metrics else f"there are no {args.stage} rows"
                raise ResultsError(f"--metric {pattern!r} matches no row; {known}")
        if not metrics:
            raise ResultsError(f"no {args.stage} rows in any run; test one first: {testing_line(runs[0])}")
        globs = args.metric or ["*"]  # whose order is that of the rows
        wanted = [*dict.fromkeys(m for glob in globs for m in sorted(metrics) if fnmatchcase(m, glob))]
        rows = {metric: [run.rows.get(metric) for run in runs] for metric in wanted}
        chosen = settings(runs) if args.settings else {}
        options = {"digits": args.digits, "best": args.best, "transposed": args.transpose}
        if args.mean or args.interval or args.letters:
            table = averaged(names, rows, interval=args.interval, letters=args.letters, settings=chosen, **options)
        else:
            table = Table(names, {**chosen, **rows}, **options)
        table.show(args.format, args.output, paths)
    except (ResultsError, OSError) as error:
        print(f"table.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
