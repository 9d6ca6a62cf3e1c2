"""Curves land in the run's own folder, and nobody is asked for an account."""

import csv
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from conftest import Outcome
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hatemtl.command.request import About, Tested
from hatemtl.errors import UserError
from hatemtl.training import loggers
from hatemtl.training.loggers import Tracker

ROOT = Path(__file__).parents[2]
ABOUT = About("run", "study", ["ah_lora16", "minilm", "label", "x" * 80], "train")


def test_what_wandb_shows_of_a_test_is_what_heads_said_of_each_tasks_own_posts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A level is predicted by the median of its scores; two corpora may have posts of the same ids."""
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Table=lambda **given: given))
    shown: dict[str, Any] = {}
    experiment = SimpleNamespace(log=shown.update)
    logger: Any = SimpleNamespace(experiment=experiment)
    tracker = loggers.OnWandb(logger, predictions=True, confusion=True, texts=True)
    rows = [("0", "harm", [2], [0.4, 0.25, 0.35]), ("0", "tone", [1], [0.2, 0.8])]
    frame = pd.DataFrame(rows, columns=["post_id", "task", "gold", "scores"])
    labels = {"harm": ["none", "some", "much"], "tone": ["mild", "sharp"]}
    texts = {"harm": {"0": "one post"}, "tone": {"0": "another"}}
    tracker.tested(Tested(frame, labels, {"harm": [1], "tone": [1]}, texts))
    assert [*shown["test_predictions"]["dataframe"]["text"]] == ["one post", "another"]
    for task, cell in (("harm", ["much", "some", 1]), ("tone", ["sharp", "sharp", 1])):
        assert [of for of in shown[f"test_{task}_confusion"]["data"] if of[2]] == [cell]


def log(tracker: Tracker) -> None:
    tracker.begin({"seed": 3, "method": {"rank": 16}})
    for step, score in enumerate((0.25, 0.5)):
        tracker.logger.log_metrics({"val_score": score}, step=step)
    tracker.figures({"val_label_macro_f1": 0.5, "seconds": 12.0})
    tracker.close(failed=False)


def scores(path: Path) -> list[float]:
    with path.open(newline="") as file:
        return [float(row["val_score"]) for row in csv.DictReader(file)]


def test_csv_is_one_table_and_a_resumed_run_adds_another(tmp_path: Path) -> None:
    for _ in range(3):
        log(loggers.csv(folder=tmp_path, about=ABOUT))
    tables = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("metrics.csv"))
    assert tables == ["logs/metrics.csv", "logs/resumed_1/metrics.csv", "logs/resumed_2/metrics.csv"]
    assert all(scores(tmp_path / table) == [0.25, 0.5] for table in tables)
    assert {path.name for path in tmp_path.iterdir()} == {"logs"}


def events(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("logs/events.out.tfevents.*"))


def test_tensorboard_has_curves_hyperparameters_and_what_the_run_came_to(tmp_path: Path) -> None:
    log(loggers.tensorboard(folder=tmp_path, about=ABOUT))
    for told in (b"val_score", b"_hparams_", b"method/rank", b"val_label_macro_f1", b"seconds", b"failed"):
        assert told in events(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"logs"}
    with loggers.tensorboard(folder=tmp_path, about=ABOUT) as test:
        test.figures({"test_label_macro_f1": 0.4})
    assert b"test_label_macro_f1" in events(tmp_path)


def test_tensorboard_marks_what_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), loggers.tensorboard(folder=tmp_path, about=ABOUT) as tracker:
        tracker.begin({"seed": 3})
        raise RuntimeError
    assert b"failed" in events(tmp_path) and b"seed" in events(tmp_path)


@pytest.mark.slow
def test_mlflow_has_curves_and_ends_them_with_what_the_run_came_to(tmp_path: Path) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    logger = loggers.Mlflow(uri=uri, group=None)
    log(logger(folder=tmp_path / "run", about=ABOUT))
    with logger(folder=tmp_path / "run", about=ABOUT) as test:  # the same run, found by its id
        test.begin({"seed": 4})  # which stands
        test.figures({"test_label_macro_f1": 0.4})
    with pytest.raises(RuntimeError), logger(folder=tmp_path / "other", about=ABOUT) as other:
        other.begin({"choices": {"head@tasks.label.head": "multiclass"}})
        raise RuntimeError
    client = tracking.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    failed, run = sorted(runs, key=lambda run: run.info.status)
    assert (run.info.status, failed.info.status) == ("FINISHED", "FAILED") and len(runs) == 2
    assert run.data.params == {"seed": "3", "method/rank": "16"}
    assert failed.data.params == {"choices/head:tasks.label.head": "multiclass"}
    figures = {"val_label_macro_f1": 0.5, "seconds": 12.0, "test_label_macro_f1": 0.4}
    assert run.data.metrics == {"val_score": 0.5, **figures}
    assert {point.step for point in client.get_metric_history(run.info.run_id, "val_label_macro_f1")} == {2}
    assert run.data.tags["group"] == "study" and run.data.tags["of.minilm"] == "true"


@pytest.mark.parametrize(
    "written",
    [
        {"project": "mine", "entity": "somebody", "id": "theirs", "job_type": "train"},
        {"project": "theirs", "entity": None, "id": "a1"},
        {"project": "mine", "entity": None, "id": 7, "dir": "/elsewhere"},
        ["theirs"],
    ],
    ids=str,
)
def test_figures_go_to_no_place_that_a_saved_run_names(written: Any, tmp_path: Path) -> None:
    place = {"project": "mine", "entity": None}
    (tmp_path / loggers.TRACKED).write_text(json.dumps({"wandb": written, "mlflow": {"uri": "http://theirs", "id": "1"}}))
    assert loggers._known(tmp_path, "wandb", place) == place
    assert loggers._known(tmp_path, "mlflow", {"uri": "sqlite:///mine"}) == {"uri": "sqlite:///mine"}
    (tmp_path / loggers.TRACKED).write_text(json.dumps({"wandb": {**place, "id": "a1", "job_type": "train", "dir": "x"}}))
    assert loggers._known(tmp_path, "wandb", place) == {**place, "id": "a1", "job_type": "train"}


def test_mlflow_that_is_not_installed_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for uri, missing in ((None, "mlflow and sqlalchemy and alembic"), ("http://server", "mlflow")):
        with pytest.raises(UserError, match=f"logger=mlflow needs {missing}; type uv sync --extra mlflow"):
            loggers.Mlflow(uri=uri, group=None)


def test_wandb_that_takes_no_run_is_told_with_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def init(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "init", init)
    shown = {"predictions": False, "confusion": False, "texts": False}
    with pytest.raises(
        UserError, match="logger=wandb with mode online: No API key .*; type wandb login, WANDB_MODE=offline"
    ):
        loggers.wandb(folder=tmp_path, about=ABOUT, project="hatemtl", entity=None, group=None, **shown)


def test_a_run_is_found_again_by_the_id_that_an_agent_gave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("wandb.init", lambda **_: SimpleNamespace(id="theirs"))
    shown = {"predictions": False, "confusion": False, "texts": False}
    loggers.wandb(folder=tmp_path, about=ABOUT, project="hatemtl", entity=None, group=None, **shown)
    assert json.loads((tmp_path / "logs" / loggers.TRACKED).read_text())["wandb"]["id"] == "theirs"


@pytest.mark.parametrize(("failed", "said"), [(False, "success"), (True, "failed")])
def test_a_tracker_ends_once_and_as_it_went(failed: bool, said: str, tmp_path: Path) -> None:
    ends: list[str] = []
    tracker = loggers.csv(folder=tmp_path, about=ABOUT)
    tracker.logger.finalize = ends.append  # type: ignore[method-assign]
    with tracker:
        tracker.close(failed=failed)
    assert ends == [said]


@pytest.mark.slow
@pytest.mark.parametrize("failing", [None, RuntimeError, SIGTERMException])
def test_a_run_whose_training_fails_is_closed_as_failed(
    failing: type[BaseException] | None,
    cli: Callable[..., Outcome],
    sample: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    ends: list[bool] = []
    monkeypatch.setattr(Tracker, "close", lambda self, *, failed: ends.append(failed))

    def fail(*some: Any, **more: Any) -> None:
        assert failing is not None
        raise failing

    if failing is not None:
        monkeypatch.setattr("lightning.Trainer.validate", fail)
    run = [*sample, "tasks.target.corpus.size=100", f"save_path={tmp_path / 'run'}"]
    if failing is RuntimeError:
        with pytest.raises(RuntimeError):
            cli(*run)
    else:
        assert cli(*run).code == (0 if failing is None else 143)
    assert ends[0] == (failing is not None)


RUNS = """
import sys
from pathlib import Path
from conftest import main
words = ["encoder=tiny", "tasks=[label]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=150"]
words += ["optimization.epochs=2", "logger=wandb", "cost.per_hour=2", "trainer.accelerator=cpu"]
shown = ["logger.confusion=true", f"logger.texts={sys.argv[2]}"]
for more in (["action=[train,test]", *shown, f"save_path={sys.argv[1]}/study/a"],
             ["optimization.encoder_lr=1e30", "optimization.head_lr=1e30", f"save_path={sys.argv[1]}/study/b"]):
    print("CODE", main(*words, *more))
