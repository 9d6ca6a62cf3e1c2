import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import lightning as L
import numpy as np
import pytest
import torch
from invented import BATCHING, Foreign, Mild, minilm, task

from hatemtl.batches.batch import Batch
from hatemtl.batches.batching import Batching, LengthBuckets, TokenBudget
from hatemtl.batches.datamodule import DataModule
from hatemtl.batches.sampling import Sampling, Use
from hatemtl.corpora.base import SPLITS, Posts
from hatemtl.corpora.sample import Sample
from hatemtl.errors import UserError
from hatemtl.heads.masked import MaskedHead
from hatemtl.labels import IGNORED
from hatemtl.tasks import Task

TOKENS = TokenBudget(batch_tokens=160, batch_size=12, window=3, eval_batch_tokens=320, eval_batch_size=40)


def datamodule(seed: int = 0, max_length: int = 128, **tasks: Task) -> DataModule:
    module = DataModule(tasks, batching=BATCHING, seed=seed)
    module.tokenize(minilm(), max_length)
    return module


def test_a_batch_has_the_formats_that_heads_expect() -> None:
    module = datamodule(label=task(Mild(), "label"), target=task(Mild(), "target"), rationale=task(Mild(), "rationale"))
    batch = module.pool[np.array([3, 0])]
    assert (batch.input_ids.dtype, batch.attention_mask.dtype, batch.posts.dtype) == (torch.int64,) * 3
    assert (batch.targets["label"].dtype, batch.targets["label"].shape) == (torch.int64, (2,))
    assert (batch.targets["target"].dtype, batch.targets["target"].shape) == (torch.float32, (2, 2))
    assert (batch.targets["rationale"].dtype, batch.targets["rationale"].shape) == (
        torch.float32,
        batch.input_ids.shape,
    )
    assert all(has.dtype == torch.bool for has in batch.has.values())
    assert (batch.targets["rationale"][batch.attention_mask == 0] == IGNORED).all()


def test_a_batch_says_for_what_it_is_used() -> None:
    batch = datamodule(label=task(Mild(), "label")).pool[Use(np.array([3, 0]), "label", {"label": 0.5}, 0.25)]
    assert (batch.posts.tolist(), batch.only, batch.parts, batch.part) == ([3, 0], "label", {"label": 0.5}, 0.25)


# Tasks and corpora


def test_tasks_on_one_corpus_load_and_hold_it_once() -> None:
    Mild.loads.clear()
    module = datamodule(label=task(Mild(), "label"), target=task(Mild(), "target"), rationale=task(Mild(), "rationale"))
    assert len(Mild.loads) == 1
    assert len(module.pool) == 6


def test_a_corpus_configured_otherwise_is_another() -> None:
    Mild.loads.clear()
    module = datamodule(label=task(Mild(), "label"), target=task(Mild(version=1), "target"))
    assert [corpus.version for corpus in Mild.loads] == [0, 1]
    assert len(module.pool) == 12


@pytest.mark.parametrize("first", ["label", "kind"])
def test_posts_of_another_corpus_do_not_have_the_annotation(first: str) -> None:
    tasks = {"label": task(Mild(), "label"), "kind": task(Foreign(), "kind"), "words": task(Mild(), "rationale")}
    module = datamodule(**{first: tasks[first], **tasks})
    pool, mild = module.pool, np.array([text in Mild.texts for text in module.pool.texts])
    assert pool.has["label"][mild].tolist() == Mild.has.tolist()
    assert not pool.has["label"][~mild].any()
    assert pool.has["kind"].tolist() == (~mild).tolist()
    assert pool.targets["label"][mild].tolist() == [0, 0, 1, 0, 0, 1]
    assert pool.targets["kind"][~mild].tolist() == [2, 1, 2]
    batch = pool[np.arange(len(pool))]
    assert (batch.targets["label"][~torch.from_numpy(mild)] == 0).all()
    assert (batch.targets["words"][~torch.from_numpy(mild)] == IGNORED).all()
    for row in np.flatnonzero(mild):
        assert pool.at_words(row, batch.targets["words"][row].tolist()) == pytest.approx(
            [[0, 1], [IGNORED], [0, 0, 0], [0, 1, 0.5], [1], [0, 0]][Mild.texts.index(pool.texts[row])]
        )


