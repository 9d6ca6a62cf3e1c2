"""What a run prints: what is loaded and trained, what the data hold, what came out."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from hatemtl.corpora.base import SPLITS
from hatemtl.datamodule import DataModule
from hatemtl.methods.base import Component


def network(console: Console, parts: Sequence[Component]) -> None:
    """Every part of the network: whether it takes part in a forward, its parameters, and the share that is trained."""
    total = sum(part.parameters for part in parts)
    table = Table(Column("part", overflow="fold"), "kind", "active")
    for heading in ("parameters", "% of all", "trained", "% trained"):
        table.add_column(heading, justify="right")

    def line(name: str, kind: str, active: str, parameters: int, trained: int) -> list[str]:
        share = [
            f"{100 * value / whole:.2f}" if whole else "" for value, whole in ((parameters, total), (trained, parameters))
        ]
        return [escape(name), kind, active, f"{parameters:,}", share[0], f"{trained:,}", share[1]]

    for part in parts:
        table.add_row(*line(part.name, part.kind, "yes" if part.active else "no", part.parameters, part.trained))
    table.add_section()
    table.add_row(*line("all", "", "", total, sum(part.trained for part in parts)))
    _print(console, "loaded, active and trained", table)


def annotations(console: Console, data: DataModule) -> None:
    """How many posts each task has in each split, and which labels a split never shows."""
    table = Table("task", "labels", *SPLITS)
    missing = []
    for name, column in data.columns.items():
        splits = data.corpora[data.tasks[name].corpus].splits
        table.add_row(
            escape(name), str(len(column.space)), *(str(int(column.has[splits == split].sum())) for split in SPLITS)
        )
        if column.space.kind == "tokens":
            continue
        for split in SPLITS:
            values = column.values[(splits == split) & column.has]
            seen = np.isin(range(len(column.space)), values) if values.ndim == 1 else (values >= 0.5).any(axis=0)
            absent = [label for label, there in zip(column.space.names, seen, strict=True) if not there]
            if len(values) and absent:
                missing.append(f"{name}: no post of the {split} split carries {', '.join(absent)}")
    _print(console, "annotated posts", table)
    for line in missing:
        console.print(f"[yellow]warning:[/] {escape(line)}")


def results(console: Console, rows: Mapping[str, float], title: str) -> None:
    """The closing table: every metric but the counts."""
    table = Table(Column("metric", overflow="fold"))
    table.add_column("value", justify="right")
    for metric, value in rows.items():
        if not is_count(metric, rows):
            table.add_row(escape(metric), f"{value:.3f}")
    _print(console, title, table)


def is_count(metric: str, rows: Mapping[str, float]) -> bool:
    """Whether the row is one of a label's three counts: true and false positives, false negatives."""
    kinds = ("tp", "fp", "fn")
    return any(
        f"_{kind}_" in metric and all(metric.replace(f"_{kind}_", f"_{other}_", 1) in rows for other in kinds)
        for kind in kinds
    )


def _print(console: Console, title: str, table: Table) -> None:
    console.print(escape(title), style="bold", highlight=False, soft_wrap=True)  # a table's own title wraps at its width
    console.print(table)
