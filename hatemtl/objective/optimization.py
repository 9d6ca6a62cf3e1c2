"""Moves weights: parameter groups, learning rates over the steps, stages."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from hatemtl.errors import UserError
from hatemtl.objective.stages import EMBEDDINGS, Plan, Schedule, Stage, layer_of

Named = Iterable[tuple[str, nn.Parameter]]
MOST = 100_000  # epochs: the steps of all are planned beforehand


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with one learning rate for the encoder side and one for the heads.

    weight_decay: on matrices only. heads_first: whole epochs at the start in which the heads learn alone. warmup: epochs
    after that, may be a fraction, in which the encoder side's rate rises from 0; heads stay at full rate. epochs: at full
    rate; those of heads_first and whole ones of warm-up come before them. Without any, a run is saved as it starts.
    stages: in place of these, what learns when; None for the one or two that they describe. layer_decay: factor of the
    encoder side's rate from each layer to the one below. unfreeze: see `Stage`. schedule: of both rates after the warm-up.
    clip: largest gradient norm, None for any. accumulate: batches a step. evaluate_every: optimizer steps after which the
    validation posts are scored, as after every epoch; None for no more than that. patience: epochs after the warm-up of
    the last stage without a better validation score before training ends, None for never.
    """

    encoder_lr: float
    head_lr: float
    weight_decay: float
    heads_first: int
    warmup: float
    epochs: int
    schedule: Schedule
    clip: float | None
    accumulate: int
    patience: int | None
    stages: Sequence[Stage] | None = None
    layer_decay: float = 1.0
    unfreeze: float = 0.0
    evaluate_every: int | None = None

    def __post_init__(self) -> None:
        names = ("encoder_lr", "head_lr", "weight_decay", "heads_first", "warmup", "epochs", "accumulate", "unfreeze")
        for name in names:
            value, least = getattr(self, name), int(name == "accumulate")
            if not least <= value < math.inf:
                same = " (method.learning_rate, where it is not given)" if name == "encoder_lr" else ""
                raise UserError(f"optimization.{name}={value}{same}: expected a number, {least} or more")
        if not self.epochs and self.warmup % 1:
            raise UserError(
                f"optimization.warmup={self.warmup} with optimization.epochs=0: part of an epoch is the beginning of one at "
                f"full rate; type optimization.warmup={math.ceil(self.warmup)}, or optimization.epochs=1"
            )
        for name in ("patience", "evaluate_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                unit = {"patience": "epoch, or null to never stop early", "evaluate_every": "step, or null for epochs alone"}
                raise UserError(f"optimization.{name}={value}: expected at least 1 {unit[name]}")
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"optimization.clip={self.clip}: expected a norm above 0, or null for no clipping")
        if not 0 < self.layer_decay <= 1:
            raise UserError(
                f"optimization.layer_decay={self.layer_decay}: expected above 0, to 1 for one rate of all layers"
            )
        if self.stages is not None:
            self._check_stages(self.stages)
        if self.total_epochs > MOST:
            raise UserError(f"optimization.epochs: {self.total_epochs} in all, expected {MOST:,} at most")

    def _check_stages(self, stages: Sequence[Stage]) -> None:
        for name, instead in {"heads_first": "learns: heads, epochs", "warmup": "warmup", "unfreeze": "unfreeze"}.items():
            if value := getattr(self, name):
                raise UserError(
                    f"optimization.{name}={value} and optimization.stages both say what learns when; type "
                    f"{{{instead}: {value}}} in one of the stages, or leave one out"
                )
        if not stages:
            raise UserError("optimization.stages=[]: expected at least one, such as {learns: everything}, or null")
        if stages[-1].steps is not None:
            raise UserError(
                f"optimization.stages: the last has {stages[-1].steps} steps, and training ends with an epoch; type epochs"
            )
        total = math.fsum(stage.epochs or 0.0 for stage in self.course)
        if total % 1:
            raise UserError(
                f"optimization.stages: they last {total:g} epochs, and training ends with a whole one; make it "
                f"{math.ceil(total)}"
            )
        begin, within = 0.0, False  # in epochs; whether the one before ended within one
        for number, stage in enumerate(self.course):
            if stage.sampling is not None and (within or begin % 1 or not stage.epochs or stage.epochs % 1):
                raise UserError(
                    f"optimization.stages[{number}].sampling: a sampling lasts whole epochs; let this stage, and those "
                    f"before it, begin and end with one"
                )
            begin, within = begin + (stage.epochs or 0.0), stage.steps is not None

    @property
    def course(self) -> list[Stage]:
        """Lists the stages of the run, each with its epochs or steps."""
        if self.stages is not None:
            return [s if s.epochs or s.steps else replace(s, epochs=float(self.epochs)) for s in self.stages]
        together = math.floor(self.warmup) + self.epochs
        alone = [Stage(learns="heads", epochs=self.heads_first)] if self.heads_first else []
        return [*alone, *([Stage(epochs=together, warmup=self.warmup, unfreeze=self.unfreeze)] if together else [])]

    @property
    def total_epochs(self) -> int:
        """Counts the epochs of the whole run."""
        return round(math.fsum(stage.epochs or 0.0 for stage in self.course))

    @property
    def spared(self) -> float:
        """Counts the epochs at the start that do not count against patience: up to the end of the last stage's warm-up."""
        *before, last = self.course or [Stage(epochs=1)]
        return math.fsum(stage.epochs or 0.0 for stage in before) + last.warmup

    @property
    def encoder_learns(self) -> bool:
        """Tells whether the encoder side learns in any stage."""
        return any({*stage.parts} - {"heads"} for stage in self.course)

    def samplings(self) -> dict[int, Any]:
        """Gives the samplings that stages have for themselves, by the epoch that they begin in; None where that ends."""
        found: dict[int, Any] = {}
        begin = 0.0
        for stage in self.course:
            end = begin + (stage.epochs or 0.0)
            if stage.sampling is not None:
                found |= {round(begin): stage.sampling, round(end): None}
            begin = end
        return found

    def plan(self, ends: Sequence[float], depth: int) -> Plan:
        """Lays the stages out over a run. ends: optimizer steps by the end of each epoch. depth: the encoder's layers."""
        return Plan(self.course, ends, depth, self.encoder_lr, self.head_lr, self.schedule, self.layer_decay)

    def optimizer(
        self, plan: Plan, encoder: Named, heads: Named, *, weighting: Named = (), regularisers: Named = ()
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Makes AdamW with its schedule over both sides, of all stages, and what else learns, at the heads' rate."""
        groups: list[dict[str, Any]] = []
        rates: list[Callable[[int], float]] = []
        sides = {"encoder": encoder, "heads": heads, "weighting": weighting, "regularisers": regularisers}
        for side, named in sides.items():
            trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
            split = side == "encoder" and plan.by_layer
            layers = {name: layer_of(name, plan.depth) if split else None for name, _ in trained}
            for layer in sorted({*layers.values()}, key=lambda number: -(number or 0)):
                mine = [parameter for name, parameter in trained if layers[name] == layer]
                for matrices, decay in ((True, self.weight_decay), (False, 0.0)):
                    if chosen := [parameter for parameter in mine if (parameter.ndim >= 2) is matrices]:
                        name = side if layer is None else f"{side}_{'embeddings' if layer == EMBEDDINGS else layer}"
                        groups.append({"params": chosen, "lr": 1.0, "weight_decay": decay, "name": name})
                        rates.append(partial(plan.rate, side=side, layer=layer))
        optimizer = torch.optim.AdamW(groups, fused=True)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rates)
