"""Posts a second of hatemtl and its rivals in training and evaluation, measured in turns on the same posts.

What is reported are ratios within a round: the machine's mood falls out of them. For any encoder of encoders.py under LoRA,
whole, or with bottlenecks; cases.py has many of them in one table.
"""

import argparse
import csv
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from benchmarks import chart, command_line, encoders, machine
from benchmarks.arms import ON_A_GPU, ONE, RIVALS, TITLES, Measurement, Setting, measured
from benchmarks.flops import Method, Shape, evaluation_flops, shape_of, training_flops
from benchmarks.readings import THREE, Reading, Spread, Stage, Tasks, one_after_another, org, ratio, spread, times

BASE = "trainer"
MEASURES: dict[str, tuple[Stage, Tasks]] = {
    "training": ("train", ONE),
    "evaluation": ("eval", ONE),
    "training, 3 tasks": ("train", THREE),
    "evaluation, 3 tasks": ("eval", THREE),
}


def rates(measurements: Sequence[Measurement]) -> dict[tuple[str, str], list[Reading]]:
    """(arm, measure) → one reading a round; a rival's three tasks are its three models one after the other."""
    table: dict[tuple[str, str], list[Reading]] = {}
    for measure, (stage, tasks) in MEASURES.items():
        for arm in dict.fromkeys(m.arm for m in measurements):
            rounds: dict[int, list[Measurement]] = {}
            for m in measurements:
                whole = m.job.tasks == tasks or (not arm.startswith("hatemtl") and set(m.job.tasks) <= set(tasks))
                if m.arm == arm and m.job.stage == stage and whole:
                    rounds.setdefault(m.round, []).append(m)
            if rounds and all(set().union(*(m.job.tasks for m in r)) == set(tasks) for r in rounds.values()):
                table[arm, measure] = [one_after_another([m.reading for m in r]) for r in rounds.values()]
    return table


def speedups(table: Mapping[tuple[str, str], Sequence[Reading]], over: str, measure: str) -> dict[str, Spread]:
    """How many times as many posts a second as `over` each arm gets through, round by round."""
    if (over, measure) not in table:
        return {}
    base = [reading.posts_per_second for reading in table[over, measure]]
    return {
        arm: ratio([reading.posts_per_second for reading in readings], base)
        for (arm, name), readings in table.items()
        if name == measure
    }


def shares(
    table: Mapping[tuple[str, str], Sequence[Reading]], shape: Shape, peak: float | None = None
) -> dict[tuple[str, str], float]:
    """What share of a peak goes into real tokens, by arm and measure, the median of the rounds.

    peak: FLOP/s; None takes what was measured beside each pass, so that most of the machine's mood falls out.
    """
    return {
        (arm, measure): spread(
            (training_flops if measure.startswith("training") else evaluation_flops)(shape, r.tokens, r.squares)
            / r.seconds
            / (peak or r.peak)
            for r in readings
        ).middle
        for (arm, measure), readings in table.items()
    }


def report(table: Mapping[tuple[str, str], Sequence[Reading]], shape: Shape, facts: Mapping[str, str]) -> str:
    """The tables in org: each arm against the quick start, hatemtl against each rival, memory, where the arithmetic went."""
    arms = [arm for arm in TITLES if any(arm == name for name, _ in table)]
    measures = [m for m in MEASURES if any(m == name for _, name in table)]
    against = {measure: speedups(table, BASE, measure) for measure in measures}
    head = ["times as fast as the quick start", *measures]
    parts = [
        f"Posts a second as ratios: medians of {max((len(r) for r in table.values()), default=0)} rounds (least–greatest).",
        "",
        org(head, [[TITLES[arm], *(times(against[m].get(arm)) for m in measures)] for arm in arms]),
    ]
    for mine in [arm for arm in arms if arm.startswith("hatemtl")]:
        rows = []
        for rival in [arm for arm in arms if arm in RIVALS]:
            rows.append([TITLES[rival], *(times(speedups(table, rival, m).get(mine)) for m in measures)])
        parts += ["", org([f"{TITLES[mine]} against", *measures], rows)]
    peaks = spread(r.peak for readings in table.values() for r in readings)
    full = {key: spread(r.tokens / r.padded for r in readings).middle for key, readings in table.items()}
    columns = {"peak": shares(table, shape), "best peak": shares(table, shape, peaks.high), "real tokens": full}
    stages = ("training", "evaluation")
    held = {key: max(r.memory for r in readings) / 2**20 for key, readings in table.items()}
    if any(held.values()):
        rows = [[TITLES[arm], *(f"{held[arm, m]:.0f}" if (arm, m) in held else "" for m in measures)] for arm in arms]
        parts += ["", org(["MiB at most, in any round", *measures], rows)]
    parts += [
        "",
        org(
            ["share of", *(f"{what}, {m}" for m in stages for what in columns)],
            [
                [TITLES[arm], *(f"{of[arm, m]:.0%}" if (arm, m) in of else "" for m in stages for of in columns.values())]
                for arm in arms
            ],
        ),
        "",
        *(f"- {name} :: {value}" for name, value in facts.items()),
        f"- peak in bf16 beside a pass :: {peaks.middle / 1e9:.0f} GFLOP/s ({peaks.low / 1e9:.0f}–{peaks.high / 1e9:.0f})",
    ]
    return "\n".join(parts) + "\n"


