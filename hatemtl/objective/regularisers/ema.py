"""Evaluates and keeps the moving average of the weights that training moves through."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hatemtl.objective.regularisers.base import Passes, Regulariser, Run, expect


@dataclass(frozen=True, kw_only=True)
class EMA(Regulariser):
    """Averages the trained weights over the steps, exponentially (as Tarvainen & Valpola 2017, arXiv:1703.01780).

    After each of the optimizer's steps t = 1, 2, … the average is Σᵢ decay^(t-i)·wᵢ / Σᵢ decay^(t-i): corrected for its bias
    as Adam corrects its own (Kingma & Ba 2015, arXiv:1412.6980, section 3), so the weights from before the first step count
    nothing, and there is nothing to warm up. It is what validation sees, and what of the best epoch is kept; training goes
    on from the weights themselves. start: the share of all steps before the first that counts.
    """

    weight = 0.0  # it has no terms
    decay: float
    start: float

    def __post_init__(self) -> None:
        expect(0 <= self.decay < 1, "ema.decay", self.decay, "a number from 0 (no average) to below 1, such as 0.99")
        expect(0 <= self.start < 1, "ema.start", self.start, "a share of training from 0 to below 1, such as 0.5")

    def begin(self, forward: Passes, run: Run) -> "Average":
        return Average(self, forward)


class Average(nn.Module, Regulariser):
    """The average of the trained weights in float32, in their order, and of how many steps it is."""

    weight = 0.0

    def __init__(self, settings: EMA, forward: Passes) -> None:
        super().__init__()
        self.settings, self.steps = settings, 0
        self.weights = trained(forward)  # of all stages: what does not learn in one stands still in the average too
        for number, weight in enumerate(self.weights):
            self.register_buffer(str(number), weight.detach().float().clone())

    @property
    def state(self) -> nn.Module:
        return self

    def get_extra_state(self) -> int:
        return self.steps

    def set_extra_state(self, state: Any) -> None:
        self.steps = int(state)

    @torch.no_grad()
    def after_update(self, forward: Passes) -> None:
        if forward.progress < self.settings.start:
            return
        self.steps += 1
        decay = self.settings.decay
        share = (1 - decay) / (1 - decay**self.steps)  # of the newest weights; of the first ones all
        weights = [weight.detach().float() for weight in self.weights]
        torch._foreach_lerp_([*self.buffers()], weights, share)

    @contextmanager
    def evaluating(self, forward: Passes) -> Iterator[None]:
        if not self.steps:
            yield
            return
        with exchanged(self.weights, [*self.buffers()]):
            yield


def trained(forward: Passes) -> list[nn.Parameter]:
    """Lists the trained weights of encoder and heads."""
    parts = forward.encoder, *forward.heads.values()
    return [weight for part in parts for weight in part.parameters() if weight.requires_grad]


@contextmanager
def exchanged(weights: list[nn.Parameter], values: list[Tensor]) -> Iterator[None]:
    """Gives weights, inside, these values: their storage is exchanged, for a step may still need what is in it."""
    mine = [weight.data for weight in weights]
    try:
        for weight, value in zip(weights, values, strict=True):
            weight.data = value.to(weight.dtype)
        yield
    finally:
        for weight, value in zip(weights, mine, strict=True):
            weight.data = value