def test_heads_observe_the_annotated_training_posts() -> None:
    module = datamodule(label=task(Mild(), "label"), target=task(Mild(), "target"), kind=task(Foreign(), "kind"))
    assert module.observed("label").tolist() == [0, 1, 0]
    assert module.observed("target").tolist() == [[1, 0], [0, 0], [0.5, 1]]  # a half stays a half
    assert module.observed("kind").tolist() == [2, 1]


def test_of_words_heads_observe_those_that_are_seen_once_each() -> None:
    module = datamodule(rationale=task(Mild(), "rationale"))
    assert module.observed("rationale").tolist() == [0, 1, 0, 0, 0, 0, 1, 0.5]
    cut = datamodule(max_length=3, rationale=task(Mild(), "rationale"))
    assert cut.observed("rationale").tolist() == [0, 0, 0]  # the first word of three posts


def test_label_spaces_and_fingerprints_are_by_task() -> None:
    module = datamodule(label=task(Mild(), "label"), kind=task(Foreign(), "kind"), words=task(Mild(), "rationale"))
    assert {name: space.kind for name, space in module.spaces.items()} == {
        "label": "multiclass",
        "kind": "multiclass",
        "words": "tokens",
    }
    marks = module.fingerprints()
    assert marks["label"] == marks["words"] == Mild().load().fingerprint()
    assert marks["kind"] == Foreign().load().fingerprint() != marks["label"]


# Loaders


def test_training_batches_hold_every_training_post_of_every_corpus_once() -> None:
    module = datamodule(label=task(Mild(), "label"), kind=task(Foreign(), "kind"))
    batches = list(module.train_dataloader())
    assert [len(batch) for batch in batches] == [2, 2, 2]
    assert sorted(torch.cat([batch.posts for batch in batches]).tolist()) == [0, 1, 2, 3, 6, 7]


