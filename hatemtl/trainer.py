"""The Lightning trainer, and the number format that this machine computes fastest."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import Logger

from hatemtl.errors import UserError, did_you_mean
from hatemtl.optimization import Optimization


def fastest_precision(accelerator: str) -> Literal["bf16-mixed", "32-true"]:
    """bf16 autocast where the hardware multiplies bf16, else float32."""
    if accelerator != "cpu" and torch.cuda.is_available():
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator != "cpu" and torch.backends.mps.is_available():
        has_bf16 = False
    else:
        # oneDNN takes bf16 on any AVX-512 processor, but only these two multiply it in hardware
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if has_bf16 else "32-true"


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Where and in which number format a run computes.

    accelerator: auto, cpu or gpu. precision: auto, 32 or bf16 (float32 weights, bf16 arithmetic; heads stay float32).
    progress: whether to draw a progress bar; None draws it on a terminal.
    """

    accelerator: str
    precision: str | int
    progress: bool | None

    def __post_init__(self) -> None:
        if str(self.precision) not in ("auto", "32", "bf16"):
            raise UserError(
                f"trainer.precision={self.precision}: {did_you_mean(str(self.precision), ['auto', '32', 'bf16'])}"
            )
        if self.accelerator not in ("auto", "cpu", "gpu"):
            raise UserError(
                f"trainer.accelerator={self.accelerator}: {did_you_mean(self.accelerator, ['auto', 'cpu', 'gpu'])}"
            )
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise UserError("trainer.accelerator=gpu: torch sees no GPU here; type trainer.accelerator=cpu")

    def trainer(
        self, optimization: Optimization, *, root: Path, logger: Logger | bool, callbacks: list[Callback], bar: bool
    ) -> L.Trainer:
        """The trainer of one run, whose folder at work is `root`."""
        formats: dict[str, Any] = {"auto": fastest_precision(self.accelerator), "32": "32-true", "bf16": "bf16-mixed"}
        shown = bar if self.progress is None else self.progress
        return L.Trainer(
            default_root_dir=root,
            accelerator=self.accelerator,
            devices=1,
            precision=formats[str(self.precision)],
            max_epochs=optimization.total_epochs,
            accumulate_grad_batches=optimization.accumulate,
            logger=logger,
            callbacks=[*callbacks, *([RichProgressBar(leave=False)] if shown else [])],
            enable_progress_bar=shown,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=50,
            use_distributed_sampler=False,
        )
