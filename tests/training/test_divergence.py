"""A run that diverged is never saved as finished, and its error names the cause and what to type."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ADAPTER, Outcome
from safetensors.torch import load_file

from hatemtl.batches.batch import Batch
from hatemtl.network.module import MultitaskModule
from hatemtl.saved_runs.saved_run import SavedRun, unfinished

Cli = Callable[..., Outcome]
RUN = ["encoder=tiny", "tasks=[label]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=300"]
ONE = ["optimization.epochs=1", "batching.batch_size=100000"]  # its last step is its first


def scores(path: Path, odd: float, split: str = "train") -> list[str]:
    """Overrides for a task of numbers, one of which is given."""
    splits = ["train"] * 60 + ["val"] * 20 + ["test"] * 20
    values = [i % 7 / 7 for i in range(100)]
    values[splits.index(split)] = odd
    lines = [f"post {i} of glum choirs {i % 5},{v},{s}" for i, (v, s) in enumerate(zip(values, splits, strict=True))]
    path.write_text("text,value,split\n" + "\n".join(lines) + "\n")
    table = ["tasks=[table]", f"tasks.table.corpus.path={path}", "tasks.table.column=value", "head@tasks.table.head=score"]
    return ["encoder=tiny", *table, "optimization.epochs=1"]


def stopped(outcome: Outcome, run: Path, *said: str) -> None:
    assert outcome.code == 2, outcome.out + outcome.err
    assert outcome.err.startswith("error: ")
    assert "Traceback" not in outcome.err
    for words in said:
        assert words in outcome.err
    assert "overwrite=true" in outcome.err
    assert not run.exists()
    assert json.loads((unfinished(run) / "run.json").read_text())["status"] == "unfinished"
    assert not (unfinished(run) / "heads.safetensors").exists()


def test_a_last_step_that_breaks_the_weights(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = cli(*RUN, *ONE, "optimization.encoder_lr=1e38", f"save_path={run}")
    stopped(
        outcome, run, "trained tensors hold NaN or infinity", "optimization.encoder_lr (now 1e+38)", "encoder_lr=0.0001 "
    )
    assert cli(*RUN, *ONE, f"save_path={run}").code == 2  # told so: it is another run
    assert cli(*RUN, *ONE, "overwrite=true", f"save_path={run}").code == 0
    assert all(torch.isfinite(t).all() for t in load_file(run / ADAPTER).values())


def test_a_run_that_breaks_after_its_best_epoch_keeps_the_best(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = MultitaskModule.on_train_batch_end

    def breaks(self: MultitaskModule, outputs: object, batch: Batch, index: int) -> None:
        before(self, outputs, batch, index)
        if self.current_epoch == 1:
            for parameter in self.heads.parameters():
                parameter.data.fill_(torch.nan)  # which says hatespeech of every post, and scores better by that

    monkeypatch.setattr(MultitaskModule, "on_train_batch_end", breaks)
    assert cli(*RUN, "optimization.epochs=2", "batching.batch_size=100000", f"save_path={tmp_path}/run").code == 0
    assert SavedRun(tmp_path / "run").record["best_epoch"] == 1


@pytest.mark.parametrize("weight", ["nan", "inf", ".nan", ".inf", "-1", "abc"])
def test_a_weight_of_a_task_that_is_no_number(cli: Cli, tmp_path: Path, weight: str) -> None:
    outcome = cli(*RUN, *ONE, f"tasks.label.weight={weight}", f"save_path={tmp_path}/run")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: tasks.label.weight={weight}: expected a number")
    assert outcome.err.count("\n") == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_number_that_float32_does_not_hold(cli: Cli, tmp_path: Path, split: str) -> None:
    run = tmp_path / "run"
    outcome = cli(*scores(tmp_path / "posts.csv", 1e39, split), "action=[train,test]", f"save_path={run}")
    assert outcome.code == 2, outcome.out
    assert "posts.csv, line " in outcome.err
    assert "column 'value': '1e+39', expected a number" in outcome.err
    assert not run.exists()
    assert not unfinished(run).exists()


def test_a_test_that_breaks_leaves_the_trained_run(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    command = (*scores(tmp_path / "posts.csv", 1.0), "action=[train,test]", f"save_path={run}")

    begin = MultitaskModule.on_test_epoch_start

    def breaks(self: MultitaskModule) -> None:
        begin(self)
        for parameter in self.heads.parameters():
            parameter.data.fill_(torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(MultitaskModule, "on_test_epoch_start", breaks)
        outcome = cli(*command)
    assert outcome.code == 2, outcome.out
    assert "test_table_mae is nan" in outcome.err
    assert SavedRun(run).record["status"] == "finished"
    assert not [name for name in SavedRun(run).results if name.startswith("test_")]
    assert not (run / "predictions.parquet").exists()
    assert all(torch.isfinite(tensor).all() for tensor in SavedRun(run).tensors("heads.safetensors").values())
    assert not unfinished(run).exists()
    again = cli(*command)
    assert again.code == 0, again.err
    assert "not trained again" in again.out
    assert SavedRun(run).results["test_table_mae"] > 0


def test_a_pretrained_encoder_with_a_weight_that_is_no_number(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach = MultitaskModule.__init__

    def broken(self: MultitaskModule, encoder: torch.nn.Module, *rest: object, **more: object) -> None:
        attach(self, encoder, *rest, **more)  # type: ignore[arg-type]
        next(p for name, p in encoder.named_parameters() if "word_embeddings" in name).data[0, 0] = torch.nan
        next(p for name, p in encoder.named_parameters() if "LayerNorm" in name).data.fill_(torch.nan)

    monkeypatch.setattr(MultitaskModule, "__init__", broken)
    run = tmp_path / "run"
    stopped(cli(*RUN, *ONE, f"save_path={run}"), run, "of the pretrained encoder holds NaN or infinity", "encoder=NAME")


def test_a_loss_that_is_no_number_in_the_middle_of_a_run(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = cli(*RUN, "optimization.head_lr=1e38", "optimization.epochs=3", f"save_path={run}")
    stopped(outcome, run, "the training loss is ", "after epoch 1: ", "optimization.head_lr (now 1e+38)", "head_lr=0.001")
