"""What watches a training run: the best weights, the way back after an interruption, the clock, the printed line."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.module import MultitaskModule


class BestWeights(Callback):
    """Keeps the trained weights of the best epoch by `val_score`, and ends training `patience` epochs after it.

    Epochs that end within the warm-up do not count against patience.
    """

    def __init__(self, *, patience: int | None, warmup: float) -> None:
        self.patience, self.warmup = patience, warmup
        self.score, self.epoch, self.waited = -torch.inf, -1, 0
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        score = float(trainer.callback_metrics["val_score"])
        if score > self.score:
            self.score, self.epoch, self.waited = score, trainer.current_epoch, 0
            self.weights = {k: v.clone() for k, v in _module(pl_module).trained_state().items()}
        elif trainer.current_epoch + 1 > self.warmup:
            self.waited += 1
        self._stop(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        trainer.should_stop = trainer.should_stop or (self.patience is not None and self.waited >= self.patience)

    def restore(self, module: MultitaskModule) -> None:
        """Puts the best weights back."""
        module.load_state_dict(self.weights, strict=False)

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "epoch": self.epoch, "waited": self.waited, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.epoch, self.waited, self.weights = (state_dict[k] for k in ("score", "epoch", "waited", "weights"))


class Checkpoint(Callback):
    """Writes the state of training after every epoch, so that an interrupted run goes on where it was."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        temporary = self.path.with_suffix(".new")
        trainer.save_checkpoint(temporary)
        os.replace(temporary, self.path)


class Clock(Callback):
    """Measures training: seconds without validation, and posts."""

    def __init__(self) -> None:
        self.seconds, self.posts, self.started = 0.0, 0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.posts += len(batch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.seconds += time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "posts": self.posts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.posts = state_dict["seconds"], state_dict["posts"]


class EpochLine(Callback):
    """Prints one line an epoch: loss, the primary metric of each task, and whether the epoch is the best so far."""

    def __init__(self, console: Console, best: BestWeights) -> None:
        self.console, self.best = console, best

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module, values = _module(pl_module), trainer.callback_metrics
        if not torch.isfinite(values["train_loss"]):
            raise UserError(
                f"the training loss is {float(values['train_loss'])} after epoch {trainer.current_epoch + 1}; lower "
                f"optimization.encoder_lr (now {module.optimization.encoder_lr}) or type trainer.precision=32, "
                f"and overwrite=true to begin anew"
            )
        scores = [
            f"val_{t}_{module.head(t).primary} {float(values[f'val_{t}_{module.head(t).primary}']):.3f}"
            for t in module.heads
        ]
        best = "  (best)" if self.best.epoch == trainer.current_epoch else ""
        self.console.print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {float(values['train_loss']):.4f}  "
            + "  ".join(scores)
            + best,
            highlight=False,
            soft_wrap=True,
        )


def _module(module: LightningModule) -> MultitaskModule:
    if not isinstance(module, MultitaskModule):
        raise TypeError(f"expected a MultitaskModule, given {type(module).__name__}")
    return module
