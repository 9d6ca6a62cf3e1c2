"""Moves weights: parameter groups, learning rates over the steps, warm-up."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from hatemtl.errors import UserError

Parameters = Iterable[nn.Parameter]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with one learning rate for the encoder side and one for the heads.

    weight_decay: on matrices only. heads_first: whole epochs at the start in which the heads learn alone. warmup: epochs
    after that, may be a fraction, in which the encoder side's rate rises from 0; heads stay at full rate. epochs: at full
    rate; those of heads_first and whole ones of warm-up come before them. Without any, a run is saved as it starts.
    schedule: of both rates after the warm-up. clip: largest gradient norm, None for any. accumulate: batches a step.
    patience: epochs after the warm-up without a better validation score before training ends, None for never.
    """

    encoder_lr: float
    head_lr: float
    weight_decay: float
    heads_first: int
    warmup: float
    epochs: int
    schedule: Literal["linear", "cosine", "constant"]
    clip: float | None
    accumulate: int
    patience: int | None

    def __post_init__(self) -> None:
        for name in ("encoder_lr", "head_lr", "weight_decay", "heads_first", "warmup", "epochs", "accumulate"):
            value, least = getattr(self, name), int(name == "accumulate")
            if not least <= value < math.inf:
                same = " (method.learning_rate, where it is not given)" if name == "encoder_lr" else ""
                raise UserError(f"optimization.{name}={value}{same}: expected a number, {least} or more")
        if not self.epochs and self.warmup % 1:
            raise UserError(
                f"optimization.warmup={self.warmup} with optimization.epochs=0: part of an epoch is the beginning of one at "
                f"full rate; type optimization.warmup={math.ceil(self.warmup)}, or optimization.epochs=1"
            )
        if self.patience is not None and self.patience < 1:
            raise UserError(f"optimization.patience={self.patience}: expected at least 1 epoch, or null to never stop early")
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"optimization.clip={self.clip}: expected a norm above 0, or null for no clipping")

    @property
    def total_epochs(self) -> int:
        """Counts the epochs of the whole run: of the heads alone, the whole ones of warm-up, and those at full rate."""
        return self.heads_first + math.floor(self.warmup) + self.epochs

    def rate(self, step: int, *, total: int, encoder: bool) -> float:
        """Gives the factor on the learning rate at optimizer step `step` of `total`."""
        alone, rising = (epochs * total / self.total_epochs for epochs in (self.heads_first, self.warmup))
        if encoder and step < alone:
            return 0.0
        full = alone + rising if self.total_epochs > self.heads_first else 0.0  # from where both rates fall
        if step < full:
            return (step - alone) / rising if encoder else 1.0
        done = (step - full) / max(total - full, 1)
        if self.schedule == "linear":
            return max(1 - done, 0.0)
        return (1 + math.cos(math.pi * min(done, 1.0))) / 2 if self.schedule == "cosine" else 1.0

    def optimizer(
        self,
        encoder: Parameters,
        heads: Parameters,
        total: int,
        *,
        weighting: Parameters = (),
        regularisers: Parameters = (),
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Makes AdamW with its schedule for `total` steps over both sides, and what else learns, at the heads' rate."""
        groups: list[dict[str, Any]] = []
        rates: list[Callable[[int], float]] = []
        others = {"heads": heads, "weighting": weighting, "regularisers": regularisers}
        sides = [("encoder", encoder, self.encoder_lr), *((side, some, self.head_lr) for side, some in others.items())]
        for side, parameters, lr in sides:
            trained = [parameter for parameter in parameters if parameter.requires_grad]
            for matrices, decay in ((True, self.weight_decay), (False, 0.0)):
                if chosen := [parameter for parameter in trained if (parameter.ndim >= 2) is matrices]:
                    groups.append({"params": chosen, "lr": lr, "weight_decay": decay, "name": side})
                    rates.append(partial(self.rate, total=total, encoder=side == "encoder"))
        optimizer = torch.optim.AdamW(groups, fused=True)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rates)
