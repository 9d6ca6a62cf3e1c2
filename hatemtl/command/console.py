"""Prints a run's network, data and results."""

import io
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import rich.console
from rich.control import Control
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from hatemtl.batches.datamodule import DataModule
from hatemtl.corpora.base import SPLITS
from hatemtl.evaluations.base import Row
from hatemtl.harmless import shown
from hatemtl.heads.figures import COUNTS
from hatemtl.methods.base import Component

WIDTH = 125  # characters of a line that is kept
SHOWN = 12  # labels of a task, at most; of more the most and the least frequent


class Page(rich.console.Console):
    """Prints texts and tables with what would move the terminal escaped, for names of labels come from files."""

    def __init__(self, **options: Any) -> None:
        super().__init__(force_jupyter=False, **options)  # a notebook shows what a terminal does, and can leave it out

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **options)


class Console(Page):
    """Prints on the terminal, and keeps what it prints in a file, once it is told in which."""

    NAME = "console.txt"  # in a run's folder

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.path: Path | None = None  # what is printed is kept there too
        self.before: list[str] = []  # what was printed before there was a path

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **options)
        if not all(isinstance(one, Control) for one in objects):  # which a progress bar moves the cursor by
            page = Page(file=(text := io.StringIO()), width=WIDTH, color_system=None)
            page.print(*objects, **options)
            self._keep(text.getvalue())

    def on_broken_pipe(self) -> None:
        """Goes on without a terminal: what is computed is worth more than that somebody reads along (`| head -1`)."""
        with suppress(SystemExit):  # rich's own way leads what is written to nowhere, and then ends the program
            super().on_broken_pipe()

    def keep(self, path: Path) -> None:
        """Keeps what was printed, and all that will be, in this file as well, behind what other commands left there.

        A file whose folder gets another name has to be told anew.
        """
        if self.path is None:
            now = datetime.now().astimezone().isoformat(" ", "seconds")
            self.before.insert(0, f"{now} {shown(shlex.join(sys.argv))}\n")
        self.path = path
        self._keep("".join(self.before))
        self.before = []

    def _keep(self, text: str) -> None:
        if self.path is None:
            self.before.append(text)
            return
        # a link in a run that came from elsewhere may lead to a file of the user's, which lines would be put into
        how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        how |= getattr(os, "O_NONBLOCK", 0)  # nor is a pipe waited for
        with suppress(OSError):  # a full disk is told by who writes what matters
            descriptor = os.open(self.path, how, 0o666)
            with os.fdopen(descriptor, "ab", buffering=0) as file:  # one write: no line of another process in the middle
                file.write(text.encode(errors="backslashreplace"))

    def failed(self, error: BaseException | None) -> None:
        """Keeps the error that ends the command, if one does, which main.py prints."""
        if error is not None:
            self._keep(f"error: {shown(str(error) or type(error).__name__, lines=True)}\n")


def network(console: Console, parts: Sequence[Component]) -> None:
    """Prints every part of the network: whether it takes part in a forward, its parameters, the share that is trained."""
    numbers = (Column(heading, justify="right") for heading in ("parameters", "% of all", "trained", "% trained"))
    table = Table(Column("part", overflow="fold"), "kind", "active", *numbers)
    total = sum(part.parameters for part in parts)

    def add(name: str, kind: str, active: str, parameters: int, trained: int) -> None:
        shares = [f"{100 * n / whole:.2f}" if whole else "" for n, whole in ((parameters, total), (trained, parameters))]
        table.add_row(escape(name), kind, active, f"{parameters:,}", shares[0], f"{trained:,}", shares[1])

    for part in parts:
        add(part.name, part.kind, "yes" if part.active else "no", part.parameters, part.trained)
    table.add_section()
    add("all", "", "", total, sum(part.trained for part in parts))
    _print(console, "loaded, active and trained", table)


def notes(console: Console, lines: Sequence[str]) -> None:
    """Prints the notes that a user should know of the network."""
    for line in lines:
        console.print(f"note: {line}", markup=False, highlight=False, soft_wrap=True)


def merge(console: Console, lost: Mapping[str, float]) -> None:
    """Prints the share of a merge's energy that its cut to a rank kept, where anything was cut."""
    if any(lost.values()):
        worst, mean = max(lost, key=lost.__getitem__), sum(lost.values()) / len(lost)
        said = f"keeps {1 - mean:.1%} of its energy in the mean, the least {worst} with {1 - lost[worst]:.1%}"
        console.print(f"merge: cut to its rank, each layer {said}", markup=False, highlight=False, soft_wrap=True)


