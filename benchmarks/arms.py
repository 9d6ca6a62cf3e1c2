"""The arms of a benchmark of speed: hatemtl and its rivals, each ready in a process of its own, measured in turns.

Each round measures all of them once, in an order drawn anew, one at a time.
"""

import random
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.flops import Method
from benchmarks.readings import THREE, Reading, Tasks
from benchmarks.workers import Arm, ArmFailed, Job, Worker
from hatemtl.machine.startup import keep_memory, share_cores

ONE: Tasks = ("label",)
TITLES = {
    "trainer": "Trainer, quick start",
    "trainer_padded": "the same, padded to 128",
    "adapterhub": "AdapterTrainer, quick start",
    "trainer_tuned": "Trainer, every switch but torch_compile",
    "trainer_lean": "the same, no body dropout, merged for evaluation",
    "trainer_fused": "the same, frozen weights of bf16, compiled, sdpa",
    "hatemtl": "hatemtl",
    "hatemtl_compiled": "hatemtl, trainer.compile=true",
    "hatemtl_own": "hatemtl, trainer.fast=true",
}
# What hatemtl is told beside, by the arm.
TOLD = {"hatemtl": [], "hatemtl_compiled": ["trainer.compile=true"], "hatemtl_own": ["trainer.fast=true"]}
ON_A_GPU = ("trainer_fused", "hatemtl_own")  # on a CPU the first compiles long, and the second is hatemtl once more
RIVALS = tuple(arm for arm in TITLES if not arm.startswith("hatemtl"))
# Rivals that are measured on three tasks too: three models, trained one after the other.
SEVERAL = ("trainer", "trainer_tuned")
TUNED_ALIKE = ("trainer_lean", "trainer_fused")  # they may share the switches that trainer_tuned found


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all arms have in common.

    posts: `sample`, or a folder of corpora; so many for training and evaluation; alike: drawn as batches of like lengths.
    encoder: its name in conf/encoder/, and the folder that all read it from. three: whether three tasks are measured too.
    """

    posts: str
    train: int
    evaluation: int
    device: str
    encoder: str
    folder: Path
    method: Method
    alike: bool = False
    three: bool = True


@dataclass(frozen=True)
class Build:
    """Makes the arm of a name. found: what another arm found of the Trainer's switches, where this one need not."""

    name: str
    setting: Setting
    found: Mapping[str, str] | None = None

    @property
    def overrides(self) -> list[str]:
        """What hatemtl is told, on its command line, of what the arm is."""
        setting = self.setting
        told = [f"encoder={setting.encoder}", f"encoder.source={setting.folder}", f"method={setting.method}"]
        return [*told, *TOLD[self.name]]

    def __call__(self) -> Arm:
        if self.name.startswith("hatemtl"):
            keep_memory()  # as main.py does before it imports what makes tensors
            share_cores()
        from benchmarks.ours import UNKNOWN, HatemtlArm, Source, examples
        from benchmarks.rivals import Recipe, TrainerArm

        setting = self.setting
        source = Source(name=setting.posts, train=setting.train, evaluation=setting.evaluation, alike=setting.alike)
        if self.name in TOLD:
            try:
                every = [ONE, THREE] if setting.three else [ONE]
                return HatemtlArm(source, self.overrides, device=setting.device, tasks=every)
            except UNKNOWN as error:
                raise ArmFailed(str(error).splitlines()[0]) from error
        recipe = Recipe(
            encoder=str(setting.folder),
            method=setting.method,
            library="adapters" if setting.method == "ah_seq_bn" or self.name == "adapterhub" else "transformers",
            switches=self.name in ("trainer_tuned", *TUNED_ALIKE),
            pad_to_longest=self.name != "trainer_padded",
            lean=self.name in TUNED_ALIKE,
            fused=self.name == "trainer_fused",
        )
        if self.name == "trainer_padded":  # it costs the same for every post, and much
            source = replace(source, train=min(source.train, 128), evaluation=min(source.evaluation, 256))
        train, evaluation = (examples(source, split) for split in ("train", "val"))
        tasks = THREE if setting.three and self.name in SEVERAL else ONE
        return TrainerArm(recipe, train, evaluation, device=setting.device, tasks=tasks, found=self.found)


@dataclass(frozen=True)
class Measurement:
    """What one arm did of one job in one round."""

    round: int
    arm: str
    job: Job
    reading: Reading


def jobs(arm: str, *, three: bool = True) -> list[Job]:
    """What is measured of an arm in a round. three: beside one task, which is all that some can."""
    if arm.startswith("hatemtl"):
        tasks: list[Tasks] = [ONE, THREE] if three else [ONE]
    else:
        tasks = [(task,) for task in (THREE if three and arm in SEVERAL else ONE)]
    return [Job(stage, given) for stage in ("train", "eval") for given in tasks]


def measured(
    names: Iterable[str],
    setting: Setting,
    *,
    rounds: int,
    threads: int,
    seconds: float,
    own_time: bool = False,
    share: bool = False,
    found: Mapping[str, str] | None = None,
) -> tuple[list[Measurement], dict[str, str]]:
    """Every measurement of these arms, and what was found on the way, or why an arm was left out.

    seconds: that one takes at least; own_time: of its processor. found: the Trainer's switches, where it need not try them.
    share: the lean Trainer, and the compiled one, have those that the tuned one found.
    """
    facts: dict[str, str] = {}
    workers: dict[str, Worker] = {}
    try:
        for name in names:
            if share and name in TUNED_ALIKE and "trainer_tuned" in workers:
                found = found or workers["trainer_tuned"].notes
            build = Build(name, setting, found)
            try:
                workers[name] = Worker(
                    name, build, threads=threads, peak_of=setting.device, seconds=seconds, own_time=own_time
                )
                if workers[name].notes:
                    facts[f"{TITLES[name]}, found"] = ", ".join(f"{k}={v}" for k, v in workers[name].notes.items())
                say(f"{name}: ready {workers[name].notes or ''}")
            except ArmFailed as failure:
                facts[f"{TITLES[name]}, left out"] = str(failure)
                say(f"{name}: left out: {failure}")
        return in_turns(workers, rounds=rounds, seed=0, three=setting.three, say=say), facts
    finally:
        for worker in workers.values():
            worker.close()


def in_turns(
    workers: Mapping[str, Worker], *, rounds: int, seed: int, three: bool = True, say: Callable[[str], None]
) -> list[Measurement]:
    """Every job of every worker once a round, in a new order each; an arm that fails is left out from there on."""
    draw, found, gone = random.Random(seed), [], set()
    for number in range(rounds):
        order = [(name, job) for name in workers for job in jobs(name, three=three)]
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


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)
