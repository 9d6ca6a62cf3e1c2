"""What hatemtl's own choices cost: training and evaluation under each, against the default, in turns on the same posts."""

import argparse
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.readings import Reading, org, ratio, spread, times
from benchmarks.workers import Arm, ArmFailed, Job, Worker
from hatemtl.machine.startup import keep_memory, share_cores

CHOICES: dict[str, list[str]] = {
    "default": [],
    "trainer.compile=true": ["trainer.compile=true"],
    "trainer.precision=32": ["trainer.precision=32"],
    "method.body_dropout=true": ["method.body_dropout=true"],
    "batching.window=1": ["batching.window=1"],
    "batching=tokens": ["batching=tokens"],
    "method=peft_lora16": ["method=peft_lora16"],
    "method=full": ["method=full"],
    "method=ah_ia3": ["method=ah_ia3"],
    "method=ah_ia3 trainer.fast=false": ["method=ah_ia3", "trainer.fast=false"],
    "method=ah_dora": ["method=ah_dora"],
    "method=ah_dora trainer.fast=false": ["method=ah_dora", "trainer.fast=false"],
    "method=peft_dora16": ["method=peft_dora16"],
    "method=peft_dora16 trainer.fast=false": ["method=peft_dora16", "trainer.fast=false"],
    "method.leave_out=[0,1,2]": ["method.leave_out=[0,1,2]"],
    "the same, data.cache_prefix=true": ["method.leave_out=[0,1,2]", "data.cache_prefix=true"],
    "jemalloc": [],
}
# What a choice sets in the environment that its process starts in. An allocator takes the place of the C library's.
ENVIRONMENTS = {"jemalloc": {"LD_PRELOAD": "libjemalloc.so.2", "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}}


@dataclass(frozen=True)
class Build:
    """Makes hatemtl with these overrides. preloaded: the library that must stand before all others, if one must."""

    posts: str
    train: int
    evaluation: int
    overrides: Sequence[str]
    preloaded: str | None = None

    def __call__(self) -> Arm:
        if self.preloaded and self.preloaded not in Path("/proc/self/maps").read_text():
            raise ArmFailed(f"{self.preloaded} is not installed")
        keep_memory()  # as main.py does before it imports what makes tensors
        share_cores()
        from benchmarks.ours import HatemtlArm, Source

        source = Source(name=self.posts, train=self.train, evaluation=self.evaluation)
        return HatemtlArm(source, self.overrides, device="cpu", tasks=[("label",)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", default="sample", help="`sample`, or a folder with hatexplain/ in it, as ../shared/data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train-posts", type=int, default=1024)
    parser.add_argument("--eval-posts", type=int, default=960)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--choices", nargs="+", choices=list(CHOICES), default=list(CHOICES), help="beside the default")
    options = parser.parse_args()
    draw, readings = random.Random(0), dict[tuple[str, str], list[Reading]]()
    workers: dict[str, Worker] = {}
    try:
        for name in dict.fromkeys(["default", *options.choices]):
            environment = ENVIRONMENTS.get(name, {})
            posts = options.posts, options.train_posts, options.eval_posts
            build = Build(*posts, CHOICES[name], preloaded=environment.get("LD_PRELOAD"))
            try:
                workers[name] = Worker(name, build, threads=options.threads, environment=environment)
                print(f"{name}: ready {workers[name].notes}", file=sys.stderr, flush=True)
            except ArmFailed as failure:
                print(f"{name}: left out: {failure}", file=sys.stderr, flush=True)
        for _ in range(options.rounds):
            order = [(name, Job(stage, ("label",))) for name in workers for stage in ("train", "eval")]
            draw.shuffle(order)
            for name, job in order:
                readings.setdefault((name, job.stage), []).append(workers[name].measure(job))
    finally:
        for worker in workers.values():
            worker.close()
    rows = []
    for name in workers:
        cells = []
        for stage in ("train", "eval"):
            mine, base = ([r.posts_per_second for r in readings[key, stage]] for key in (name, "default"))
            of = ratio(mine, base)
            cells.append(times(of))
        padding = spread(1 - r.tokens / r.padded for r in readings[name, "train"]).middle
        rows.append([f"={name}=", *cells, f"{padding:.0%}"])
    epoch = spread(r.seconds / r.posts for r in readings["default", "train"]).middle
    notes = [f"- {name} :: {key} {value}" for name, worker in workers.items() for key, value in worker.notes.items()]
    notes.append(f"- default :: one epoch takes {epoch:.2g} s a post")
    text = org(["times the default's posts a second", "training", "evaluation", "padding in training"], rows)
    text = "\n".join([text, "", *notes, ""])
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "choices.org").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