def annotations(console: Console, data: DataModule, leaked: Sequence[str] = ()) -> None:
    """Prints posts, tokens and labels of each split, labels that a split never shows, and what `leaks.check` said."""
    table = Table(Column("task and label", overflow="fold"), *(Column(split, justify="right") for split in SPLITS))
    pool = data.pool
    posts = np.concatenate([corpus.splits for corpus in data.corpora.values()])
    table.add_row("posts", *(f"{(posts == split).sum():,}" for split in SPLITS))
    table.add_row("tokens", *(f"{pool.lengths[pool.splits == split].sum():,}" for split in SPLITS))
    absent: list[str] = []
    for name, column in data.columns.items():
        splits = data.corpora[data.tasks[name].corpus].splits
        values = [column.values[(splits == split) & column.has] for split in SPLITS]
        table.add_section()
        table.add_row(escape(f"{name} ({column.space.kind})"), *(f"{len(of_split):,}" for of_split in values))
        if column.space.carries is not None or column.space.about == "second texts":
            absent += _add_counts(table, name, column.space.names, values)
        elif column.space.about == "words":
            table.add_row("  marked words", *(f"{sum(int((words >= 0.5).sum()) for words in each):,}" for each in values))
        elif column.space.about == "answers":
            gone = pool.has[name] & (pool.targets[name][:, 0] < 0)
            each = [int((gone & (pool.splits == split)).sum()) for split in SPLITS]
            table.add_row("  without a whole answer", *(f"{number:,}" for number in each))
            if any(each):
                absent.append(
                    f"{name}: encoder.max_length={pool.max_length} cuts the answers off {sum(each):,} posts, which are left "
                    f"out of the loss and seldom count as right in evaluation; a larger one keeps them"
                )
        elif column.space.about == "posts":
            table.add_row("  mean ± deviation", *(f"{v.mean():.2f} ± {v.std():.2f}" if len(v) else "" for v in values))
    _print(console, "annotated posts", table)
    for line in [*absent, *leaked]:
        console.print(f"[yellow]warning:[/] {escape(line)}", highlight=False, soft_wrap=True)


def _add_counts(table: Table, task: str, names: Sequence[str], values: Sequence[np.ndarray]) -> Iterator[str]:
    """Adds rows of how many posts of each split carry a label, a soft one from a half; says which labels none carries."""
    counts = [np.bincount(v, minlength=len(names)) if v.ndim == 1 else (v >= 0.5).sum(axis=0) for v in values]
    order = np.argsort(-sum(counts), kind="stable")
    for label in range(len(names)) if len(names) <= SHOWN else (order[0], order[-1]):
        table.add_row(escape(f"  {names[label]}"), *(f"{of_split[label]:,}" for of_split in counts))
    if len(names) > SHOWN:
        table.add_row(f"  (most and least frequent of {len(names)})")
    for split, posts, of_split in zip(SPLITS, values, counts, strict=True):
        absent = [name for name, count in zip(names, of_split, strict=True) if not count]
        if len(posts) and absent:
            more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
            yield f"{task}: no post of the {split} split carries {', '.join(absent[:SHOWN])}{more}"


def results(console: Console, rows: Sequence[Row], title: str) -> None:
    """The closing table: every row but the counts, of errors or of posts."""
    table = Table(Column("metric", overflow="fold"), Column("value", justify="right"))
    for row in figures(rows):
        table.add_row(escape(row.metric), f"{row.value:.3f}")
    _print(console, title, table)


def figures(rows: Iterable[Row]) -> Iterator[Row]:
    """Leaves out counts, and what stands behind a figure."""
    return (row for row in rows if row.name not in COUNTS and row.behind is None)


def folds(console: Console, runs: Sequence[Sequence[Row]], folder: str) -> None:
    """Prints the rows of the runs of a cross-validation, but for counts: mean and standard deviation (n - 1) over folds."""
    table = Table(
        Column("metric", overflow="fold"), Column("mean", justify="right"), Column("± sd", justify="right"), "folds"
    )
    found: dict[str, list[float]] = {}
    for row in figures(row for rows in runs for row in rows):
        found.setdefault(row.metric, []).append(row.value)
    for metric, values in found.items():
        spread = f"{stdev(values):.3f}" if len(values) > 1 else ""
        table.add_row(escape(metric), f"{fmean(values):.3f}", spread, str(len(values)))
    _print(console, f"{folder}/fold_*: {len(runs)} folds", table)


def sweep(console: Console, rows: Sequence[tuple[str, str, str]]) -> None:
    """Prints the closing table of a sweep: what sets each run apart, how it ended, and its folder or what is wrong."""
    table = Table(Column("run", overflow="fold"), "state", Column("folder, or what is wrong", overflow="fold"))
    for row in rows:
        table.add_row(*map(escape, row))
    _print(console, "runs of this sweep", table)


def trials(console: Console, rows: Sequence[Mapping[str, str]], title: str) -> None:
    """Prints the trials of a search, a row each, all with the same columns."""
    table = Table(*map(escape, rows[0]))
    for row in rows:
        table.add_row(*map(escape, row.values()))
    _print(console, title, table)


def _print(console: Console, title: str, table: Table) -> None:
    console.print(escape(title), style="bold", highlight=False, soft_wrap=True)  # a table's own title wraps at its width
    console.print(table)
