"""Posts a second of hatemtl and its rivals in training and evaluation, measured in turns on the same posts.

Every arm stands ready in a process of its own; each round measures all of them once, in an order drawn anew, one at a time.
What is reported are ratios within a round: the machine's mood falls out of them.
"""

import argparse
import csv
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks import chart, command_line, machine
from benchmarks.flops import MINILM, evaluation_flops, training_flops
from benchmarks.readings import THREE, Reading, Spread, Stage, Tasks, one_after_another, org, ratio, spread
from benchmarks.workers import Arm, ArmFailed, Job, Worker
from hatemtl.machine.startup import keep_memory

ONE: Tasks = ("label",)
BASE = "trainer"
RIVALS = ("trainer", "trainer_tuned", "trainer_lean", "trainer_padded", "adapterhub")
TITLES = {
    "trainer": "Trainer + PEFT, quick start",
    "trainer_padded": "the same, padded to 128",
    "adapterhub": "AdapterTrainer, quick start",
    "trainer_tuned": "Trainer + PEFT, every switch but torch_compile",
    "trainer_lean": "the same, no body dropout, merged for evaluation",
    "hatemtl": "hatemtl",
    "hatemtl_compiled": "hatemtl, trainer.compile=true",
}
MEASURES: dict[str, tuple[Stage, Tasks]] = {
    "training": ("train", ONE),
    "evaluation": ("eval", ONE),
    "training, 3 tasks": ("train", THREE),
    "evaluation, 3 tasks": ("eval", THREE),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all arms have in common. posts: `sample`, or a folder of corpora."""

    posts: str
    train: int
    evaluation: int
    device: str


@dataclass(frozen=True)
class Build:
    """Makes the arm of a name."""

    name: str
    setting: Setting

    def __call__(self) -> Arm:
        if self.name.startswith("hatemtl"):
            keep_memory()  # as main.py does before it imports what makes tensors
        from benchmarks.ours import UNKNOWN, HatemtlArm, Source, examples
        from benchmarks.rivals import Recipe, TrainerArm

        setting = self.setting
        source = Source(name=setting.posts, train=setting.train, evaluation=setting.evaluation)
        if self.name in ("hatemtl", "hatemtl_compiled"):
            overrides = ["trainer.compile=true"] if self.name == "hatemtl_compiled" else []
            try:
                return HatemtlArm(source, overrides, device=setting.device, tasks=[ONE, THREE])
            except UNKNOWN as error:
                raise ArmFailed(str(error).splitlines()[0]) from error
        recipe = {
            "trainer": Recipe(),
            "trainer_padded": Recipe(pad_to_longest=False),
            "adapterhub": Recipe(library="adapters"),
            "trainer_tuned": Recipe(switches=True),
            "trainer_lean": Recipe(switches=True, body_dropout=False, merged=True),
        }[self.name]
        if self.name == "trainer_padded":  # it costs the same for every post, and much
            source = replace(source, train=min(source.train, 128), evaluation=min(source.evaluation, 256))
        train, evaluation = (examples(source, split) for split in ("train", "val"))
        return TrainerArm(recipe, train, evaluation, device=setting.device, tasks=THREE if self.name in SEVERAL else ONE)


# Rivals that are measured on three tasks too: three models, trained one after the other.
SEVERAL = ("trainer", "trainer_tuned")


@dataclass(frozen=True)
class Measurement:
    """What one arm did of one job in one round."""

    round: int
    arm: str
    job: Job
    reading: Reading


def jobs(arm: str) -> list[Job]:
    """What is measured of an arm in a round."""
    if arm.startswith("hatemtl"):
        tasks: list[Tasks] = [ONE, THREE]
    else:
        tasks = [(task,) for task in (THREE if arm in SEVERAL else ONE)]
    return [Job(stage, given) for stage in ("train", "eval") for given in tasks]


def in_turns(workers: Mapping[str, Worker], *, rounds: int, seed: int, say: Callable[[str], None]) -> list[Measurement]:
    """Every job of every worker once a round, in a new order each; an arm that fails is left out from there on."""
    draw, found, gone = random.Random(seed), [], set()
    for number in range(rounds):
        order = [(name, job) for name in workers for job in jobs(name)]
        draw.shuffle(order)
        for name, job in order:
            if name in gone:
                continue
            try:
                found.append(Measurement(number, name, job, workers[name].measure(job)))
            except ArmFailed as failure:
                gone.add(name)
                say(f"{name}: left out from round {number + 1}: {failure}")
        say(f"round {number + 1} of {rounds}")
    return [m for m in found if m.arm not in gone]


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


def shares(table: Mapping[tuple[str, str], Sequence[Reading]], peak: float | None = None) -> dict[tuple[str, str], float]:
    """What share of a peak goes into real tokens, by arm and measure, the median of the rounds.

    peak: FLOP/s; None takes what was measured beside each pass, so that most of the machine's mood falls out.
    """
    return {
        (arm, measure): spread(
            (training_flops if measure.startswith("training") else evaluation_flops)(MINILM, r.tokens, r.squares)
            / r.seconds
            / (peak or r.peak)
            for r in readings
        ).middle
        for (arm, measure), readings in table.items()
    }


def times(value: Spread | None) -> str:
    """A ratio with the least and greatest of the rounds.

    >>> times(Spread(3.14159, 3.0, 3.5))
    '3.14 (3.00–3.50)'
    """
    return "" if value is None else f"{value.middle:.2f} ({value.low:.2f}–{value.high:.2f})"


def report(table: Mapping[tuple[str, str], Sequence[Reading]], facts: Mapping[str, str]) -> str:
    """The tables in org: each arm against the quick start, hatemtl against each rival, and where the arithmetic went."""
    arms = [arm for arm in TITLES if any(arm == name for name, _ in table)]
    against = {measure: speedups(table, BASE, measure) for measure in MEASURES}
    head = ["times as fast as the quick start", *MEASURES]
    parts = [
        f"Posts a second as ratios: medians of {max((len(r) for r in table.values()), default=0)} rounds (least–greatest).",
        "",
        org(head, [[TITLES[arm], *(times(against[m].get(arm)) for m in MEASURES)] for arm in arms]),
    ]
    for mine in [arm for arm in arms if arm.startswith("hatemtl")]:
        rows = []
        for rival in [arm for arm in arms if arm in RIVALS]:
            rows.append([TITLES[rival], *(times(speedups(table, rival, m).get(mine)) for m in MEASURES)])
        parts += ["", org([f"{TITLES[mine]} against", *MEASURES], rows)]
    peaks = spread(r.peak for readings in table.values() for r in readings)
    full = {key: spread(r.tokens / r.padded for r in readings).middle for key, readings in table.items()}
    columns = {"peak": shares(table), "best peak": shares(table, peaks.high), "real tokens": full}
    stages = ("training", "evaluation")
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
            "corpus": "sample" if setting.posts == "sample" else "hatexplain",
            **about,
        }
        for m in measurements
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    options = _options()
    setting = Setting(posts=options.posts, train=options.train_posts, evaluation=options.eval_posts, device=options.device)
    facts: dict[str, str] = {}
    workers: dict[str, Worker] = {}
    about = machine.description(options.device, options.threads)
    try:
        for name in options.arms:
            try:
                workers[name] = Worker(
                    name, Build(name, setting), threads=options.threads, peak_of=options.device, seconds=options.seconds
                )
                if workers[name].notes:
                    facts[f"{TITLES[name]}, found"] = ", ".join(f"{k}={v}" for k, v in workers[name].notes.items())
                say(f"{name}: ready {workers[name].notes or ''}")
            except ArmFailed as failure:
                facts[f"{TITLES[name]}, left out"] = str(failure)
                say(f"{name}: left out: {failure}")
        measurements = in_turns(workers, rounds=options.rounds, seed=0, say=say)
    finally:
        for worker in workers.values():
            worker.close()
    table = rates(measurements)
    text = report(table, {**about, "train posts": str(setting.train), **facts})
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
    parser.add_argument("--rounds", type=int, default=5, help="at least 5 to be reported (default)")
    parser.add_argument("--train-posts", type=int, default=1024, help="posts a training pass, drawn once (default 1024)")
    parser.add_argument("--eval-posts", type=int, default=1922, help="posts an evaluation pass (default 1922: all of val)")
    parser.add_argument("--seconds", type=float, default=8, help="that a measurement takes at least, in passes (default 8)")
    parser.add_argument("--arms", nargs="+", choices=list(TITLES), default=list(TITLES))
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.train_posts, given.eval_posts, given.seconds = 2, 96, 128, 0
    return given


if __name__ == "__main__":
    main()
