"""Sends a run's curves, figures and tables to trackers, through Lightning's own loggers, which do the work."""

import json
import logging
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from hatemtl.command.request import About, Tested
from hatemtl.errors import UserError
from hatemtl.machine import json_object
from hatemtl.saved_runs.saved_run import AGAIN
from hatemtl.saved_runs.writing import write_text

TRACKED = "tracked.json"  # in logs/ of a run: what finds it again at the tracker
MLFLOW = Path("adapters/mlflow.db")  # where no server is named: the runs of this folder
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


class OnMlflow(Tracker):
    """Keeps what the run came to as the last values of its metrics, by which runs are sorted; a failed run as failed."""

    def __init__(self, logger: MLFlowLogger) -> None:
        super().__init__(logger)
        self.run, self.client = str(logger.run_id), logger.experiment
        self.client.update_run(self.run, status="RUNNING")  # one that goes on, or is tested, had ended

    def begin(self, config: Mapping[str, Any]) -> None:
        if not self.client.get_run(self.run).data.params:  # of a run that goes on they stand, and may not be changed
            super().begin(_for_mlflow(config))

    def figures(self, values: Mapping[str, float]) -> None:
        curve = self.client.get_metric_history(self.run, "val_score")
        self.logger.log_metrics(dict(values), step=1 + max((point.step for point in curve), default=-1))


def _for_mlflow(value: Any) -> Any:
    """Gives a configuration with a colon for what MLflow takes in no name, as `head@tasks.label.head`."""
    if not isinstance(value, Mapping):
        return value
    return {re.sub(r"[^\w. :/-]", ":", str(name)): _for_mlflow(inside) for name, inside in value.items()}


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
                rows["text"] = [tested.texts[task][post] for task, post in zip(rows["task"], rows["post_id"], strict=True)]
            self.run.log({"test_predictions": wandb.Table(dataframe=rows)})
        for task, labels in tested.labels.items() if self.shown["confusion"] else ():
            mine = tested.frame[tested.frame["task"] == task]
            counts = np.zeros((len(labels), len(labels)), int)
            np.add.at(counts, ([int(gold[0]) for gold in mine["gold"]], [*tested.said[task]]), 1)
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
    place: Any = _known(logs, "wandb", {"project": project, "entity": entity})
    place = {"id": secrets.token_hex(4), "job_type": about.action, **place}
    logger = WandbLogger(
        name=about.run,
        save_dir=logs,
        mode=mode,
        resume="allow",
        group=group or about.study,
        tags=[tag[:TAG] for tag in about.tags],
        **place,
    )
    try:
        tracker = OnWandb(logger, predictions=predictions, confusion=confusion, texts=texts)
    except (wandb.errors.Error, ValueError) as error:  # the latter of a mode that there is not
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"logger=wandb with mode {mode}: {why}; type wandb login, WANDB_MODE=offline before the command, or logger=csv"
        ) from error
    place["id"] = str(tracker.run.id)  # which an agent of a sweep of theirs has given
    write_text(logs / TRACKED, json.dumps({**_tracked(logs), "wandb": place}, indent=2) + "\n")
    return tracker


def _tracked(logs: Path) -> dict[str, Any]:
    return json_object.read(logs / TRACKED, AGAIN) if (logs / TRACKED).exists() else {}


def _known(logs: Path, tracker: str, place: Mapping[str, str | None]) -> dict[str, str | None]:
    """Gives this place at a tracker, with what finds the run again that is there already, if that is its place.

    Whoever made the run may have written the file: figures and texts go nowhere but where the user says.
    """
    known = _tracked(logs).get(tracker)
    if not isinstance(known, dict) or any(known.get(key) != value for key, value in place.items()):
        return {**place}
    return {**place, **{key: known[key] for key in ("id", "job_type") if isinstance(known.get(key), str)}}


@dataclass(frozen=True, kw_only=True)
class Mlflow:
    """Logs to MLflow. uri: of a server or database; None for MLFLOW_TRACKING_URI, else a database beside the saved runs.

    A run that goes on, and one that is tested later, is the run that it was there, found by its id in logs/tracked.json.
    group: the experiment; None for the study's folder.
    """

    uri: str | None
    group: str | None

    def __post_init__(self) -> None:
        needed = ("mlflow", "sqlalchemy", "alembic") if self.place.startswith("sqlite:") else ("mlflow",)
        if missing := [name for name in needed if find_spec(name) is None]:
            raise UserError(f"logger=mlflow needs {' and '.join(missing)}; type uv sync --extra mlflow")

    @property
    def place(self) -> str:
        """Names the server or database."""
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{MLFLOW}"

    def __call__(self, *, folder: Path, about: About) -> Tracker:
        """Opens the tracker. Raises UserError where nobody answers there."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of seven, with pauses of minutes
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # to whoever names a folder
        from mlflow.exceptions import MlflowException

        for name in ("mlflow", "alembic", "lightning.pytorch.loggers.mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if self.place == f"sqlite:///{MLFLOW}":
            MLFLOW.parent.mkdir(exist_ok=True)
        logs = folder / "logs"
        place: Any = {"id": None, **_known(logs, "mlflow", {"uri": self.place})}
        tags = {"action": about.action, "group": about.study, **{f"of.{tag}": "true" for tag in about.tags}}
        try:
            logger = MLFlowLogger(
                self.group or about.study, about.run, tracking_uri=place["uri"], tags=tags, run_id=place["id"]
            )
            tracker = OnMlflow(logger)
        except MlflowException as error:
            why = str(error).splitlines()[0][:300]
            raise UserError(f"logger.uri={place['uri']}: {why}; start that server, or type logger=csv") from error
        logs.mkdir(parents=True, exist_ok=True)
        place["id"] = tracker.run
        write_text(logs / TRACKED, json.dumps({**_tracked(logs), "mlflow": place}, indent=2) + "\n")
        return tracker
