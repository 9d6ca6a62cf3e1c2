"""hatemtl beside the Trainer with every documented switch, for encoders and methods of many kinds, in one table.

Every case is measured as throughput.py has it, its arms in turns: the tuned Trainer (for bottlenecks AdapterHub's), the same
without the encoder's dropout, merged and sorted for evaluation, and hatemtl. Of bases fewer posts are taken, for they cost
seven times as much; all are drawn as batches of like lengths, as a large corpus has them for who sorts. The table is written
anew after every case; all eight take some 25 minutes on two quiet cores.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import command_line, encoders, machine
from benchmarks.arms import Setting, measured, say
from benchmarks.flops import Method, Shape, shape_of
from benchmarks.readings import Reading, org, times
from benchmarks.throughput import rates, shares, speedups, write_rows

ARMS = ("trainer_tuned", "trainer_lean", "hatemtl")


class Case(NamedTuple):
    """An encoder under a method, how many times the tuned Trainer is aimed at in training, and posts a pass."""

    encoder: str
    method: Method
    aim: float
    posts: int = 384


CASES = {
    f"{case.encoder},{case.method}": case
    for case in (
        Case("minilm", "ah_lora16", 2.3),
        Case("minilm", "full", 1.6),
        Case("minilm", "ah_seq_bn", 1.6),
        Case("electra_small", "ah_lora16", 2.2),
        Case("bert_base", "ah_lora16", 1.6, 96),
        Case("roberta_base", "ah_lora16", 1.6, 96),
        Case("deberta_v3_base", "ah_lora16", 1.5, 96),
        Case("modernbert_base", "ah_lora16", 1.4, 96),
    )
}
AIM_OF_EVALUATION = 2.0
# What the Trainer's warm-up most often finds of the doubtful switches on a CPU: for --no-tuning.
USUAL = {"attention": "eager", "in_memory": "True", "workers": "0", "full_bf16": "True", "eval_batch": "32"}
HEAD = ["encoder, method", "training / tuned", "aim", "/ lean", "evaluation / tuned", "aim", "/ lean"]
HEAD += ["training of peak", "tuned", "evaluation of peak", "tuned"]


def row(name: str, case: Case, shape: Shape, table: dict[tuple[str, str], list[Reading]]) -> list[str]:
    """A case's ratios, medians with least and greatest round, and shares of the peak."""
    cells = [name.replace(",", ", ")]
    for stage, aim in (("training", case.aim), ("evaluation", AIM_OF_EVALUATION)):
        tuned, lean = (times(speedups(table, rival, stage).get("hatemtl")) for rival in ARMS[:2])
        cells += [tuned, f"{aim}", lean]
    of = shares(table, shape)
    for stage in ("training", "evaluation"):
        cells += [f"{of[arm, stage]:.0%}" if (arm, stage) in of else "" for arm in ("hatemtl", "trainer_tuned")]
    return cells


def main() -> None:
    options = _options()
    about = machine.description(options.device, options.threads)
    begun, rows, facts = time.monotonic(), list[Sequence[str]](), dict[str, str]()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.cases:
        case = CASES[name]
        say(f"{name}, {(time.monotonic() - begun) / 60:.0f} minutes after the start")
        posts = options.posts_a_pass or case.posts
        with tempfile.TemporaryDirectory() as parent:
            setting = Setting(
                posts=options.posts,
                train=posts,
                evaluation=posts * 3 // 2,
                device=options.device,
                encoder=case.encoder,
                folder=encoders.folder(case.encoder, Path(parent)),
                method=case.method,
                alike=True,
                three=False,
            )
            shape = shape_of(encoders.config(setting.folder), case.method)
            switches = None if options.tuning else USUAL
            found, said = measured(
                options.arms,
                setting,
                rounds=options.rounds,
                threads=options.threads,
                seconds=options.seconds,
                share=True,
                own_time=options.own_time,
                found=switches,
            )
        facts |= {f"{name}, {what}": value for what, value in said.items()}
        rows.append(row(name, case, shape, rates(found)))
        write_rows(options.out / f"cases_{case.encoder}_{case.method}.csv", found, setting, about)
        minutes = {
            "minutes": f"{(time.monotonic() - begun) / 60:.0f}",
            "rounds": str(options.rounds),
            "seconds of": "the processor" if options.own_time else "the clock",
            "tuned": "by trial" if options.tuning else str(USUAL),
        }
        lines = [f"- {key} :: {value}" for key, value in {**about, **minutes, **facts}.items()]
        text = "\n".join(
            ["Posts a second of hatemtl as ratios: medians of the rounds (least–greatest).", "", org(HEAD, rows), "", *lines]
        )
        command_line.leave(options.out, "cases", text)


def _options() -> argparse.Namespace:
    parser = command_line.parser(__doc__, posts=True, quick="one round of few posts")
    parser.add_argument(
        "--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="ENCODER,METHOD", help="of all"
    )
    parser.add_argument("--rounds", type=int, default=3, help="at least 5 to be reported; 3 by default, for time")
    parser.add_argument("--seconds", type=float, default=0, help="that a measurement takes at least, in passes (default 0)")
    parser.add_argument(
        "--posts-a-pass", type=int, help="of training, half as many again of evaluation; default: of each case"
    )
    parser.add_argument("--no-tuning", dest="tuning", action="store_false", help="sets the Trainer up as is most often best")
    parser.add_argument("--own-time", action="store_true", help=command_line.OWN_TIME)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="both Trainers and hatemtl")
    given = parser.parse_args()
    given.threads = 1 if given.own_time else given.threads
    if given.quick:
        given.rounds, given.posts_a_pass, given.tuning = 1, 32, False
    return given


if __name__ == "__main__":
    main()
