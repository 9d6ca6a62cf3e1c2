"""What a cohort saves: runs trained side by side against the same runs one after another, in turns on the same posts.

Both are whole commands, `main.py cohort.parts=N` against N times `main.py tasks.target.mask_pattern="i N"`: what the user
waits for, from the first import to the last saved run. Beside that the training alone, as run.json has it.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import command_line
from benchmarks.readings import org, ratio

ROOT = Path(__file__).parents[1]
# What a cohort is of: how it is asked for, and its runs by themselves.
COHORTS: dict[str, tuple[str, list[str]]] = {
    "2 parts": ("cohort.parts=2", [f'tasks.target.mask_pattern="{i} 2"' for i in (1, 2)]),
    "4 parts": ("cohort.parts=4", [f'tasks.target.mask_pattern="{i} 4"' for i in (1, 2, 3, 4)]),
    "4 seeds": ("cohort.seeds=[0,1,2,3]", [f"seed={i}" for i in range(4)]),
}


@dataclass(frozen=True)
class Cost:
    """Seconds from the command to its end, and of training alone, all runs together."""

    whole: float
    training: float


def measure(commands: Sequence[str], shared: Sequence[str], *, threads: int) -> Cost:
    """The cost of these commands, one after another, each with overrides of its own beside the shared ones."""
    whole = training = 0.0
    for command in commands:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, "main.py", *shared, command, f"save_path={folder}/run"],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                check=True,
                stdout=subprocess.DEVNULL,
            )
            whole += time.perf_counter() - begun
            training += sum(json.loads(path.read_text())["seconds"] for path in Path(folder).glob("run*/run.json"))
    return Cost(whole, training)


def report(costs: Mapping[tuple[str, str], Sequence[Cost]]) -> str:
    """An org table: how many times as fast each cohort is as its runs one after another, of the costs by name and way."""
    rows = []
    for name in dict.fromkeys(name for name, _ in costs):
        cells = []
        for part in ("whole", "training"):
            of = ratio(*([getattr(cost, part) for cost in costs[name, way]] for way in ("apart", "together")))
            cells.append(f"{of.middle:.2f} ({of.low:.2f}–{of.high:.2f})")
        rows.append([name, *cells])
    return org(["times as fast as one after another", "the whole command", "training alone"], rows)


def main() -> None:
    parser = command_line.parser(__doc__, posts=True, quick="one round of few posts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fraction", type=float, default=0.1, help="share of the training posts that both sides read")
    parser.add_argument("--encoder", default="minilm", help="as conf/encoder/ names it")
    parser.add_argument("--cohorts", nargs="+", choices=list(COHORTS), default=list(COHORTS))
    parser.add_argument("--overrides", nargs="*", default=[], help="of both sides, as batching.posts=8")
    options = parser.parse_args()
    sample = ["corpus@tasks.target.corpus=sample", f"tasks.target.corpus.size={400 if options.quick else 4000}"]
    real = [f"data.dir={Path(options.posts).resolve()}", f"tasks.target.corpus.fraction={options.fraction}"]
    shared = [
        f"encoder={options.encoder}",
        *(sample if options.posts == "sample" else real),
        "optimization.epochs=2",
        f"trainer.accelerator={'gpu' if options.device == 'cuda' else 'cpu'}",
        *options.overrides,
    ]
    draw, costs = random.Random(0), dict[tuple[str, str], list[Cost]]()
    for _ in range(1 if options.quick else options.rounds):
        order = [(name, way) for name in options.cohorts for way in ("together", "apart")]
        draw.shuffle(order)
        for name, way in order:
            together, apart = COHORTS[name]
            cost = measure([together] if way == "together" else apart, shared, threads=options.threads)
            print(f"{name}, {way}: {cost}", file=sys.stderr, flush=True)
            costs.setdefault((name, way), []).append(cost)
    command_line.leave(options.out, "cohort", report(costs))


if __name__ == "__main__":
    main()