"""


def records(path: Path) -> Iterator[Any]:
    """An offline run's file: seven bytes, then blocks of parts of records, each behind its checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), 7, b""
    while place < len(content):
        if (left := 2**15 - place % 2**15) < 7:  # no room for a part
            place += left
            continue
        size, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def decoded(folder: Path) -> dict[str, Any]:
    """What the offline runs of a folder say together."""
    found: dict[str, Any] = {"ids": [], "summary": {}, "exits": [], "history": set(), "tables": []}
    for path in sorted(folder.glob("logs/wandb/offline-run-*/*.wandb")):
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                found["ids"].append(record.run.run_id)
                found |= {name: getattr(record.run, name) for name in ("display_name", "run_group", "job_type", "project")}
                found["tags"] = set(record.run.tags)
            elif kind == "summary":
                updates = {item.key or "/".join(item.nested_key): item.value_json for item in record.summary.update}
                found["summary"] |= {name: json.loads(value) for name, value in updates.items()}
            elif kind == "history":
                found["history"] |= {item.key or "/".join(item.nested_key) for item in record.history.item}
            elif kind == "exit":
                found["exits"].append(record.exit.exit_code)
    found["tables"] = [path.read_text() for path in folder.glob("logs/wandb/offline-run-*/files/media/table/*.json")]
    return found


