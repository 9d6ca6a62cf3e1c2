"""What another process on the machine costs, by how long threads that wait for one another keep a core busy meanwhile.

Each way is measured alone and beside processes that compute without end, in turns on the same posts. hatemtl looks at what
others do as it begins, so it is there twice: begun alone, and beside them. With one thread, which is what
trainer.threads=auto takes beside one process on two cores, nothing waits.
"""

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.choices import Build
from benchmarks.readings import Stage, org, ratio, times
from benchmarks.workers import Job, Worker

BEGUN, ONE = "default, begun beside", "trainer.threads=1"
STAGES: tuple[Stage, ...] = ("train", "eval")


def ways(spins: list[int]) -> dict[str, dict[str, str]]:
    """Names each way to wait, and what it sets in the environment that its process starts in."""
    return {
        "default": {},
        BEGUN: {},
        "libgomp's own": {"GOMP_SPINCOUNT": "300000"},
        "asleep": {"OMP_WAIT_POLICY": "passive"},
    } | {f"spins {count}": {"GOMP_SPINCOUNT": str(count)} for count in spins}


@contextmanager
def others(count: int) -> Iterator[None]:
    """Keeps so many cores busy inside."""
    found = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in found:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", default="sample", help="`sample`, or a folder with hatexplain/ in it, as ../shared/data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train-posts", type=int, default=512)
    parser.add_argument("--eval-posts", type=int, default=960)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--others", type=int, default=1, help="processes beside it (default: 1)")
    parser.add_argument("--spins", type=int, nargs="*", default=[], help="further counts to try (GOMP_SPINCOUNT)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    build, draw = Build(options.posts, options.train_posts, options.eval_posts, []), random.Random(0)
    workers: dict[str, Worker] = {}
    speeds: dict[tuple[str, Stage, int], list[float]] = {}
    try:
        for name, environment in {**ways(options.spins), ONE: {}}.items():
            threads = 1 if name == ONE else options.threads
            with others(options.others if name == BEGUN else 0):
                workers[name] = Worker(name, build, threads=threads, environment=environment)
        for _ in range(options.rounds):
            order = [(name, stage, count) for name in workers for stage in STAGES for count in (0, options.others)]
            draw.shuffle(order)
            for name, stage, count in order:
                with others(count):
                    speed = workers[name].measure(Job(stage, ("label",))).posts_per_second
                speeds.setdefault((name, stage, count), []).append(speed)
    finally:
        for worker in workers.values():
            worker.close()

    rows = [
        [f"={name}="]
        + [times(ratio(speeds[name, stage, 0], speeds["libgomp's own", stage, 0])) for stage in STAGES]
        + [times(ratio(speeds[name, stage, options.others], speeds["default", stage, 0])) for stage in STAGES]
        for name in workers
    ]
    quiet, busy = "alone, against libgomp's own: ", f"beside {options.others}, against the default alone: "
    head = ["waiting threads", *(f"{what}{stage}" for what in (quiet, busy) for stage in ("training", "evaluation"))]
    text = org(head, rows)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "busy.org").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
