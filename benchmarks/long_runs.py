"""What a long training keeps of the machine's memory, and where: hatemtl's `fast` and `lean` beside the tuned Trainer's.

Every arm is a process of its own, and all are at work at once, so that what slows the machine slows them alike; speed is
told in seconds of the processor. Each trains a LoRA on MiniLM for so many steps of 32 posts, and evaluates once. Where a
byte is, hatemtl's arms say when their training has ended.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import command_line
from benchmarks.machine import resident
from benchmarks.readings import org
from hatemtl.machine.startup import keep_memory

ROOT = Path(__file__).parents[1]
BATCH = 32
EPOCHS = 3
RIVALS = ("eager", "sdpa")  # attention
TITLES = {arm: f"Trainer, tuned, {arm} attention" for arm in RIVALS} | {"fast": "hatemtl", "lean": "trainer.memory=lean"}
ARMS = tuple(TITLES)


@dataclass(frozen=True)
class Found:
    """What an arm took. busy: seconds of the processor, of training. parts: bytes by what they are of, at training's end."""

    posts: int
    busy: float
    peak: int
    parts: Mapping[str, int]


class _Mallinfo(ctypes.Structure):
    NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def allocated() -> tuple[int, int]:
    """Bytes that glibc's allocator has given out, and that it keeps for the next who asks; zeros where there is none."""
    if platform.libc_ver()[0] != "glibc":
        return 0, 0
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo
    found = libc.mallinfo2()
    return found.uordblks + found.hblkhd, found.fordblks


def ours(source: Any, memory: str) -> Found:
    keep_memory()  # as main.py does before it imports what makes tensors
    from benchmarks.ours import Bytes, Run, composed

    libraries = resident()
    run = Run(composed(source, ("label",), [f"optimization.epochs={EPOCHS}", f"trainer.memory={memory}"]))
    (before, _), told = allocated(), Bytes(run)
    reading = run.train([told])
    gc.collect()
    (after, free), now = allocated(), resident()
    copies = sum(told.parts[name] for name in told.parts if "order" in name)  # made in training, as is what is kept by shape
    parts = {"libraries": libraries, **told.parts, "code and plans of oneDNN, by shape": max(0, after - before - copies)}
    parts |= {"freed, kept by the allocator": free, "all of it": now, "what the largest step keeps for gradients": told.most}
    run.evaluate()
    return Found(reading.posts, run.busy, resident("VmHWM"), parts)


def trainer(source: Any, attention: str) -> Found:
    """By what `TrainerArm.tune` finds on this machine; it is not asked to, for what it tries would be counted too."""
    from benchmarks.encoders import installed
    from benchmarks.ours import examples
    from benchmarks.rivals import Recipe, TrainerArm

    recipe = Recipe(encoder=str(installed()), switches=True, attention=attention, in_memory=True, epochs=EPOCHS)
    arm = TrainerArm(recipe, examples(source, "train"), examples(source, "val"), device="cpu", tasks=("label",))
    busy = time.process_time()
    reading = arm.train(("label",))
    busy = time.process_time() - busy
    arm.evaluate(("label",))
    return Found(reading.posts, busy, resident("VmHWM"), {})


def report(found: Mapping[str, Found]) -> str:
    """Two org tables: an arm a row, and where its bytes are, a part a row, in MB."""
    rival = next((found[arm] for arm in found if arm in RIVALS), None)
    rows = []
    for arm, of in found.items():
        times = ["", ""]
        if rival is not None:
            speed = (of.posts / of.busy) / (rival.posts / rival.busy)
            times = [f"{of.peak / rival.peak:.2f}", f"{speed:.2f}"]
        rows.append([TITLES[arm], f"{of.peak / 2**30:.2f}", f"{1000 * of.busy / of.posts:.1f}", *times])
    peaks = org(["arm", "peak, GiB", "seconds of the processor, 1,000 posts", "times its peak", "times its speed"], rows)
    mine = {arm: of.parts for arm, of in found.items() if of.parts}
    names = dict.fromkeys(name for parts in mine.values() for name in parts)
    parts = [[name, *(f"{of[name] / 1e6:.0f}" for of in mine.values())] for name in names]
    return f"{peaks}\n\n{org(['MB, as training ends', *mine], parts)}" if mine else peaks


def measure(arm: str, posts: str, steps: int) -> Found:
    from benchmarks.ours import Source

    source = Source(name=posts, train=steps * BATCH // EPOCHS, evaluation=10**6)
    return trainer(source, arm) if arm in RIVALS else ours(source, arm)


def main() -> None:
    parser = command_line.parser(__doc__, posts=True, quick="six steps")
    parser.add_argument("--steps", type=int, default=1002, help="of 32 posts, in three epochs")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=[arm for arm in ARMS if arm != "sdpa"])
    parser.add_argument("--alone", choices=ARMS, help=argparse.SUPPRESS)  # in the process of an arm
    options = parser.parse_args()
    steps = 6 if options.quick else options.steps
    if options.alone:
        print(json.dumps(asdict(measure(options.alone, options.posts, steps))))
        return
    command = [sys.executable, "-m", "benchmarks.long_runs", f"--posts={options.posts}", f"--steps={steps}", "--alone"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    how: Any = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "text": True}
    processes = {arm: subprocess.Popen([*command, arm], **how) for arm in options.arms}
    found = {arm: Found(**json.loads(process.communicate()[0].splitlines()[-1])) for arm, process in processes.items()}
    command_line.leave(options.out, "long_runs", report(found))


if __name__ == "__main__":
    main()
