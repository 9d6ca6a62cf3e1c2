"""How hatemtl's cost grows with posts, tasks, labels and length: measured points and the straight line through them.

The number of posts is varied under a random encoder of two thin layers, so that what is not the encoder's shows; the rest
under MiniLM. Every point is a process of its own, for its memory is part of it.
"""

import argparse
import csv
import gc
import multiprocessing as mp
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import chart, command_line, machine
from benchmarks.readings import Line, fit, org

SERIES = {
    "posts": (1000, 4000, 16000, 32000, 64000),
    "tasks": (1, 2, 3, 4, 5, 6),
    "labels": (2, 64, 256, 1024),
    "length": (16, 32, 64, 128, 256, 512),
}
QUICK = {"posts": (1000, 4000, 8000), "tasks": (1, 3, 6), "labels": (2, 256, 1024), "length": (16, 64, 128)}
UNITS = {"training": "s", "data path": "s", "preparation": "s", "memory": "bytes"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """What is measured with `value` of what `series` varies. posts: those trained on, where they are not what varies."""

    series: str
    value: int
    posts: int
    repeats: int
    threads: int
    device: str


def measure(point: Point) -> dict[str, float]:
    """Seconds of preparation (corpus, tokens, network), of a training epoch and of its data path alone; resident bytes.

    Memory is taken before training, whose batches need the same however many posts there are.
    """
    import psutil  # type: ignore[import-untyped]  # comes with accelerate
    import torch

    torch.set_num_threads(point.threads)
    from benchmarks.ours import Run, Source, composed

    posts = point.value if point.series == "posts" else point.posts
    source = Source(name="sample", train=posts, evaluation=64)
    overrides = ["optimization.epochs=1"]
    if point.series == "posts":
        cfg = composed(source, ("label",), [*overrides, "encoder=tiny"], device=point.device)
    elif point.series == "tasks":
        three = ("label", "target", "rationale")
        cfg = composed(source, three[: point.value], overrides, device=point.device, copies=max(0, point.value - 3))
    elif point.series == "labels":
        cfg = composed(source, ("target",), overrides, device=point.device, labels=point.value)
    else:
        overrides.append(f"encoder.max_length={point.value}")
        cfg = composed(source, ("label",), overrides, device=point.device, words=point.value)
    start = time.perf_counter()
    run = Run(cfg, device=point.device)
    prepared = time.perf_counter() - start
    gc.collect()
    memory = psutil.Process().memory_info().rss
    run.train()  # warm-up
    return {
        "training": statistics.median(run.train().seconds for _ in range(point.repeats)),
        "data path": statistics.median(run.load().seconds for _ in range(point.repeats)),
        "preparation": prepared,
        "memory": memory,
    }


def report(found: Sequence[tuple[Point, dict[str, float]]]) -> tuple[str, dict[tuple[str, str], Line]]:
    """An org table of growth, relative to each series' first point, and the lines: (series, measure) → line."""
    rows, lines = [], {}
    for series in dict.fromkeys(point.series for point, _ in found):
        points = [(point.value, values) for point, values in found if point.series == series]
        for name in UNITS if series == "posts" else ("training", "data path"):
            xs, ys = [float(x) for x, _ in points], [values[name] for _, values in points]
            line = lines[series, name] = fit(xs, ys)
            per_post = f"{line.slope:.0f} bytes a post" if (series, name) == ("posts", "memory") else ""
            rows.append(
                [
                    f"{name} by {series}",
                    f"{xs[0]:g}–{xs[-1]:g}",
                    f"{ys[-1] / ys[0]:.2f}",
                    f"{line.slope * (xs[-1] - xs[0]) / ys[0]:+.2f}",
                    f"{line.intercept / ys[0]:.2f}",
                    f"{line.r2:.4f}",
                    per_post,
                ]
            )
    head = ["cost", "from–to", "last / first", "line's rise / first", "intercept / first", "R²", ""]
    return org(head, rows), lines


def main() -> None:
    options = _options()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    about = machine.description(options.device, options.threads)
    points = [
        Point(
            series=series,
            value=value,
            posts=96 if options.quick else 320 if series != "length" else 96,
            repeats=1 if options.quick else 3,
            threads=options.threads,
            device=options.device,
        )
        for series, values in (QUICK if options.quick else SERIES).items()
        if series in options.series
        for value in values
    ]
    found = []
    with mp.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for point, values in zip(points, pool.imap(measure, points), strict=True):
            found.append((point, values))
            print(f"{point.series} {point.value}: {values}", file=sys.stderr, flush=True)
    table, lines = report(found)
    text = f"{table}\n"
    if biggest := [(point, values) for point, values in found if point.series == "posts"]:
        point, values = biggest[-1]
        text += (
            f"\nThe data path alone gets through {values['training'] / values['data path']:.0f} times the posts a second "
        )
        text += f"of training with encoder=tiny ({point.value} posts).\n"
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "scaling.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["series", "value", "measure", "unit", "result", *about])
        for point, values in found:
            for name, value in values.items():
                writer.writerow([point.series, point.value, name, UNITS[name], value, *about.values()])
    panels = {
        f"{name} ({UNITS[name]}) by {series}": (
            [float(point.value) for point, _ in found if point.series == series],
            [values[name] for point, values in found if point.series == series],
            line,
        )
        for (series, name), line in lines.items()
    }
    (options.out / "scaling.svg").write_text(chart.lines(panels), encoding="utf-8")
    (options.out / "scaling.org").write_text(text, encoding="utf-8")
    print(text)


def _options() -> argparse.Namespace:
    parser = command_line.parser(__doc__, posts=False, quick="fewer and smaller points")
    parser.add_argument("--series", nargs="+", choices=list(SERIES), default=list(SERIES))
    return parser.parse_args()


if __name__ == "__main__":
    main()
