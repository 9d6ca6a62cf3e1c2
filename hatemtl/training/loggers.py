"""Sends a run's curves, figures and tables to trackers, through Lightning's own loggers, which do the work."""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from hatemtl.command.request import About, Tested
from hatemtl.machine import json_object
from hatemtl.saved_runs.saved_run import AGAIN, write_text

TRACKED = "tracked.json"  # in logs/ of a run: what finds it again at the tracker
TAG = 64  # characters of a tag at Weights & Biases, at most


class Tracker:
    """Takes what a run tells: curves through `logger`, and what a run came to, where the tracker has a place for it.

    Left with an exception it is closed as failed.
    """

    def __init__(self, logger: Logger) -> None:
        self.logger, self.closed = logger, False

    def begin(self, config: Mapping[str, Any]) -> None:
        """Tells the configuration."""
        self.logger.log_hyperparams(dict(config))

    def figures(self, values: Mapping[str, float]) -> None:
        """Tells what the run came to: rows of its best epoch or of a test, seconds, parameters, cost."""

    def tested(self, tested: Tested) -> None:
        """Tells a test's predictions, where that is asked for."""

    def close(self, *, failed: bool) -> None:
        """Ends it, as failed or as finished, so that the next run of a multirun is one of its own."""
        if not self.closed:
            self.closed = True
            self.logger.finalize("failed" if failed else "success")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(failed=kind is not None)


class OnTensorBoard(Tracker):
    """Shows the configuration beside what the run came to, in the tab of hyperparameters; of a failed run that it failed."""

    def begin(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)

    def figures(self, values: Mapping[str, float]) -> None:
        if hasattr(self, "config"):
            self.logger.log_hyperparams(self.config, {**values, "failed": 0.0})
            del self.config
        else:  # a test: one run has one row of hyperparameters
            self.logger.log_metrics(dict(values), step=0)

    def close(self, *, failed: bool) -> None:
        if failed and hasattr(self, "config"):
            self.logger.log_hyperparams(self.config, {"failed": 1.0})
            del self.config
        super().close(failed=failed)


class OnWandb(Tracker):
    """Keeps what the run came to as its summary, by which runs are sorted; predictions and confusions where asked for."""

    def __init__(self, logger: WandbLogger, *, predictions: bool, confusion: bool, texts: bool) -> None:
        super().__init__(logger)
        self.run: Any = logger.experiment
        self.shown = {"predictions": predictions or texts, "confusion": confusion, "texts": texts}

    def figures(self, values: Mapping[str, float]) -> None:
        self.run.summary.update(dict(values))

    def tested(self, tested: Tested) -> None:
        import wandb

        if self.shown["predictions"]:
            names = ["post_id", "task", "gold", "scores"]
            rows = tested.frame[names].assign(gold=tested.frame["gold"].map(str), scores=tested.frame["scores"].map(str))
            if self.shown["texts"]:
                rows["text"] = rows["post_id"].map(tested.texts)
            self.run.log({"test_predictions": wandb.Table(dataframe=rows)})
        for task, labels in tested.labels.items() if self.shown["confusion"] else ():
            mine = tested.frame[tested.frame["task"] == task]
            gold, said = (np.array([*map(f, mine[of])], int) for of, f in (("gold", lambda g: g[0]), ("scores", np.argmax)))
            counts = np.zeros((len(labels), len(labels)), int)
            np.add.at(counts, (gold, said), 1)
            cells: Any = [[labels[g], labels[s], int(n)] for (g, s), n in np.ndenumerate(counts)]
            self.run.log({f"test_{task}_confusion": wandb.Table(columns=["gold", "predicted", "posts"], data=cells)})

    def close(self, *, failed: bool) -> None:
        import wandb

        if not self.closed:
            super().close(failed=failed)
            wandb.finish(exit_code=int(failed))


def csv(*, folder: Path, about: About) -> Tracker:
    """Logs a table of every epoch: logs/metrics.csv, or logs/resumed_N/metrics.csv for what a resumed run adds."""
    earlier = len(list(folder.glob("logs/**/metrics.csv")))
    return Tracker(CSVLogger(folder, name="logs", version=f"resumed_{earlier}" if earlier else ""))


def tensorboard(*, folder: Path, about: About) -> Tracker:
    """Logs event files for TensorBoard: logs/."""
    return OnTensorBoard(TensorBoardLogger(folder, name="logs", version="", default_hp_metric=False))


def wandb(
    *, folder: Path, about: About, project: str, entity: str | None, group: str | None, predictions: bool, confusion: bool,
    texts: bool,
) -> Tracker:  # fmt: skip
    """Logs to Weights & Biases; kept offline in logs/ where nobody is logged in, and never a prompt.

    A run that goes on, and one that is tested later, is the run that it was there, found by its id in logs/tracked.json.
    """
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
    except wandb.errors.Error:  # a key, but no network to check it
        mode = "offline"
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    place: Any = {"id": secrets.token_hex(4), "project": project, "entity": entity, "job_type": about.action}
    place |= json_object.read(logs / TRACKED, AGAIN).get("wandb", {}) if (logs / TRACKED).exists() else {}
    logger = WandbLogger(
        name=about.run,
        save_dir=logs,
        mode=mode,
        resume="allow",
        group=group or about.study,
        tags=[tag[:TAG] for tag in about.tags],
        **place,
    )
    tracker = OnWandb(logger, predictions=predictions, confusion=confusion, texts=texts)
    write_text(logs / TRACKED, json.dumps({"wandb": place}, indent=2) + "\n")
    return tracker
