"""What a training run takes of the machine's memory: the greatest resident set of whole commands, on the CPU.

Each trains MiniLM for some steps and evaluates it once, on made-up posts of known lengths, and the system is asked when it
ends. The more different lengths it has met, the more it keeps: freed memory, and code for each shape.
"""

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import command_line
from benchmarks.readings import org

ROOT = Path(__file__).parents[1]
METHODS = ("ah_lora16", "full")
LENGTHS = {"all 128": (128, 128), "any to 512": (3, 512)}  # tokens of a post, the two special ones included
CHOICES: dict[str, list[str]] = {
    "batching.batch_size=32": [],
    "batching.batch_size=8": ["batching.batch_size=8"],
    "batching=tokens": ["batching=tokens"],
}


def posts(least: int, most: int, *, train: int, val: int) -> Iterator[str]:
    """Lines of CSV: texts of so many tokens, a label, a split. The longest stands in each split."""
    draw = random.Random(0)
    yield "text,label,split"
    for split, count in (("train", train), ("val", val), ("test", 2)):
        for i in range(count):
            length = draw.randint(least, most) if i else most
            yield f"{' '.join(['post'] * (length - 2))},{'ab'[i % 2]},{split}"


def peak(command: Sequence[str], *, threads: int) -> int:
    """Bytes of a command's greatest resident set, or of this small process's if that is greater. Raises where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # of this child alone, not the greatest of all
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def report(peaks: Mapping[tuple[str, str, str], int]) -> str:
    """An org table in GiB: a row for each way of batching posts of these lengths, a column for each method."""
    rows = [
        [lengths, choice, *(f"{peaks[lengths, choice, method] / 2**30:.1f}" for method in METHODS)]
        for lengths, choice in dict.fromkeys((lengths, choice) for lengths, choice, _ in peaks)
    ]
    return org(["tokens of a post", "batching", *(f"GiB, method={method}" for method in METHODS)], rows)


def main() -> None:
    parser = command_line.parser(__doc__, posts=False, quick="two steps")
    parser.add_argument("--steps", type=int, default=30, help="of 32 posts, or of fewer and then more of them")
    parser.add_argument("--encoder", default="minilm", help="as conf/encoder/ names it")
    parser.add_argument("--overrides", nargs="*", default=[], help="of all runs, as trainer.precision=32")
    options = parser.parse_args()
    if options.device != "cpu":
        parser.error("of a GPU, run.json has the peak in its ledger; leave --device out")
    steps = 2 if options.quick else options.steps
    peaks: dict[tuple[str, str, str], int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for lengths, (least, most) in LENGTHS.items():
            table = Path(folder) / f"{most}.csv"
            table.write_text("\n".join(posts(least, most, train=32 * steps, val=128)) + "\n")
            for choice, overrides in CHOICES.items():
                for method in METHODS:
                    command = ["main.py", f"encoder={options.encoder}", f"encoder.max_length={most}", f"method={method}"]
                    command += ["tasks=[table]", f"tasks.table.corpus.path={table}", "tasks.table.corpus.split=split"]
                    command += ["tasks.table.column=label", "optimization.epochs=1", "trainer.accelerator=cpu"]
                    command += ["data.cache=null", f"save_path={folder}/{len(peaks)}", *overrides, *options.overrides]
                    peaks[lengths, choice, method] = peak(command, threads=options.threads)
                    print(f"{lengths}, {choice}, {method}: {peaks[lengths, choice, method]}", file=sys.stderr, flush=True)
    command_line.leave(options.out, "memory", report(peaks))


if __name__ == "__main__":
    main()