def test_the_order_of_training_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        module = datamodule(seed=seed, **tasks)
        module.trainer = SimpleNamespace(current_epoch=epoch, max_epochs=3, accumulate_grad_batches=1)
        return [batch.posts.tolist() for batch in module.train_dataloader()]

    tasks = {"label": task(Mild(), "label"), "kind": task(Foreign(), "kind")}
    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert orders == [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({str(one) for one in orders}) > 4


def test_evaluation_goes_over_its_split_alone_from_short_to_long() -> None:
    module = datamodule(label=task(Mild(), "label"), kind=task(Foreign(), "kind"))
    assert [batch.posts.tolist() for batch in module.val_dataloader()] == [[4]]
    posts = torch.cat([batch.posts for batch in module.test_dataloader()])
    assert sorted(posts.tolist()) == [5, 8]
    assert (np.diff(module.pool.lengths[posts]) >= 0).all()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_going_over_the_posts_moves_no_random_draw(split: str) -> None:
    """Lightning makes the iterator before the epoch's seed is set or after it, as a run is new or resumed."""
    module = datamodule(label=task(Mild(), "label"))
    before = torch.get_rng_state()
    for _ in getattr(module, f"{split}_dataloader")():
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_a_split_without_posts_is_named() -> None:
    with pytest.raises(UserError, match="posts in the val split"):
        datamodule(kind=task(Foreign(), "kind")).val_dataloader()


@dataclass(frozen=True, kw_only=True)
class Gappy(Mild):
    """The same posts, one a split, without annotations in some of them."""

    gaps: tuple[str, ...]
    splits: ClassVar[list[str]] = ["train", "train", "train", "val", "val", "test"]

    def load(self) -> Posts:
        posts = super().load()
        gaps = np.isin(posts.splits, self.gaps)
        return replace(posts, columns={k: replace(c, has=c.has & ~gaps) for k, c in posts.columns.items()})


@pytest.mark.parametrize("pattern", [None, "2 2"])
@pytest.mark.parametrize(
    ("gap", "then_test", "said"),
    [
        ("train", False, r"task 'some': .*train split.*'target'.*tasks\.some\.column"),
        ("val", False, r"task 'some': .*val split.*'target'.*tasks\.some\.column"),
        ("test", True, r"task 'some': .*test split.*'target'.*action=train and action=predict"),
        ("test", False, None),
    ],
)
def test_every_task_is_annotated_in_every_split_that_is_used(
    gap: str, then_test: bool, said: str | None, pattern: str | None
) -> None:
    some = replace(task(Gappy(gaps=(gap,)), "target"), mask_pattern=pattern)
    module = DataModule({"all": task(Gappy(gaps=()), "target"), "some": some}, batching=BATCHING, seed=0)
    with nullcontext() if said is None else pytest.raises(UserError, match=said):
        for split in SPLITS[: 2 + then_test]:
            module.check_split(split)


def test_a_task_whose_own_corpus_lacks_a_split_is_refused_though_another_has_it() -> None:
    module = DataModule({"label": task(Mild(), "label"), "kind": task(Foreign(), "kind")}, batching=BATCHING, seed=0)
    with pytest.raises(UserError, match=r"task 'kind': .*no post of the val split is in its corpus"):
        module.check_split("val")


def test_masked_tokens_need_no_annotation() -> None:
    head = partial(MaskedHead, layers=0)
    module = DataModule(
        {"mlm": Task(corpus=Gappy(gaps=("train", "val", "test")), column=None, head=head)}, batching=BATCHING, seed=0
    )
    for split in SPLITS:
        module.check_split(split)


def test_posts_that_are_left_out_are_gone_from_their_corpus_and_its_tasks_alone() -> None:
    module = DataModule({"label": task(Mild(), "label"), "kind": task(Foreign(), "kind")}, batching=BATCHING, seed=0)
    marks = module.fingerprints()
    module.leave_out({Mild(): np.array([0, 4])})
    assert module.fingerprints() == marks  # of the whole corpus, as a test apart from training has them
    module.tokenize(minilm(), 128)
    assert module.pool.texts == [Mild.texts[i] for i in (1, 2, 3, 5)] + Foreign().load().texts
    assert module.pool.has["label"].tolist() == [False, True, True, True, False, False, False]
    assert module.pool.targets["label"][:4].tolist() == [0, 1, 0, 1]
    assert module.pool.targets["kind"][4:].tolist() == [2, 1, 2]


def test_an_unknown_column_is_found_out_before_anything_is_tokenized() -> None:
    with pytest.raises(UserError, match="did you mean 'label'"):
        DataModule({"label": task(Mild(), "lable")}, batching=BATCHING, seed=0)


# Other samplings, workers and a whole fit


def of_sample(batching: Batching = TOKENS, workers: int = 0, size: int = 240, cache: Path | None = None) -> DataModule:
    module = DataModule({"label": task(Sample(size=size), "label")}, batching=batching, seed=0, workers=workers)
    module.tokenize(minilm(), 128, cache)
    return module


def equal(one: Batch, other: Batch) -> bool:
    return one.tokens == other.tokens and all(
        torch.equal(a, b)
        for name in ("input_ids", "attention_mask", "posts", "targets", "has")
        for a, b in [(getattr(one, name), getattr(other, name))]
        for a, b in ([(a[key], b[key]) for key in a] if isinstance(a, dict) else [(a, b)])
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_are_the_same_for_any_number_of_workers(split: str) -> None:
    alone, beside = (list(getattr(of_sample(workers=n), f"{split}_dataloader")()) for n in (0, 2))
    assert len(alone) == len(beside) > 2
    assert all(map(equal, alone, beside))


@pytest.mark.parametrize("workers", [-1, 100_000])
def test_a_number_of_workers_that_is_none_is_refused(workers: int) -> None:
    with pytest.raises(UserError, match=rf"data\.workers={workers}: expected a number"):
        of_sample(workers=workers)


def test_what_takes_most_is_found_beforehand() -> None:
    module = of_sample()
    batches, of = [use.rows for use in module._uses(0, epochs=1)], module.pool.lengths
    places, most = [len(rows) * int(of[rows].max()) for rows in batches], module.largest_batch()
    assert len(most) * of[most].max() == max(places) > min(places)
    assert module.longest_batch() == max(map(len, batches)) > min(map(len, batches))
    few = datamodule(label=task(Mild(), "label"))
    assert few.training_tokens(2) == 2 * few.pool.lengths[:4].sum()


@pytest.mark.parametrize(("asked", "cuts"), [(1, {0: 1, 3: 2}), (2, {0: 1, 3: 2}), (4, {0: 1, 3: 2, 4: 4})])
def test_batches_are_cut_as_they_were_unless_more_is_asked_for(asked: int, cuts: dict[int, int]) -> None:
    before, again = (
        DataModule({"label": task(Mild(), "label")}, batching=BATCHING, seed=0, micro_batches=number)
        for number in (1, asked)
    )
    before.cut(2, 3)
    again.cut_as(before.state_dict())
    assert (again.cuts, again.micro_batches) == (cuts, max(cuts.values()))


def test_a_post_that_no_batch_can_hold_is_found_out_at_once() -> None:
    small = TokenBudget(batch_tokens=8, batch_size=4, window=2, eval_batch_tokens=8, eval_batch_size=4)
    with pytest.raises(UserError, match=r"batching\.batch_tokens=8: .* type batching\.batch_tokens=\d+ or more"):
        of_sample(small)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("batching", [BATCHING, TOKENS])
def test_processes_share_every_post_once_and_step_together(
    split: str, batching: Batching, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, seen, numbers = of_sample(batching), [], set()
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        batches = list(getattr(module, f"{split}_dataloader")())
        numbers.add(len(batches))
        seen += [batch.posts[batch.has["label"]] for batch in batches]
    assert len(numbers) == 1
    assert sorted(torch.cat(seen).tolist()) == module.rows(split).tolist()


class Watch(L.LightningModule):
    """Learns nothing, and writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen, self.validated = torch.nn.Linear(1, 1), [], []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch.posts.tolist()))
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: Batch, index: int) -> None:
        self.validated += [(self.current_epoch, post) for post in batch.posts.tolist()]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    folder: Path,
    data: DataModule,
    epochs: int,
    *,
    before: Path | None = None,
    accumulate: int = 1,
    until: int | None = None,
) -> tuple[Watch, L.Trainer]:
    """Trains so many epochs, or is interrupted after `until` of them."""

    class Keep(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.save_checkpoint(folder / "last.ckpt")
            trainer.should_stop = trainer.current_epoch + 1 == until

    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        logger=False,
        callbacks=[Keep()],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
    )
    module = Watch()
    trainer.fit(module, data, ckpt_path=before, weights_only=True)
    return module, trainer


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("batching", [TOKENS, LengthBuckets(batch_size=7, window=3, eval_batch_size=9)])
def test_a_fit_sees_every_post_once_an_epoch_in_the_steps_that_were_foretold(
    batching: Batching, accumulate: int, tmp_path: Path
) -> None:
    data = of_sample(batching)
    numbers = [len(data._uses(epoch, epochs=4)) for epoch in range(4)]
    assert len(set(numbers)) > 1 or batching is not TOKENS  # else this would say nothing of epochs of other lengths
    module, trainer = fit(tmp_path, data, 4, accumulate=accumulate)
    assert [sum(epoch == one for epoch, _ in module.seen) for one in range(4)] == numbers
    for one in range(4):
        assert sorted(post for epoch, posts in module.seen if epoch == one for post in posts) == data.rows("train").tolist()
    assert sorted(module.validated) == [(epoch, post) for epoch in range(4) for post in data.rows("val")]
    assert trainer.global_step == data.ends(4, accumulate)[-1]
    assert len({str(posts) for _, posts in module.seen}) > 0.9 * len(module.seen)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_fit_goes_on_with_the_batches_of_an_uninterrupted_one(workers: int, tmp_path: Path) -> None:
    whole, _ = fit(tmp_path, of_sample(), 4)
    fit(tmp_path, of_sample(workers=workers), 2)
    rest, trainer = fit(tmp_path, of_sample(workers=workers), 4, before=tmp_path / "last.ckpt")
    assert rest.seen == [(epoch, posts) for epoch, posts in whole.seen if epoch >= 2]
    assert trainer.global_step == of_sample().ends(4, 1)[-1]


def test_an_epoch_is_sampled_as_its_stage_says() -> None:
    few, tasks = Sampling(steps=2), {"label": task(Sample(size=100), "label")}
    module = DataModule(tasks, batching=BATCHING, changes={1: few, 3: Sampling()}, seed=0)
    plain = DataModule(tasks, batching=BATCHING, seed=0)
    module.tokenize(minilm(), 128)
    plain.tokenize(minilm(), 128)
    usual = [[use.rows.tolist() for use in plain._uses(epoch, epochs=4)] for epoch in range(4)]
    found = [[use.rows.tolist() for use in module._uses(epoch, epochs=4)] for epoch in range(4)]
    assert [found[0], found[3]] == [usual[0], usual[3]]
    assert [len(epoch) for epoch in found[1:3]] == [2, 2]
    assert found[1] != found[2]
    first = len(usual[0])
    assert module.ends(4, 1) == [first, first + 2, first + 4, first + 4 + len(usual[3])]


# Several corpora: shares, rare labels, one corpus a batch, one task a step


def of_two(batching: Batching = TOKENS, step: Any = "joint", workers: int = 0, **options: Any) -> DataModule:
    """Made-up posts with a label and a target, and a third as many others with a target alone."""
    large, small = Sample(size=300), Sample(size=100, seed=1)
    tasks = {"label": task(large, "label"), "target": task(large, "target"), "other": task(small, "target")}
    module = DataModule(tasks, batching=batching, sampling=Sampling(step=step, **options), seed=0, workers=workers)
    module.tokenize(minilm(), 128)
    return module


def drawn(module: DataModule, epoch: int = 0, epochs: int = 4) -> list[list[int]]:
    return [rows.tolist() for rows, *_ in module._uses(epoch, epochs=epochs)]


def test_corpora_are_drawn_as_the_sampling_says() -> None:
    module = of_two(temperature=np.inf)
    small = len(module.corpora[module.tasks["other"].corpus])
    firsts = len(module.pool) - small
    train = module.rows("train")
    for epoch in range(3):
        rows = np.array([row for batch in drawn(module, epoch) for row in batch])
        assert len(rows) == len(train)
        assert abs((rows >= firsts).mean() - 0.5) < 1 / len(rows)
        assert set(module.pool.splits[rows]) == {"train"}


def test_a_corpus_without_training_posts_is_not_drawn_from() -> None:
    tasks = {"label": task(Mild(), "label"), "kind": task(Foreign(splits=("test", "test", "test")), "kind")}
    module = DataModule(tasks, batching=BATCHING, sampling=Sampling(temperature=np.inf), seed=0)
    module.tokenize(minilm(), 128)
    assert sorted(row for batch in drawn(module) for row in batch) == [0, 1, 2, 3]


def test_rare_labels_come_as_often_as_others_under_full_balance() -> None:
    tasks = {"label": task(Sample(size=600), "label")}
    module = DataModule(tasks, batching=TOKENS, sampling=Sampling(balance=1), seed=0)
    module.tokenize(minilm(), 128)
    labels = module.pool.targets["label"]
    plain = np.bincount(labels[module.rows("train")])
    balanced = np.bincount(labels[np.concatenate(drawn(module))])
    assert plain.sum() == balanced.sum()
    assert np.ptp(plain) > 20
    assert np.ptp(balanced) <= 2


def test_weights_are_by_the_rarest_label_of_the_corpus_own_tasks() -> None:
    """Of Mild's four training posts: two rude, one fine, one without; target a in two, b in one."""
    tasks = {"label": task(Mild(), "label"), "target": task(Mild(), "target"), "kind": task(Foreign(), "kind")}
    module = DataModule(tasks, batching=BATCHING, sampling=Sampling(balance=1), seed=0)
    module.tokenize(minilm(), 128)
    assert module._weights(Mild(), np.arange(4), 1).tolist() == [2, 1, 4, 4]  # a half of a counts
    assert module._weights(Foreign(), np.array([6, 7]), 1).tolist() == [2, 2]


def test_alternating_batches_are_of_one_corpus() -> None:
    module = of_two(batch="alternating")
    firsts = len(module.pool) - len(module.corpora[module.tasks["other"].corpus])
    batches = drawn(module)
    assert all(len({row >= firsts for row in batch}) == 1 for batch in batches)
    assert sorted(row for batch in batches for row in batch) == module.rows("train").tolist()


@pytest.mark.parametrize("batching", [TOKENS, BATCHING])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("step", ["joint", "per_task"])
def test_a_fit_takes_the_steps_that_were_foretold_of_any_sampling(
    step: str, accumulate: int, batching: Batching, tmp_path: Path
) -> None:
    data = of_two(batching, step, steps=11, temperature=1, final_temperature=5, batch="alternating")
    module, trainer = fit(tmp_path, data, 3, accumulate=accumulate)
    assert trainer.global_step == data.ends(3, accumulate)[-1]
    uses = [data._uses(epoch, epochs=3, accumulate=accumulate) for epoch in range(3)]
    assert module.seen == [(epoch, rows.tolist()) for epoch in range(3) for rows, *_ in uses[epoch]]
    assert data.training_tokens(3) == sum(int(data.pool.lengths[posts].sum()) for _, posts in module.seen)
    if step == "joint":
        assert [len(one) for one in uses] == [11, 11, 11]
    else:
        assert all(len(one) > 11 for one in uses)


def test_losses_stepped_apart_get_batches_of_posts_with_that_task() -> None:
    module = of_two(step="per_task")
    batches = list(module.train_dataloader())
    assert {batch.only for batch in batches} == {"label", "target", "other"}
    assert all(batch.has[batch.only].all() for batch in batches if batch.only)
    for name in module.tasks:
        posts = torch.cat([batch.posts for batch in batches if batch.only == name])
        train = module.rows("train")
        assert sorted(posts.tolist()) == train[module.pool.has[name][train]].tolist()
    assert {batch.only for batch in module.val_dataloader()} == {None}


@pytest.mark.parametrize("options", [{"temperature": 2.0, "balance": 0.5}, {"steps": 9, "batch": "alternating"}], ids=str)
@pytest.mark.parametrize("step", ["joint", pytest.param("per_task", marks=pytest.mark.slow)])
def test_any_sampling_goes_on_where_it_was_with_any_number_of_workers(
    step: str, options: dict[str, Any], tmp_path: Path
) -> None:
    whole, _ = fit(tmp_path, of_two(step=step, **options), 3)
    fit(tmp_path, of_two(step=step, **options), 3, until=1)
    rest, _ = fit(tmp_path, of_two(step=step, workers=2, **options), 3, before=tmp_path / "last.ckpt")
    assert rest.seen == [(epoch, posts) for epoch, posts in whole.seen if epoch >= 1]


@pytest.mark.parametrize("step", ["joint", "per_task"])
def test_processes_share_what_any_sampling_draws(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, seen, numbers = of_two(BATCHING, step, temperature=2, batch="alternating"), [], set()
    whole = [batch.posts for batch in module.train_dataloader()]
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        batches = list(module.train_dataloader())
        numbers.add((len(batches), str([batch.only for batch in batches])))
        seen += [batch.posts[batch.has["target"] | batch.has["other"]] for batch in batches]
    assert len(numbers) == 1
    assert sorted(torch.cat(seen).tolist()) == sorted(torch.cat(whole).tolist())


def test_tokens_from_the_cache_are_those_that_would_be_made(tmp_path: Path) -> None:
    module = of_sample()
    for _ in range(2):
        again = of_sample(cache=tmp_path)
        assert all(map(equal, module.train_dataloader(), again.train_dataloader()))
    assert len(list(tmp_path.iterdir())) == 1


MEMORY = """
import ctypes, gc
from invented import BATCHING, minilm, task
from hatemtl.corpora.sample import Sample
from hatemtl.batches.datamodule import DataModule

def build(size):
    tasks = {name: task(Sample(size=size), name) for name in ("label", "target", "rationale")}
    module = DataModule(tasks, batching=BATCHING, seed=0)
    module.tokenize(minilm(), 128)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the posts hold, not what the allocator keeps of passing work
    resident = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return module, 1024 * int(resident.split()[1])

(small, before), (large, after) = build(1000), build(64000)
print((after - before) / 64000)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_a_post_with_three_tasks_takes_less_than_five_quarters_of_a_kibibyte() -> None:
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])}
    ran = subprocess.run([sys.executable, "-c", MEMORY], env=os.environ | paths, capture_output=True, text=True, check=True)
    assert float(ran.stdout.split()[-1]) < 1.25 * 1024
