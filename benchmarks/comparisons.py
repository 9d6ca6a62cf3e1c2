"""What a comparison costs: three systems of five seeds by macro-F1 of eleven labels, over seeds and posts.

Beside it the loop that one would write: draw posts by index, count each label's F1 of each run, again for the next draw.
It is measured over a few draws and scaled to all. Both in turns, each round.
"""

import argparse
import csv
import os
import sys
import time
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import command_line, machine
from benchmarks.readings import Spread, org, ratio, spread, times

if TYPE_CHECKING:
    import numpy as np

SYSTEMS, SEEDS, LABELS = 3, 5, 11


def drawn(posts: int) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """Gold labels (N, C), and what each of the runs says, (runs, N, C), both yes or no, one in ten a yes; C labels."""
    import numpy as np

    draw = np.random.default_rng(0)
    gold = draw.random((posts, LABELS)) < 0.1
    wrong = draw.random((SYSTEMS * SEEDS, posts, LABELS)) < 0.05
    return gold, gold ^ wrong


def by_products(gold: "np.ndarray[Any, Any]", said: "np.ndarray[Any, Any]", resamples: int) -> list[float]:
    """p of each pair of systems, as analysis/compare.py computes them."""
    sys.path.append(str(Path(__file__).parents[1] / "analysis"))
    import numpy as np
    from intervals import Scored
    from outcomes import label_f1s
    from resampling import bootstrap
    from significance import How, hierarchical

    measures = [label_f1s(given, gold, [str(i) for i in range(LABELS)])["macro_f1"] for given in said]
    draws = np.split(bootstrap(measures, resamples, 0), SYSTEMS, axis=1)
    systems = []
    for i, of in enumerate(draws):
        mine = measures[i * SEEDS : (i + 1) * SEEDS]
        systems.append(Scored(np.array([one.value() for one in mine]), tuple(range(SEEDS)), of, tuple(mine)))
    how = How(0.05, 0.05, resamples, 0, paired=True)
    return [hierarchical(a, b, how).p for a, b in combinations(systems, 2)]


def by_loop(gold: "np.ndarray[Any, Any]", said: "np.ndarray[Any, Any]", resamples: int) -> "np.ndarray[Any, Any]":
    """Macro-F1 of each run in each draw, (R, runs), one at a time."""
    import numpy as np

    draw, found = np.random.default_rng(0), np.zeros((resamples, len(said)))
    for r in range(resamples):
        posts = draw.integers(0, len(gold), len(gold))
        for run, given in enumerate(said):
            f1s = []
            for label in range(LABELS):
                true, yes = gold[posts, label], given[posts, label]
                size = true.sum() + yes.sum()
                f1s.append(2 * (true & yes).sum() / size if size else 0.0)
            found[r, run] = np.mean(f1s)
    return found


def report(products: Spread, loop: Spread, faster: Spread, posts: int, resamples: int) -> str:
    """An org table: seconds of both, and how many times as fast the one is."""
    cells = [[name, times(of)] for name, of in (("products", products), ("loop", loop))]
    cells.append(["ratio", f"{faster.middle:.0f} ({faster.low:.0f}–{faster.high:.0f})"])
    return org([f"{SYSTEMS} × {SEEDS} runs, {posts:,} posts, {resamples:,} draws", "s"], cells)


def main() -> None:
    options = _options()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    about = machine.description("cpu", options.threads)
    gold, said = drawn(options.number)
    by_products(gold, said, 100)  # imports
    products, loop = [], []
    for _ in range(options.rounds):
        start = time.perf_counter()
        by_products(gold, said, options.resamples)
        middle = time.perf_counter()
        by_loop(gold, said, options.looped)
        products.append(middle - start)
        loop.append((time.perf_counter() - middle) * options.resamples / options.looped)
    text = report(spread(products), spread(loop), ratio(loop, products), options.number, options.resamples)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "comparisons.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["round", "products", "loop", "posts", "resamples", "looped", *about])
        for i, seconds in enumerate(zip(products, loop, strict=True)):
            writer.writerow([i, *seconds, options.number, options.resamples, options.looped, *about.values()])
    command_line.leave(options.out, "comparisons", text)


def _options() -> argparse.Namespace:
    parser = command_line.parser(__doc__, posts=False, quick="few posts and draws, one round")
    parser.add_argument("--number", type=int, default=1924, help="of posts")
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--looped", type=int, default=30, help="draws that the loop is measured over")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.quick:
        options.number, options.resamples, options.looped, options.rounds = 100, 200, 2, 1
    if options.device != "cpu":
        parser.error("--device: comparisons are computed on the CPU")
    return options


if __name__ == "__main__":
    main()
