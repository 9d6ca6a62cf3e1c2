"""What an objective costs: a training step under each, against the plain sum of losses, in turns on the same posts."""

import argparse
import random
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch

from benchmarks.ours import Run, Source, composed
from benchmarks.readings import THREE, org, ratio, times


class Arm(NamedTuple):
    """What is typed beside the default. base: the arm that it is compared with."""

    overrides: Sequence[str]
    base: str = "none"


WEIGHTINGS = ("uncertainty", "dwa", "famo", "gls", "gradnorm", "pcgrad", "cagrad", "nash_mtl", "upgrad", "ortho_lora")
ARMS: dict[str, Arm] = {
    "none": Arm([]),
    "vat": Arm(["regulariser=[vat]"]),
    "ema": Arm(["regulariser=[ema]"]),
    "adversarial_task": Arm(["regulariser=[adversarial_task]", "regulariser.adversarial_task.of=label"]),
    "freelb": Arm(["regulariser=[freelb]"]),
    "smart": Arm(["regulariser=[smart]"]),
    "proximal": Arm(["regulariser=[proximal]"]),
    "rationale_attention": Arm(["regulariser=[rationale_attention]"]),
    "body dropout": Arm(["method.body_dropout=true"]),
    "r_drop": Arm(["method.body_dropout=true", "regulariser=[r_drop]"], base="body dropout"),
    **{name: Arm([f"weighting={name}"]) for name in WEIGHTINGS},
    "pcgrad of hidden": Arm(["weighting=pcgrad", "weighting.of=hidden"]),
    "upgrad of hidden": Arm(["weighting=upgrad", "weighting.of=hidden"]),
}


def measured(arms: Sequence[str], source: Source, rounds: int) -> dict[str, list[float]]:
    """Seconds of the processor for an epoch of each arm, in every round, in an order that is drawn.

    The first epoch of each is not counted. On one thread these seconds hardly depend on who else is at work.
    """
    runs, seconds, draw = {}, dict[str, list[float]](), random.Random(0)
    for name in arms:
        runs[name] = Run(composed(source, THREE, ["optimization.epochs=1", *ARMS[name].overrides]))
        runs[name].train()
        print(f"{name}: ready", file=sys.stderr, flush=True)
    for _ in range(rounds):
        for name in draw.sample([*runs], len(runs)):
            runs[name].train()
            seconds.setdefault(name, []).append(runs[name].busy)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", default="sample", help="`sample`, or a folder with hatexplain/ in it, as ../shared/data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train-posts", type=int, default=320)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="beside those they are compared with"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    arms = dict.fromkeys(name for asked in options.arms for name in (ARMS[asked].base, asked))
    source = Source(name=options.posts, train=options.train_posts, evaluation=100)
    seconds = measured([*arms], source, options.rounds)
    rows = []
    for name in arms:
        of = ratio(seconds[name], seconds[ARMS[name].base])
        rows.append([f"={name}=", times(of), f"={ARMS[name].base}="])
    print(org(["a training step under", "takes times that", "under"], rows))


if __name__ == "__main__":
    main()
