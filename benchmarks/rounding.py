"""What a run's numbers depend on besides its command: threads, the processor's instructions, the number format, the seed.

    uv run benchmarks/rounding.py data.dir=../shared/data tasks.label.corpus.fraction=0.1

Each variant is the same training and test, in a process of its own; words behind the script's name are added to it. Of each
it tells how far the scores of the test's posts lie from the first one's: all of it is rounding, but for the last row, which
is another seed, to compare with.
"""

import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks import command_line
from benchmarks.posts import macro_f1
from benchmarks.readings import org
from hatemtl.machine.startup import PROGRAM

WORDS = ["tasks=[label]", "encoder=minilm", "action=[train,test]", "optimization.epochs=1", "trainer.accelerator=cpu"]
WORDS += ["trainer.progress=false", "trainer.compile=false", "data.cache=null"]
OLDER = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}  # what a processor of 2013 has
# What each row is called, its words, and its environment.
VARIANTS = (
    ("float32, one thread", ["trainer.precision=32"], {"OMP_NUM_THREADS": "1"}),
    ("again", ["trainer.precision=32"], {"OMP_NUM_THREADS": "1"}),
    ("two threads", ["trainer.precision=32"], {"OMP_NUM_THREADS": "2"}),
    ("an older processor's instructions", ["trainer.precision=32"], {"OMP_NUM_THREADS": "1", **OLDER}),
    ("bf16, one thread", ["trainer.precision=bf16"], {"OMP_NUM_THREADS": "1"}),
    ("bf16, two threads", ["trainer.precision=bf16"], {"OMP_NUM_THREADS": "2"}),
    ("another seed", ["trainer.precision=32", "seed=1"], {"OMP_NUM_THREADS": "1"}),
)


def tested(folder: Path, words: list[str], environment: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Trains and tests; gives the scores (N, C) and gold classes (N,) of the test's posts, in one order."""
    import pandas as pd

    command = [*PROGRAM, *WORDS, *words, f"save_path={folder}"]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    frame = pd.read_parquet(folder / "predictions.parquet").sort_values("post_id", kind="stable")
    return np.stack([*map(np.asarray, frame["scores"])]), np.array([gold[0] for gold in frame["gold"]], int)


def apart(found: dict[str, np.ndarray], gold: np.ndarray) -> str:
    """An org table, a variant a row, differences to the first. found: scores (N, C) of each. gold: (N,)."""
    first, rows = next(iter(found.values())), []
    for name, scores in found.items():
        off, said = np.abs(scores - first), scores.argmax(1)
        moved = (said != first.argmax(1)).mean()
        figures = [f"{off.max():.1e}", f"{off.mean():.1e}", f"{moved:.1%}", f"{macro_f1(said, gold, scores.shape[1]):.4f}"]
        rows.append([name, *figures])
    return org(["run", "largest difference of a score", "mean", "other label", "macro-F1"], rows)


def main() -> None:
    parser = command_line.parser(__doc__, posts=False, quick="made-up posts on a tiny encoder")
    options, words = parser.parse_known_args()
    if options.quick:
        words += ["encoder=tiny", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=150"]
    found: dict[str, np.ndarray] = {}
    with TemporaryDirectory() as folder:
        for number, (name, own, environment) in enumerate(VARIANTS):
            found[name], gold = tested(Path(folder) / str(number), [*words, *own], environment)
            print(f"{name}: done", flush=True)
    command_line.leave(options.out, "rounding", apart(found, gold))


if __name__ == "__main__":
    main()
