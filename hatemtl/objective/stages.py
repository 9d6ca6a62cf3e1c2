"""Divides training into stages: what learns in each, for how long, and at which rates."""

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from hatemtl.errors import UserError, did_you_mean

Schedule = Literal["linear", "cosine", "constant"]
SIDES = ("everything", "encoder", "embeddings", "heads")
EMBEDDINGS = -1  # their number among layers
RANGE = re.compile(r"layers? (\d+)(-?)(\d*)")
BLOCK = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Says of a stretch of training what learns, how long, and what is otherwise than in the rest of the run.

    learns: "everything", "heads", "encoder" (adapter, fusion or the whole encoder, as the method trains it), some of it:
    "layers 3-5", "layers 3-" or "layer 5", counted from 0, "embeddings"; or a list of these. epochs: may be a
    fraction, None for `Optimization.epochs`; or steps: of the optimizer, which the next stage has less. warmup: epochs of it
    in which the encoder side's rate rises from 0. unfreeze: epochs after each of which one layer more learns, from the top
    down (gradual unfreezing, Howard & Ruder 2018, arXiv:1801.06146); 0 for all at once. encoder_lr, head_lr, schedule: None
    for the run's; before the last stage, rates are constant. weighting: makes one for the weights of tasks; sampling:
    `batches.sampling.Sampling`, from the beginning of an epoch on; regulariser: the names of those of the run that act here.
    None is the run's, or all. A text as weighting or sampling is the option of that group, for whoever reads configurations.
    """

    learns: str | Sequence[str] = "everything"
    epochs: float | None = None
    steps: int | None = None
    warmup: float = 0.0
    unfreeze: float = 0.0
    encoder_lr: float | None = None
    head_lr: float | None = None
    schedule: Schedule | None = None
    weighting: str | Callable[..., Any] | None = None
    sampling: Any = None
    regulariser: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for part in self.parts:
            found = RANGE.fullmatch(part)
            if part not in SIDES and not found:
                raise UserError(
                    f"learns={part}: expected a range such as 'layers 3-5', or a side; {did_you_mean(part, SIDES)}"
                )
            if found and found[3] and int(found[3]) < int(found[1]):
                raise UserError(f"learns={part}: expected the lower layer first; type 'layers {found[3]}-{found[1]}'")
        if not self.parts:
            raise UserError("learns=[]: a stage in which nothing learns; type learns=heads, or leave the stage out")
        if self.epochs is not None and self.steps is not None:
            raise UserError(f"epochs={self.epochs} and steps={self.steps} both say how long it lasts; leave one out")
        for name in ("epochs", "steps"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise UserError(f"{name}={value}: expected a number above 0; leave the stage out, or type {name}=1")
        for name in ("warmup", "unfreeze", "encoder_lr", "head_lr"):
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf:
                raise UserError(f"{name}={value}: expected a number, 0 or more")
        if self.epochs is not None and self.warmup > self.epochs:
            raise UserError(
                f"warmup={self.warmup}: longer than the {self.epochs:g} epochs of the stage; type warmup={self.epochs:g}"
            )

    @property
    def parts(self) -> list[str]:
        return [self.learns] if isinstance(self.learns, str) else [*self.learns]

    @property
    def heads(self) -> bool:
        """Tells whether the heads learn."""
        return bool({"everything", "heads"} & {*self.parts})

    @property
    def named(self) -> str:
        """Names what learns, in a word or two."""
        return " and ".join(self.parts)

    def layers(self, depth: int) -> set[int]:
        """Gives the layers of the encoder side, of so many, that learn, EMBEDDINGS among them. Raises UserError beyond."""
        found: set[int] = set()
        for part in self.parts:
            if asked := RANGE.fullmatch(part):
                first = int(asked[1])
                last = int(asked[3]) if asked[3] else max(first, depth - 1) if asked[2] else first
                if last >= depth:
                    raise UserError(
                        f"learns={part}: this encoder has layers 0 to {depth - 1}; type 'layers {min(first, depth - 1)}-'"
                    )
                found |= {*range(first, last + 1)}
            elif part != "heads":
                found |= {EMBEDDINGS} if part == "embeddings" else {*range(EMBEDDINGS, depth)}
        return found


WHOLE = Stage()


def layer_of(name: str, depth: int) -> int:
    """Finds the layer that an encoder's parameter of this name learns with: what is in none, with the top one.

    >>> [layer_of(name, 6) for name in ("embeddings.word.weight", "encoder.layer.0.bias", "layers.5.mlp.weight", "gate")]
    [-1, 0, 5, 5]
    """
    if found := BLOCK.search(name):
        return min(int(found[1]), depth - 1)
    return EMBEDDINGS if "embedding" in name or "invertible" in name else depth - 1


class Stretch(NamedTuple):
    """A stage in its place, in optimizer steps: from where it begins, has its full rate, and ends."""

    stage: Stage
    begin: float
    full: float
    end: float


@dataclass(frozen=True)
class Plan:
    """Lays stages out over a run. ends: optimizer steps made by the end of each epoch. depth: layers of the encoder.

    encoder_lr, head_lr, schedule: of stages that say none. decay: of the encoder side's rate, from each layer to the one
    below. Raises UserError where a stage has no step.
    """

    stages: Sequence[Stage]
    ends: Sequence[float]
    depth: int
    encoder_lr: float
    head_lr: float
    schedule: Schedule
    decay: float

    def __post_init__(self) -> None:
        for number, (stage, begin, _, end) in enumerate(self.stretches):
            try:
                stage.layers(self.depth)
            except UserError as error:
                raise UserError(f"optimization.stages[{number}]: {error}") from None
            if math.ceil(end) <= math.ceil(begin):  # it has the whole steps from `begin` on, up to `end`
                raise UserError(
                    f"optimization.stages[{number}] ({stage.named}) has no step, for an epoch has {self.ends[0]:g}; type "
                    f"fewer steps before it, or more epochs"
                )

    @cached_property
    def stretches(self) -> list[Stretch]:
        found: list[Stretch] = []
        begin = epochs = 0.0
        for stage in self.stages:
            epochs += stage.epochs or 0.0
            end = begin + stage.steps if stage.steps is not None else self._step(epochs)
            found.append(Stretch(stage, begin, self._after(begin, stage.warmup), end))
            begin = end
        return found

    def _step(self, epochs: float) -> float:
        return float(np.interp(epochs, range(len(self.ends) + 1), [0, *self.ends]))

    def _after(self, step: float, epochs: float) -> float:
        """Finds the step that comes so many epochs after another."""
        return self._step(float(np.interp(step, [0, *self.ends], range(len(self.ends) + 1))) + epochs) if epochs else step

    def at(self, step: int) -> int:
        """Finds the stage, from 0 on, in which this optimizer step is made."""
        return max(number for number, stretch in enumerate(self.stretches) if not number or stretch.begin <= step)

    def learns(self, step: int) -> tuple[bool, set[int]]:
        """Tells at an optimizer step whether the heads learn, and which layers of the encoder side."""
        stage, begin, _, _ = self.stretches[self.at(step)]
        thawed = {n for n in stage.layers(self.depth) if step >= self._after(begin, (self.depth - 1 - n) * stage.unfreeze)}
        return stage.heads, thawed

    def rate(self, step: int, side: str, layer: int | None = None) -> float:
        """Gives the rate of a side at an optimizer step; of the encoder side, that of all layers that learn, or of one."""
        number = self.at(step)
        stage, begin, full, end = self.stretches[number]
        heads, layers = self.learns(step)
        if side == "encoder":
            base = self.encoder_lr if stage.encoder_lr is None else stage.encoder_lr
            if not (layers if layer is None else layer in layers):
                return 0.0
            base *= 1.0 if layer is None else self.decay ** (self.depth - 1 - layer)
            if step < full:
                return base * (step - begin) / (full - begin)
        else:
            base = self.head_lr if stage.head_lr is None else stage.head_lr
            if side == "heads" and not heads:
                return 0.0
        schedule = stage.schedule or (self.schedule if number + 1 == len(self.stages) else "constant")
        done = min(max((step - full) / max(end - full, 1), 0.0), 1.0)
        return base * {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[schedule]

    @cached_property
    def by_layer(self) -> bool:
        """Tells whether layers of the encoder side have rates of their own."""
        ranges = any(RANGE.fullmatch(part) for stage in self.stages for part in stage.parts)
        return self.decay != 1 or ranges or any(stage.unfreeze for stage in self.stages)

    def check(self, layers: Collection[int]) -> None:
        """Raises UserError where nothing learns in a stage. layers: those of the encoder side that have trained weights."""
        for number, stage in enumerate(self.stages):
            if not stage.heads and not {*layers} & stage.layers(self.depth):
                names = ["embeddings" if n == EMBEDDINGS else f"layer {n}" for n in sorted(layers)]
                raise UserError(
                    f"optimization.stages[{number}] ({stage.named}): nothing learns, for of the encoder side this method "
                    f"trains {', '.join(names) or 'nothing'}; type learns: heads, or another method"
                )
