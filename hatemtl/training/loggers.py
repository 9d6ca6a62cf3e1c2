"""Sends a run's curves to Lightning's own loggers, which do the work."""

import os
import sys
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger


def csv(*, folder: Path, run: str) -> Logger:
    """Logs a table of every epoch: logs/metrics.csv, or logs/resumed_N/metrics.csv for what a resumed run adds."""
    earlier = len(list(folder.glob("logs/**/metrics.csv")))
    return CSVLogger(folder, name="logs", version=f"resumed_{earlier}" if earlier else "")


def tensorboard(*, folder: Path, run: str) -> Logger:
    """Logs event files for TensorBoard: logs/."""
    return TensorBoardLogger(folder, name="logs", version="")


def wandb(*, folder: Path, run: str, project: str, entity: str | None) -> Logger:
    """Logs to Weights & Biases; kept offline in logs/ where nobody is logged in, and never a prompt."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
    except wandb.errors.Error:  # a key, but no network to check it
        mode = "offline"
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    return WandbLogger(name=run, project=project, entity=entity, save_dir=folder / "logs", mode=mode)


def close(logger: Logger | None, *, failed: bool) -> None:
    """Ends the logger's run, as failed or as finished, so that the next run of a multirun is one of its own."""
    if logger is not None:
        logger.finalize("failed" if failed else "success")
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=int(failed))
