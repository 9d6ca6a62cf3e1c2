"""Watches a training run: the best weights, the way back after an interruption, the clock, the line, what diverges."""

import csv
import math
import re
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import TorchCheckpointIO
from rich.console import Console
from torch import Tensor

from hatemtl.batches.batch import Batch
from hatemtl.errors import Diverged, UserError
from hatemtl.evaluations.base import Row
from hatemtl.machine.flops import matmul_flops, wait
from hatemtl.machine.sharding import mine, whole
from hatemtl.network.module import MultitaskModule
from hatemtl.saved_runs.writing import write, write_rows

AGAIN = "overwrite=true, since the unfinished run is another"
# what a checkpoint holds, each of its type
HOLDS = {"epoch": int, "global_step": int, "state_dict": dict, "loops": dict, "callbacks": dict, "optimizer_states": list}


class BestWeights(Callback):
    """Keeps the trained weights of the best evaluation by `val_score`, and ends training `patience` epochs after it.

    spared: epochs at the start that do not count against patience, since the encoder side has not yet its full rate.
    """

    def __init__(self, *, patience: int | None, spared: float) -> None:
        self.patience, self.spared = patience, spared
        self.score, self.epoch, self.step, self.waited = -torch.inf, -1, 0, 0
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            return
        score = float(trainer.callback_metrics["val_score"])
        weights = pl_module.trained_state()
        # NaN may score well where few labels are right
        if score > self.score and pl_module.crew.all(map(finite, map(mine, weights.values()))):
            self.score, self.epoch, self.step = score, trainer.current_epoch, trainer.global_step
            self.weights = {k: v.clone() for k, v in weights.items()}
        if trainer.is_last_batch:  # with an epoch training ends, not within one
            self.waited = trainer.current_epoch - max(self.epoch, math.floor(self.spared) - 1)
            self._stop(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.weights = {name: whole(tensor) for name, tensor in self.weights.items()}

    def _stop(self, trainer: Trainer) -> None:
        trainer.should_stop = trainer.should_stop or (self.patience is not None and self.waited >= self.patience)

    def restore(self, module: MultitaskModule) -> None:
        """Puts the best weights back."""
        module.load_state_dict(self.weights, strict=False)

    def state_dict(self) -> dict[str, Any]:
        kept = ("score", "epoch", "step", "waited")
        return {name: getattr(self, name) for name in kept} | {"weights": {n: whole(v) for n, v in self.weights.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)


class WholeFile(TorchCheckpointIO):
    """Writes a checkpoint to a hidden neighbour and renames it. Lightning's own way needs the memory twice, and TMPDIR."""

    def __init__(self, *, writes: bool = True) -> None:
        self.writes = writes

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        def content(temporary: Path) -> None:
            with temporary.open("wb") as file:  # of Python, whose errors say what the disk lacks
                torch.save(checkpoint, file)

        if self.writes:
            write(Path(path), content)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what `Checkpoint` wrote: plain values and tensors, and these only where they are looked at.

    Raises UserError where it holds anything else, as another's may.
    """
    try:
        found = torch.load(path, weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, ValueError, KeyError, EOFError) as error:
        code = re.search(r"GLOBAL \S+", str(error))  # of torch's page on how to run it all the same
        why = f"it names {code[0]}" if code else str(error).split("\n")[0]
    else:
        whole = isinstance(found, dict) and all(isinstance(found.get(key), of) for key, of in HOLDS.items())
        if whole and found["optimizer_states"]:  # without any, Lightning would begin with fresh moments and say nothing
            return found
        why = f"expected {', '.join(HOLDS)}"
    raise UserError(f"{path} is no checkpoint of a run ({why}); type overwrite=true to begin the run again")


def kept_epochs(path: Path) -> int:
    """Counts the epochs that a run goes on after."""
    return int(read_checkpoint(path)["epoch"]) + 1


class Checkpoint(Callback):
    """Writes the state of training after every epoch, so that an interrupted run goes on where it was.

    writes: whether this process does, or but takes part in making whole what is split.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        trainer.strategy.checkpoint_io = WholeFile(writes=self.writes)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.save_checkpoint(self.path)


class StepTable(Callback):
    """Writes what weighed the tasks, a row an optimizer step: each task's weight, the cosines of their gradients."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not pl_module.told:
            return
        rows: list[dict[str, object]] = []
        if self.path.exists():  # of earlier epochs; an epoch that was broken off comes again
            with self.path.open(encoding="utf-8", newline="") as file:
                rows = [*filter(lambda row: int(row["epoch"]) <= trainer.current_epoch, csv.DictReader(file))]
        rows += [
            {name: value.item() if isinstance(value, Tensor) else value for name, value in row.items()}
            for row in pl_module.told
        ]
        columns = dict.fromkeys(name for row in rows for name in row)
        write_rows(self.path, [{name: row.get(name, "") for name in columns} for row in rows])


class Throughput(Callback):
    """Measures training: seconds without validation, posts, tokens, padding, and the arithmetic done in that time.

    A post counts as often as the encoder reads it: where losses are stepped apart, once for each of its tasks.
    """

    def __init__(self) -> None:
        self.counts = {"seconds": 0.0, "posts": 0, "tokens": 0, "places": 0, "flops": 0.0}
        self.read: dict[str | None, tuple[Batch, int]] = {}  # the first batch for each task, or for all, and places of all
        self.flops_per_place: dict[int, float] = {}  # by the stage that an epoch ends in
        self.started, self.epoch = 0.0, {"posts": 0, "tokens": 0, "places": 0}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.read, self.started, self.epoch = {}, time.perf_counter(), dict.fromkeys(self.epoch, 0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        first, places = self.read.get(batch.only, (batch, 0))
        self.read[batch.only] = first, places + batch.input_ids.numel()
        for name, count in (("posts", len(batch)), ("tokens", batch.tokens), ("places", batch.input_ids.numel())):
            self.epoch[name] += count

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            wait(pl_module.device)
            self.counts["seconds"] += time.perf_counter() - self.started

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.started = time.perf_counter()  # where it was within an epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        stage = pl_module.stage
        said = pl_module.crew.gather(self.epoch)
        for name in self.epoch:
            self.counts[name] += sum(mine[name] for mine in said)
        tokens = sum(mine["tokens"] for mine in said)
        if self.read and stage not in self.flops_per_place:  # counted once, outside the time that is measured
            flops = 0.0
            with torch.random.fork_rng(), trainer.precision_plugin.train_step_context():
                for batch, places in self.read.values():
                    flops += matmul_flops(partial(self._step, pl_module, batch)) * places / batch.input_ids.numel()
            pl_module.zero_grad()
            self.flops_per_place[stage] = flops / sum(places for _, places in self.read.values())
        self.counts["flops"] += tokens * self.flops_per_place.get(stage, 0.0)

    @staticmethod
    def _step(module: MultitaskModule, batch: Batch) -> None:
        batch = replace(batch, attention_mask=torch.ones_like(batch.attention_mask))  # some leave padding out of products
        through = copy(module.through)
        through.compiled = None  # no compiled code, and no weighting, whose state only training may move
        torch.stack([*module.losses(batch, through(batch)).values()]).sum().backward()

    def record(self, peak: float) -> dict[str, float]:
        """Gives the figures for run.json. peak: the measured matmul FLOP/s of the machine. Padding is no achievement."""
        seconds, posts, tokens, places, flops = self.counts.values()
        span = max(seconds, 1e-9)  # nothing may have been trained
        return {
            "seconds": seconds,
            "examples_per_second": posts / span,
            "tokens_per_second": tokens / span,
            "padding": 1 - tokens / max(places, 1),
            "matmul_flops_per_second": flops / span,
            "matmul_peak_flops_per_second": peak,
            "share_of_measured_peak": flops / span / peak,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts, "flops_per_place": self.flops_per_place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)


class EpochLine(Callback):
    """Prints one line an epoch: loss, the primary metric of each task, and whether the epoch is the best so far."""

    def __init__(self, console: Console, best: BestWeights) -> None:
        self.console, self.best = console, best

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        values, epoch = trainer.callback_metrics, trainer.current_epoch
        loss = float(values["train_loss"])
        if not math.isfinite(loss):
            raise Diverged(f"the training loss is {loss} after epoch {epoch + 1}: {why(pl_module)}")
        stages = pl_module.stages
        where = f" ({stages[pl_module.stage].named})" if len(stages) > 1 else ""
        self._print(trainer, pl_module, f"epoch {epoch + 1}/{trainer.max_epochs}{where}", f"loss {loss:.4f}")

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.is_last_batch:
            self._print(trainer, pl_module, f"step {trainer.global_step}/{pl_module.plan.ends[-1]}")

    def _print(self, trainer: Trainer, module: MultitaskModule, *shown: str) -> None:
        names = [f"val_{task}_{head.primary}" for task, head in module.heads.items()]
        figures = [f"{name} {float(trainer.callback_metrics[name]):.3f}" for name in names]
        best = ["(best)"] if self.best.step == trainer.global_step else []
        self.console.print("  ".join([*shown, *figures, *best]), highlight=False, soft_wrap=True)


def check_finite(module: MultitaskModule, rows: Sequence[Row]) -> None:
    """Raises Diverged where a weight that is to be saved, or a result, is no finite number."""
    saved = {**module.trained_state(), **module.heads.state_dict(prefix="heads.")}
    broken = [name for name, tensor in saved.items() if not finite(tensor)]
    wrong = [f"{row.metric} is {row.value}" for row in rows if not math.isfinite(row.value)]
    found = [f"{len(broken)} of {len(saved)} trained tensors hold NaN or infinity, as {broken[0]}"] if broken else wrong[:1]
    if found:
        raise Diverged(f"{found[0]}, so nothing is saved as finished: {why(module)}")


def why(module: MultitaskModule) -> str:
    """The likely cause, looked for in what is frozen, and what to type."""
    for name, parameter in module.encoder.named_parameters():
        if not parameter.requires_grad and not finite(parameter):
            return f"{name} of the pretrained encoder holds NaN or infinity; type another encoder=NAME, and {AGAIN}"
    rates = module.optimization
    if not rates.total_epochs:
        return f"nothing was trained, so a merge made them; type another merge=NAME or heads.merge=NAME, and {AGAIN}"
    heads = f"optimization.head_lr (now {rates.head_lr:g})"
    lower = f"optimization.head_lr={min(rates.head_lr / 10, 1e-3):g}"
    if any(parameter.requires_grad for parameter in module.encoder.parameters()):
        heads = f"optimization.encoder_lr (now {rates.encoder_lr:g}) or {heads}"
        lower = f"optimization.encoder_lr={min(rates.encoder_lr / 10, 1e-4):g} {lower}"
    half = any(parameter.dtype is torch.bfloat16 for parameter in module.encoder.parameters())
    exact = ", or trainer.precision=32" if half else ""
    return f"{heads} is likely too high; type {lower}{exact}, and {AGAIN}"


def finite(tensor: Tensor) -> bool:
    """Tells whether all that it holds are numbers."""
    return bool(torch.isfinite(tensor).all())
