"""Sets merges of a report against what they were made of: F1 that was kept, and updates in one another's way."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import fmean

from heatmap import Panel, drawn
from interference import SUMMARY, by_sources, cosine_over, examine, summary
from loras import read_sources
from report_figures import Figure, Value, bars, curves
from report_sections import Asked
from results import Results, ResultsError, find_results, note, read_results, sidecar
from retention import COLUMNS, compare
from systems import System
from table import Table

from hatemtl.harmless import shown


def _merges(asked: Asked, file: str) -> Iterator[tuple[int, System, Results, list[str]]]:
    """Gives each system that was merged, by its number: its first run, and the runs it was made of, which have this file."""
    for number, system in enumerate(asked.systems):
        merged = next(system.each())
        sources = [str(folder) for folder in (sidecar(merged, "run.json") or {}).get("sources") or {}]
        if len(sources) > 1 and all((Path(folder) / file).is_file() for folder in sources):
            yield number, system, merged, sources


def retention(asked: Asked) -> Iterator[Figure]:
    """F1 that a merge kept of the runs it was made of, where they are parts of a task and still there."""
    for number, system, merged, sources in _merges(asked, "results.csv"):
        try:
            rows = compare(merged, [read_results(path) for path in find_results(sources)], None, "test")
        except ResultsError as error:  # of sources that are no parts there is no retention
            note(f"no retention of {system.name}: {error}")
            continue
        if rows:
            f1s = {
                shown(row.removeprefix("test_")): {of: Value(cells[i] or 0.0) for i, of in enumerate(COLUMNS[:2])}
                for row, cells in rows.items()
            }
            table = Table(COLUMNS[:4], rows, corner="metric", counts=False)
            command = asked.script("retention", "--merged", str(merged.path.parent), "--parts", *sources)
            text = "The first seed. F1 of the parts, each asked for its own labels, and of what was made of them."
            draw = partial(bars, COLUMNS[:2], f1s, "F1")
            yield Figure(f"retention-{number}", f"What {system.name} kept of its parts", text, draw, table, command)


def retention_curves(asked: Asked) -> Iterator[Figure]:
    """Macro-F1 that was kept, by the steps that were trained after merging: a line a way to merge, a figure a task.

    A point is a system; those of one way after as many steps differ in something else, and are named apart.
    """
    found = defaultdict[str, dict[str, dict[str, tuple[int, float]]]](dict)
    for _, system, merged, _ in _merges(asked, "results.csv"):
        seeds = defaultdict[str, list[tuple[int, float]]](list)
        for run in system.each():
            record = sidecar(run, "run.json") or {}
            with suppress(ResultsError):  # which `retention` tells
                parts = [read_results(path) for path in find_results(record.get("sources") or {})]
                rows = compare(run, parts, None, "test")
                for task in asked.tasks:
                    if (kept := rows.get(f"test_{task}_macro_f1", [None] * 4)[3]) is not None:
                        seeds[task].append((record.get("steps") or 0, kept))
        for task, each in seeds.items():
            steps, shares = zip(*each, strict=True)
            found[task].setdefault(_way(merged, system), {})[system.name] = round(fmean(steps)), fmean(shares)
    for task, ways in found.items():
        lines: dict[str, dict[int, float]] = {}
        for way, of in ways.items():
            together = dict(sorted(of.values()))
            lines |= {way: together} if len(together) == len(of) else {name: dict([point]) for name, point in of.items()}
        if sum(map(len, lines.values())) < 2:
            continue
        at = sorted(set().union(*lines.values()))
        table = Table(
            [*lines], {str(steps): [of.get(steps) for of in lines.values()] for steps in at}, corner="steps", counts=False
        )
        y = "macro-F1, as a share of the parts'"
        draw = partial(curves, [*lines], {way: [of] for way, of in lines.items()}, lines, "steps after merging", y)
        text = "Means over seeds: what was made of the parts, over the parts, each asked for its own labels."
        yield Figure(
            f"retention-curves-{task}", f"Retention by steps after merging, task {task}", text, draw, table, asked.command
        )


def _way(merged: Results, system: System) -> str:
    """How a run was made of others: by its merge, or else its method, and what became of the heads."""
    config = sidecar(merged, "config.yaml") or {}
    choices, heads = config.get("choices") or {}, (config.get("heads") or {}).get("merge")
    way = str(choices.get("merge") or choices.get("method") or system.name)
    return f"{way}, heads {heads}" if heads else way


def interference(asked: Asked) -> Iterator[Figure]:
    """Cosines of the updates that merges were made of, where they are LoRAs and still there; a picture a set of updates."""
    made: dict[tuple[str, ...], list[str]] = {}
    for _, system, _, sources in _merges(asked, "run.json"):
        made.setdefault((*sources,), []).append(system.name)
    for number, (paths, merged) in enumerate(made.items()):
        sources = [*paths]
        try:
            read = read_sources(sources)
            pairs = by_sources(examine(read)[0])
        except ResultsError as error:
            note(f"no interference of {', '.join(merged)}: {error}")
            continue
        names = [source.name for source in read]
        whole = {both: cosine_over(of) for both, of in pairs.items()}
        whole |= {(b, a): cosine for (a, b), cosine in whole.items()}
        grid = {f"{i}  {a}": [1.0 if a == b else whole[a, b] for b in names] for i, a in enumerate(names, 1)}
        panel = Panel("", [str(i) for i in range(1, len(names) + 1)], grid)
        table = Table(SUMMARY, {f"{a} - {b}": summary(of) for (a, b), of in pairs.items()}, corner="sources", counts=False)
        text = "Cosines of the updates that were merged: at 1 they agree, at 0 share nothing, at -1 cancel. Columns as rows."
        command = asked.script("interference", *sources)
        title = f"Interference in {', '.join(merged)}"
        yield Figure(f"interference-{number}", title, text, partial(_heat, [panel]), table, command, themed=False)


def _heat(panels: Sequence[Panel], format: str) -> bytes:
    return drawn(panels, format=format)
