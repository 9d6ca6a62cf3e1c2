"""Trains in the memory that there is: where it is out, the epoch begins again, each batch in twice as many micro-batches.

A micro-batch is a part of a batch; their gradients are accumulated. So an optimizer step has the posts that it would have,
and the mean of its losses is over them: only rounding, and what dropout draws, are others.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from torch import Tensor

from hatemtl.batches.datamodule import DataModule
from hatemtl.command.faults import is_of_memory
from hatemtl.errors import UserError
from hatemtl.machine.memory import available, taking
from hatemtl.network.module import MultitaskModule
from hatemtl.objective.gradients import Gathered
from hatemtl.objective.optimization import Optimization
from hatemtl.training.callbacks import kept_epochs, read_checkpoint

ROOM = 0.8  # of the memory that is there, what a step may take as measured beforehand
BESIDE = 12  # bytes beside a trained number: two moments of AdamW, and the best epoch's
MOST = 1024  # micro-batches
MOMENTS = {"exp_avg", "exp_avg_sq"}  # of AdamW, each of its weight's size
UNFIT = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)  # raised by who takes a checkpoint over


class TakenOver(Callback):
    """Sees that a checkpoint was taken over whole; an optimizer loads moments of any size, and fails at the first step."""

    def __init__(self) -> None:
        self.whole = False

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        for optimizer in trainer.optimizers:
            for parameter, state in optimizer.state.items():
                for name in MOMENTS & state.keys():
                    if getattr(state[name], "shape", None) != parameter.shape:
                        raise ValueError(f"{name} is not of its weight's size, {' × '.join(map(str, parameter.shape))}")
        self.whole = True


class Beginning(Callback):
    """Keeps what training changes as it is before the first epoch, until a checkpoint has it."""

    def __init__(self) -> None:
        self.weights: dict[str, Any] = {}
        self.states: list[tuple[Callback, dict[str, Any]]] = []

    def keep(self, module: MultitaskModule, callbacks: Sequence[Callback]) -> None:
        """Copies the weights, and the states of the callbacks."""
        checkpoint: dict[str, Any] = {}
        module.on_save_checkpoint(checkpoint)
        kept = checkpoint["state_dict"].items()  # of what is no tensor, as a count of steps, a copy
        self.weights = {name: v.detach().cpu().clone() if isinstance(v, Tensor) else deepcopy(v) for name, v in kept}
        self.states = [(callback, deepcopy(callback.state_dict())) for callback in callbacks]

    def restore(self, module: MultitaskModule) -> None:
        """Puts all of it back, where no checkpoint has anything yet."""
        module.load_state_dict(self.weights, strict=False)
        for callback, state in self.states:
            callback.load_state_dict(deepcopy(state))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.weights, self.states = {}, []


def cut(optimization: Optimization, data: DataModule) -> Optimization:
    """Gives the optimization for which a micro-batch is one of the batches that are accumulated."""
    return replace(optimization, accumulate=optimization.accumulate * data.micro_batches)


def fit(
    trainer_of: Callable[[Optimization, Sequence[Callback]], Trainer],
    callbacks: Sequence[Callback],
    module: MultitaskModule,
    data: DataModule,
    optimization: Optimization,
    checkpoint: Path,
    console: Console,
) -> Trainer:
    """Trains to the end, from the checkpoint where there is one; gives the trainer that came there.

    trainer_of: makes a trainer for an optimization. optimization: whose accumulated batches are whole ones. callbacks: the
    last of them writes the checkpoint. Raises what the system says where one post a micro-batch is too much, UserError
    where a checkpoint does not fit.
    """
    beginning, taken = Beginning(), TakenOver()
    if checkpoint.exists():
        data.cut_as(read_checkpoint(checkpoint).get(type(data).__qualname__, {}))
    elif module.crew.world == 1:  # several processes do not begin again
        beginning.keep(module, callbacks)
    while True:
        module.optimization = cut(optimization, data)
        trainer = trainer_of(module.optimization, [*callbacks, beginning, taken])
        before = checkpoint if checkpoint.exists() else None
        try:
            trainer.fit(module.train(), data, ckpt_path=before, weights_only=True)
            return trainer
        except Exception as error:
            if not is_of_memory(error) and before is not None and not taken.whole and isinstance(error, UNFIT):
                why = str(error).split("\n")[0][:200]
                raise UserError(f"{before} does not fit this run ({why}); type overwrite=true to begin it again") from error
            if module.crew.world > 1 or not is_of_memory(error) or data.micro_batches >= data.longest_batch():
                raise
            said = str(error).split("\n")[0].split(". GPU")[0][:120] or "the system has no more"
        _let_go(module)  # here, where no error holds the step's tensors any more
        if checkpoint.exists():
            epoch = kept_epochs(checkpoint)
        else:
            epoch = 0
            beginning.restore(module)
        data.cut(2 * data.micro_batches, epoch)
        console.print(
            f"out of memory ({said}): epoch {epoch + 1} begins again, each batch in {data.micro_batches} micro-batches "
            f"whose gradients are accumulated; data.micro_batches={data.micro_batches} begins so",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def _let_go(module: MultitaskModule) -> None:
    """Frees what a step that was broken off holds."""
    module.weighed, module.moved, module.so_far.sums = None, [], {}
    module.gathered, module.through.entered = Gathered(), None
    module.on_train_end()  # all may learn again, until a stage says otherwise
    module.learning = None
    module.zero_grad(set_to_none=True)
    module.merged.close()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def that_fit(module: MultitaskModule, data: DataModule, settings: Any) -> int:
    """Finds the least power of two of micro-batches in which the epoch's largest batch fits, by steps that move nothing.

    It begins with small ones, and tries none of twice the size that would take more than is there by the size before it, for
    a system that is asked for too much may end the process. settings: `training.trainer_settings.TrainerSettings`.
    """
    module.to(settings.device).train()
    rows = data.largest_batch()
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    there = available(settings.device)
    room = None if there is None else ROOM * (there - BESIDE * trained)
    number, taken = 1, taking(settings.device)
    while number < min(len(rows), MOST):
        number *= 2
    with torch.random.fork_rng():
        while True:
            try:
                _step(module, data, np.array_split(rows, number)[-1], settings)
            except Exception as error:
                if not is_of_memory(error):
                    raise
                number = min(2 * number, MOST)
                break
            finally:
                _let_go(module)
            if number == 1 or (room is not None and 2 * taken() > room):
                break
            number //= 2
    _let_go(module)
    return number


def _step(module: MultitaskModule, data: DataModule, rows: np.ndarray, settings: Any) -> None:
    batch = data.pool[rows].to(settings.device)
    low = settings.dtype is torch.bfloat16
    with torch.autocast(settings.device.type, torch.bfloat16) if low else nullcontext():
        losses: Mapping[str, Tensor] = module.losses(batch, module.through(batch))
        torch.stack([*losses.values()]).sum().backward()
