"""A run is another where what it is made from is: trained or not yet, alone or in a sweep."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from command.test_request import HEAD, request
from encoders.test_pretrained import at, save
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file, save_file

from hatemtl.command.request import Request
from hatemtl.corpora.sample import Sample
from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import SavedRun, unfinished
from hatemtl.tasks import Task
from hatemtl.training.launch.base import Ended, Run
from hatemtl.training.sweep import Finished, Planned, ended_before
from hatemtl.training.train import train


def before(made: Request) -> Ended | None:
    """How a sweep finds that the run ended."""
    run = Run("run", (), lambda: Ended("not begun", ""), made.save_path, made.identity)
    return ended_before(Planned(run, lambda: made), Finished())


class BrokenOff(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise RuntimeError("the lights went out")


def test_over_other_weights_of_the_encoder_no_run_is_found_and_none_goes_on(tmp_path: Path) -> None:
    save("bert", tmp_path / "encoder")
    made = request(tmp_path / "run", encoder=at(tmp_path / "encoder"))
    cut = replace(made, save_path=tmp_path / "cut")
    with pytest.raises(RuntimeError, match="lights"):
        train(cut, [BrokenOff()])
    train(made)
    assert not train(made).trained and before(made) == Ended("was finished before", str(tmp_path / "run"))
    weights = load_file(file := tmp_path / "encoder" / "model.safetensors")
    weights["encoder.layer.1.output.LayerNorm.bias"][3] += 1e-3
    save_file(weights, file, {"format": "pt"})
    for other, there in ((made, made.save_path), (cut, unfinished(tmp_path / "cut"))):
        with pytest.raises(UserError, match="the pretrained encoder has other weights"):
            train(other)
        assert there is not None and there.is_dir()
    assert before(made) is None


def test_a_sweep_finds_no_run_whose_word_list_was_changed(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("snorf\n", encoding="utf-8")
    head = partial(HEAD, lexicon=str(tmp_path / "words.txt"))
    made = request(tmp_path / "run", tasks={"label": Task(corpus=Sample(size=150), column="label", head=head)})
    train(made)
    assert SavedRun(tmp_path / "run").record["lexicons"] and before(made) is not None
    (tmp_path / "words.txt").write_text("snorf\nlovely\n", encoding="utf-8")
    assert before(made) is None
