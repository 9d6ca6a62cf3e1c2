"""Keeps the ledger of a run at work, and tells after its first minute when training will end and what it will cost."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from rich.console import Console

from hatemtl.batches.batch import Batch
from hatemtl.errors import UserError
from hatemtl.machine import json_object
from hatemtl.machine.flops import wait
from hatemtl.machine.ledger import Ledger
from hatemtl.machine.written_ledger import added, as_ledger
from hatemtl.saved_runs.claiming import CHECKPOINT
from hatemtl.saved_runs.saved_run import AGAIN
from hatemtl.saved_runs.writing import write_text

LEDGER = "ledger.json"  # of a run at work; a finished one has it in run.json
MINUTE = 60.0  # seconds of training until the end is told, and between two times that the ledger is kept


class Others(Callback):
    """Books in the lead's ledger what the other processes of the run read, whenever all meet; each process has one."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.mine = ledger, (0, 0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        posts, tokens = self.mine
        self.mine = posts + len(batch), tokens + batch.tokens

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, *index: int) -> None:
        self.on_train_batch_end(trainer, pl_module, outputs, batch, *index)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._meet(pl_module, "training")

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._meet(pl_module, "validating")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._meet(pl_module, "training")

    def _meet(self, module: Any, phase: str) -> None:
        _, *others = module.crew.gather(self.mine)
        self.mine = (0, 0)
        for posts, tokens in others:
            self.ledger.posts[phase] += posts
            self.ledger.tokens[phase] += tokens


class Spending(Callback):
    """Books training and validation in the ledger, keeps it in the folder of the run at work, and tells the end once.

    What a sitting before this one has spent there is added to.
    """

    def __init__(self, ledger: Ledger, work: Path, console: Console) -> None:
        self.ledger, self.work, self.console = ledger, work, console
        self.before: Mapping[str, Any] | None = None
        with suppress(UserError):  # broken, or of a run that was killed before it kept one
            path = work / LEDGER
            self.before = as_ledger(path, json_object.read(path, AGAIN), AGAIN) if path.exists() else None
        self.told, self.kept, self.first_step, self.validations = False, time.perf_counter(), 0, 0

    def whole(self) -> dict[str, Any]:
        """Gives what all sittings have spent up to now, of a folder in which no file of a run at work is left."""
        return added(self.before, self.ledger.entry(self.work, but=(LEDGER, CHECKPOINT)))

    def keep(self) -> None:
        """Writes it where a run that goes on looks for it."""
        self.kept = time.perf_counter()
        with suppress(OSError):  # whatever the disk refuses is told by who writes what matters
            write_text(self.work / LEDGER, json.dumps(self.whole(), indent=2) + "\n")

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.ledger.turn("training")
        self.first_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.ledger.read(len(batch), batch.tokens)
        if time.perf_counter() - self.kept < MINUTE:
            return
        wait(pl_module.device)
        self.keep()
        if not self.told and trainer.global_step > self.first_step:
            self.told = True
            self.console.print(self._forecast(trainer, pl_module), highlight=False, soft_wrap=True)

    def _forecast(self, trainer: Trainer, module: Any) -> str:
        """Tells the end by the steps that are left, at the mean time of those done; a validation as those done."""
        training, validating = (self.ledger.seconds[phase] for phase in ("training", "validating"))
        left = (module.plan.ends[-1] - trainer.global_step) * training / (trainer.global_step - self.first_step)
        if self.validations:
            each = validating / self.validations
        else:  # a forward pass is a third of a step
            data = trainer.datamodule  # type: ignore[attr-defined]
            tokens = int(data.pool.lengths[data.rows("val")].sum())
            each = tokens * training / max(self.ledger.tokens["training"], 1) / 3
        every, steps = module.optimization.evaluate_every, module.plan.ends[-1] - trainer.global_step
        validations = (trainer.max_epochs or 0) - trainer.current_epoch + 1  # that of the best weights too
        left += each * (validations + (steps // every if every else 0))
        now = datetime.now()
        end = now + timedelta(seconds=left)
        at = f"{end:%H:%M}" if end.date() == now.date() else f"{end:%a %d %b %H:%M}"
        told = f"training will end about {at}, in {_span(left)}"
        if module.optimization.total_epochs > 1 and module.optimization.patience is not None:
            told += f", or sooner by optimization.patience={module.optimization.patience}"
        whole = self.whole()
        if (price := whole["price"]) is not None:
            per_hour = self.ledger.cost.per_hour or 0.0
            told += f"; it will have cost about {price + per_hour * left / 3600:.2f} ({per_hour:g} an hour)"
        return told

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        wait(pl_module.device)
        self.ledger.turn("validating")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, *_: Any) -> None:
        self.ledger.read(len(batch), batch.tokens)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.validations += 1
        self.ledger.turn("training" if trainer.state.fn == "fit" else "saving")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.keep()


def _span(seconds: float) -> str:
    """Writes a time of minutes or hours.

    >>> _span(160), _span(7300)
    ('3 min', '2 h 02 min')
    """
    minutes = max(round(seconds / 60), 1)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
