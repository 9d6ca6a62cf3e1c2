"""What merging costs: seconds and memory of every closed-form merge in conf/merge, its result cut to the sources' rank.

Four LoRAs of rank 16 on q, k, v and both feed-forward matrices of every layer. Every merge is a process of its own, for
its memory is part of it: that which is added at its peak to the process that holds the sources. The first of a process's
merges is not timed, but its memory is.
"""

import argparse
import csv
import multiprocessing as mp
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import command_line, machine
from benchmarks.flops import Shape
from benchmarks.readings import Spread, org, spread

if TYPE_CHECKING:
    from hatemtl.merging.lora import LoRAUpdate

MERGES = Path(__file__).parents[1] / "conf" / "merge"
SIZES = {
    "small": Shape(layers=12, hidden=256, feed_forward=1024),
    "base": Shape(layers=12, hidden=768, feed_forward=3072),
}
SOURCES = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """A merge, by its name in conf/merge, of sources of this size."""

    merge: str
    size: str
    layers: int
    rounds: int
    threads: int


@dataclass(frozen=True)
class Cost:
    """Seconds of one merge, those that a processor spent on it, and bytes that it needs at its peak beside the sources.

    The processor's are more than the clock's with several threads, and fewer where other processes had their turn.
    """

    seconds: Spread
    processor: Spread
    memory: int


def measure(case: Case) -> Cost | None:
    """The cost, or None of a merge that takes statistics of posts and so is in no closed form of the sources alone."""
    import psutil  # type: ignore[import-untyped]  # comes with accelerate
    import torch
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from hatemtl.machine.provenance import peak_memory
    from hatemtl.merging.base import merge_factors

    torch.set_num_threads(case.threads)
    merge = instantiate(OmegaConf.load(MERGES / f"{case.merge}.yaml"), _convert_="all")
    if merge.needs is not None:
        return None
    shape = SIZES[case.size]
    sources = drawn(shape, case.layers)
    before = psutil.Process().memory_info().rss
    merge_factors(merge, sources, shape.rank)
    peak = peak_memory()
    seconds, processor = [], []
    for _ in range(case.rounds):
        start, worked = time.perf_counter(), time.process_time()
        merge_factors(merge, sources, shape.rank)
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - worked)
    return Cost(spread(seconds), spread(processor), max(0, (peak or 0) - before))


def drawn(shape: Shape, layers: int) -> "list[dict[str, LoRAUpdate]]":
    """SOURCES LoRAs of the shape's rank on so many of its layers, by layer and matrix."""
    import torch

    from hatemtl.merging.lora import LoRAUpdate

    draw = torch.Generator().manual_seed(0)
    widths = {
        **dict.fromkeys(("query", "key", "value"), (shape.hidden, shape.hidden)),
        "intermediate": (shape.feed_forward, shape.hidden),
        "output": (shape.hidden, shape.feed_forward),
    }
    return [
        {
            f"{layer}.{name}": LoRAUpdate(
                torch.randn(shape.rank, into, generator=draw), torch.randn(out, shape.rank, generator=draw)
            )
            for layer in range(layers)
            for name, (out, into) in widths.items()
        }
        for _ in range(SOURCES)
    ]


def report(costs: Sequence[tuple[Case, Cost]]) -> str:
    """An org table: a row a merge, seconds and MiB of each size."""
    sizes = list(dict.fromkeys(case.size for case, _ in costs))
    found = {(case.merge, case.size): cost for case, cost in costs}
    rows = []
    for merge in sorted({merge for merge, _ in found}):
        cells = []
        for size in sizes:
            if cost := found.get((merge, size)):
                middle, low, high = cost.seconds
                cells += [f"{middle:.2f} ({low:.2f}–{high:.2f})", f"{cost.memory / 2**20:.0f}"]
            else:
                cells += ["", ""]
        rows.append([f"={merge}=", *cells])
    return org(["merge", *(f"{size}, {unit}" for size in sizes for unit in ("s", "MiB"))], rows)


def main() -> None:
    options = _options()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    about = machine.description("cpu", options.threads)
    cases = [
        Case(
            merge=merge,
            size=size,
            layers=1 if options.quick else SIZES[size].layers,
            rounds=1 if options.quick else options.rounds,
            threads=options.threads,
        )
        for size in options.sizes
        for merge in options.merges
    ]
    random.Random(0).shuffle(cases)
    costs: list[tuple[Case, Cost]] = []
    with mp.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for case, cost in zip(cases, pool.imap(measure, cases), strict=True):
            print(
                f"{case.merge}, {case.size}: {cost or 'left out, it takes statistics of posts'}", file=sys.stderr, flush=True
            )
            if cost is not None:
                costs.append((case, cost))
    costs.sort(key=lambda pair: (options.sizes.index(pair[0].size), pair[0].merge))
    text = report(costs)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "merging.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = ["seconds", "least", "greatest", "processor", "least processor", "greatest processor", "bytes"]
        writer.writerow(["merge", "size", "layers", "rounds", *columns, *about])
        for case, cost in costs:
            numbers = [*cost.seconds, *cost.processor, cost.memory]
            writer.writerow([case.merge, case.size, case.layers, case.rounds, *numbers, *about.values()])
    (options.out / "merging.org").write_text(text + "\n", encoding="utf-8")
    print(text)


def _options() -> argparse.Namespace:
    names = sorted(path.stem for path in MERGES.glob("*.yaml"))
    parser = command_line.parser(__doc__, posts=False, quick="one layer, one round")
    parser.add_argument("--merges", nargs="+", choices=names, default=names)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.device != "cpu":
        parser.error("--device: merges are computed on the CPU")
    return options


if __name__ == "__main__":
    main()