@pytest.fixture
def wandb_runs(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Two runs in a row in a process of its own, of which the second diverges: wandb reads its settings once."""

    def call(texts: bool = False, **settings: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        environment = {**kept, "HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "PYTHONPATH": path, **settings}
        command = [sys.executable, "-W", "ignore", "-c", RUNS, str(tmp_path), str(texts).lower()]
        return subprocess.run(
            command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
        )

    return call


@pytest.mark.slow
def test_wandb_holds_what_its_users_sort_by(
    wandb_runs: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = wandb_runs()
    assert re.findall(r"CODE (\d)", done.stdout) == ["0", "2"], done.stderr
    a, b = (decoded(tmp_path / "study" / name) for name in ("a", ".b.unfinished"))
    saved = tmp_path / "study/a"
    rows = {name: float(value) for name, value in csv.reader((saved / "results.csv").open()) if name != "metric"}
    record = json.loads((saved / "run.json").read_text())
    names = ("val_label_macro_f1", "test_label_macro_f1", "val_label_accuracy")
    assert {name: a["summary"][name] for name in names} == {name: pytest.approx(rows[name]) for name in names}
    for name in ("parameters", "trained_parameters", "best_epoch"):
        assert a["summary"][name] == record[name]
    assert a["summary"]["price"] == pytest.approx(record["ledger"]["price"])  # that of training and test
    assert a["summary"]["seconds"] == pytest.approx(sum(record["ledger"]["seconds"].values()))
    assert {"train_loss", "val_score"} <= a["history"]
    assert len(a["ids"]) == 2 and len(set(a["ids"])) == 1  # training and test are one run, and another is another
    assert set(a["ids"]) != set(b["ids"])
    assert (a["display_name"], a["run_group"], a["job_type"], a["project"]) == ("a", "study", "train", "hatemtl")
    assert a["tags"] == {"ah_lora16", "tiny", "label"}
    assert (a["exits"], b["exits"]) == ([0, 0], [1])  # what diverged stands as failed
    assert any('"gold","predicted","posts"' in table for table in a["tables"])
    assert not any("post_id" in table for table in a["tables"])
    kept = (tmp_path / "study/.b.unfinished/console.txt").read_text()
    assert "error: the training loss is nan" in kept and "loaded, active and trained" in kept


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_shows_texts_where_asked_and_may_be_disabled(
    mode: str, wandb_runs: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = wandb_runs(texts=True, WANDB_MODE=mode)
    assert re.findall(r"CODE (\d)", done.stdout) == ["0", "2"], done.stderr
    tables = decoded(tmp_path / "study/a")["tables"]
    assert any('"post_id","task","gold","scores","text"' in table for table in tables) == (mode == "offline")
    assert bool(list(tmp_path.rglob("*run-*"))) == (mode == "offline")
