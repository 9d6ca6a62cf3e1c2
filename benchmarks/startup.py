"""What a command costs before it does anything: `--help`, and the way to the first training step, with tokens in the cache.

Each beside an import of the four libraries that any such run needs, in turns; a ratio says what hatemtl adds to them. The
first step is timed to the line of an epoch of few steps, whose few validation posts it contains. On the CPU.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import command_line
from benchmarks.readings import org, ratio, times

ROOT = Path(__file__).parents[1]
IMPORTS = "importing the libraries"
LIMITS = {"--help": 1.0, "to the first step": 12.0}  # seconds that a user waits without wondering


def until(command: Sequence[str], line: str | None, *, threads: int) -> float:
    """Seconds from the command to the first line of output that begins so, or to its end. Raises where it fails before."""
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for said in process.stdout:
            if line is not None and said.startswith(line):
                seconds = time.perf_counter() - begun
                process.communicate()
                return seconds
    if process.returncode or line is not None:
        raise RuntimeError(
            f"{' '.join(command)} ended with {process.returncode}" + (f" and without {line!r}" if line else "")
        )
    return time.perf_counter() - begun


def report(seconds: Mapping[str, Sequence[float]]) -> str:
    """An org table: each wait over that for the libraries alone, and whether its median is within the limit."""
    rows = []
    for name, limit in LIMITS.items():
        of = ratio(seconds[name], seconds[IMPORTS])
        middle = sorted(seconds[name])[len(seconds[name]) // 2]
        said = f"{'under' if middle <= limit else 'over'} {limit:g} s"
        rows.append([name, times(of), said])
    return org(["waiting", "over importing torch, transformers, adapters and lightning", "median"], rows)


def main() -> None:
    parser = command_line.parser(__doc__, posts=True, quick="one round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.device != "cpu":
        parser.error("a start is measured on the CPU; leave --device out")
    sample, real = "corpus@tasks.label.corpus=sample", f"data.dir={Path(options.posts).resolve()}"
    with tempfile.TemporaryDirectory() as folder:
        run = ["main.py", "tasks=[label]", "encoder=minilm", "tasks.label.corpus.limit=100", "optimization.epochs=1"]
        run += [sample if options.posts == "sample" else real, f"data.cache={folder}/cache"]
        run += ["overwrite=true", f"save_path={folder}/run"]
        commands: dict[str, tuple[list[str], str | None]] = {
            IMPORTS: (["-c", "import torch, transformers, adapters, lightning"], None),
            "--help": (["main.py", "--help"], None),
            "to the first step": (run, "epoch 1/1"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(2 if options.quick else options.rounds + 1):
            for name, (command, line) in commands.items():
                taken = until(command, line, threads=options.threads)
                if number:  # the first round fills the caches
                    seconds[name].append(taken)
                print(f"round {number}, {name}: {taken:.2f} s", file=sys.stderr, flush=True)
    command_line.leave(options.out, "startup", report(seconds))


if __name__ == "__main__":
    main()