def write_rows(path: Path, measurements: Iterable[Measurement], setting: Setting, about: Mapping[str, str]) -> None:
    """The raw figures: a row a measurement, each with all there is to know of machine and versions."""
    rows = [
        {
            "round": m.round,
            "arm": m.arm,
            "stage": m.job.stage,
            "tasks": "+".join(m.job.tasks),
            **asdict(m.reading),
            "encoder": setting.encoder,
            "method": setting.method,
            "corpus": "sample" if setting.posts == "sample" else "hatexplain",
            **about,
        }
        for m in measurements
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    options = _options()
    about = machine.description(options.device, options.threads)
    with tempfile.TemporaryDirectory() as parent:
        setting = Setting(
            posts=options.posts,
            train=options.train_posts,
            evaluation=options.eval_posts,
            device=options.device,
            encoder=options.encoder,
            folder=encoders.folder(options.encoder, Path(parent)),
            method=options.method,
            three=options.tasks == 3,
        )
        shape = shape_of(encoders.config(setting.folder), options.method)
        measurements, facts = measured(
            options.arms,
            setting,
            rounds=options.rounds,
            threads=options.threads,
            seconds=options.seconds,
            own_time=options.own_time,
            share=options.share,
        )
    table = rates(measurements)
    what = {
        "seconds of": "the processor" if options.own_time else "the clock",
        "encoder": options.encoder,
        "method": options.method,
        "train posts": str(setting.train),
    }
    text = report(table, shape, {**about, **what, **facts})
    options.out.mkdir(parents=True, exist_ok=True)
    write_rows(options.out / "throughput.csv", measurements, setting, about)
    (options.out / "throughput.org").write_text(text, encoding="utf-8")
    bars = {m: {TITLES[a]: s for a, s in speedups(table, BASE, m).items()} for m in MEASURES}
    (options.out / "throughput.svg").write_text(
        chart.bars({m: values for m, values in bars.items() if values}, axis="times as fast as the quick start"),
        encoding="utf-8",
    )
    print(text)


def _options() -> argparse.Namespace:
    parser = command_line.parser(__doc__, posts=True, quick="two rounds of few posts")
    parser.add_argument(
        "--encoder", choices=encoders.ENCODERS, default=encoders.MINILM, help="all but minilm of random weights"
    )
    parser.add_argument("--method", choices=get_args(Method), default="ah_lora16", help="as conf/method/ names it")
    parser.add_argument("--tasks", type=int, choices=[1, 3], default=3, help="1: the label task; 3: three tasks beside it")
    parser.add_argument("--rounds", type=int, default=5, help="at least 5 to be reported (default)")
    parser.add_argument("--train-posts", type=int, default=1024, help="posts a training pass, drawn once (default 1024)")
    parser.add_argument("--eval-posts", type=int, default=1922, help="posts an evaluation pass (default 1922: all of val)")
    parser.add_argument("--seconds", type=float, default=8, help="that a measurement takes at least, in passes (default 8)")
    parser.add_argument("--own-time", action="store_true", help=command_line.OWN_TIME)
    parser.add_argument("--share", action="store_true", help="all tuned Trainers have the switches that the first found")
    parser.add_argument("--arms", nargs="+", choices=list(TITLES), help="default: all, on a CPU without those for a GPU")
    given = parser.parse_args()
    given.arms = given.arms or [arm for arm in TITLES if given.device == "cuda" or arm not in ON_A_GPU]
    if given.method != "ah_lora16" and "adapterhub" in given.arms:
        given.arms.remove("adapterhub")  # its quick start is one of LoRA
    given.threads = 1 if given.own_time else given.threads
    if given.quick:
        given.rounds, given.train_posts, given.eval_posts, given.seconds = 2, 96, 128, 0
    return given


if __name__ == "__main__":
    main()
