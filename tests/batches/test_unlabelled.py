"""Unlabelled posts join batches of training, and nothing else."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from invented import BATCHING, Foreign, Mild, minilm, task
from objective.regularised import Linear, batch

from hatemtl.batches.datamodule import DataModule
from hatemtl.batches.sampling import Use
from hatemtl.batches.unlabelled import Unlabelled
from hatemtl.corpora.sample import Sample
from hatemtl.errors import UserError
from hatemtl.network.module import MultitaskModule
from hatemtl.objective.regularisers.smart import SMART
from hatemtl.objective.stages import Stage


def module(unlabelled: Unlabelled | None, seed: int = 0, **options: Any) -> DataModule:
    made = DataModule({"target": task(Mild(), "target")}, batching=BATCHING, seed=seed, unlabelled=unlabelled, **options)
    made.tokenize(minilm(), 64)
    return made


MORE = Unlabelled(corpus=Sample(size=100), posts=3)  # type: ignore[arg-type]


def test_batches_are_those_without_with_posts_of_no_task_behind() -> None:
    plain, joined = module(None), module(MORE)
    seen: list[int] = []
    for epoch in (0, 1):
        mine, theirs = joined._uses(epoch, epochs=2), plain._uses(epoch, epochs=2)
        assert len(mine) == len(theirs)
        for with_more, without in zip(mine, theirs, strict=True):
            assert with_more.rows[:-3].tolist() == without.rows.tolist()
            assert (with_more.rows[-3:] >= joined.pool.labelled).all()
            made = joined.pool[with_more.rows]
            assert made.has["target"][-3:].tolist() == [False] * 3
            assert made.unlabelled is not None
            assert made.unlabelled.tolist() == [False] * len(without.rows) + [True] * 3
            assert made.some(1, len(made)).unlabelled.tolist() == made.unlabelled.tolist()[1:]  # type: ignore[union-attr]
            seen += with_more.rows[-3:].tolist()
    assert len({*seen}) > len(seen) / 2, "another epoch draws others"
    assert plain.pool[np.arange(2)].unlabelled is None


def test_no_post_for_validation_or_tests_is_among_them_nor_they_among_those() -> None:
    joined, sample = module(MORE), Sample(size=100).load()
    ids = {joined.pool.ids[row] for row in range(joined.pool.labelled, len(joined.pool))}
    assert ids == {post for post, split in zip(sample.ids, sample.splits, strict=True) if split == "train"}
    for split in ("train", "val", "test"):
        assert (joined.rows(split) < joined.pool.labelled).all()  # type: ignore[arg-type]
    assert "unlabelled" in joined.readers().values(), "leaks are told of them"
    assert joined.fingerprints().keys() == {"target"}


def test_they_are_a_function_of_seed_and_epoch_alone() -> None:
    def rows(seed: int, epoch: int) -> list[list[int]]:
        return [use.rows.tolist() for use in module(MORE, seed)._uses(epoch, epochs=3)]

    assert rows(1, 2) == rows(1, 2)
    assert len({str(rows(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_they_are_about_as_long_as_the_posts_that_they_join() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 60, 600)
    uses = [Use(rows) for rows in np.array_split(np.argsort(lengths[:200]), 20)]
    joined = Unlabelled(corpus=Sample(), posts=20).joined(
        [uses[i] for i in rng.permutation(20)], np.arange(200, 600), lengths, 0, 0
    )
    wider = sum(lengths[use.rows].max() for use in joined) / sum(lengths[use.rows[:-20]].max() for use in joined)
    assert wider < 1.1


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="all of its posts are there already, as those of target"):
        module(Unlabelled(corpus=Mild(), posts=3))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"unlabelled\.posts=0"):
        Unlabelled(corpus=Sample(), posts=0)
    with pytest.raises(UserError, match="no training posts"):
        module(Unlabelled(corpus=Foreign(splits=("test",) * 3), posts=3))  # type: ignore[arg-type]


def test_smart_has_a_say_on_them_as_on_annotated_posts() -> None:
    given, forward = {"weight": 1.0, "noise": 0.1, "lr": 0.2, "epsilon": 0.2}, Linear()
    posts = batch()  # the last of which has no annotation

    def term(unlabelled: torch.Tensor | None, has: torch.Tensor) -> float:
        posts.unlabelled, posts.has = unlabelled, {"label": has}
        clean = {name: said.detach() for name, said in forward(posts).items()}
        shift = 0.1 * torch.ones_like(forward.embed(posts))
        return float(SMART(**given).divergence(forward, posts, clean, shift).detach())

    all_but_last, last = torch.arange(5) < 4, torch.arange(5) == 4
    assert term(last, all_but_last) == pytest.approx(term(None, torch.ones(5, dtype=torch.bool)))
    assert term(None, all_but_last) != pytest.approx(term(last, all_but_last))


def test_they_are_left_out_of_a_stage_in_which_no_regulariser_reads_them() -> None:
    """Each of its own posts stays as it was; a batch of nothing but unlabelled posts stays, for one has to be stepped."""
    joined, plain = module(MORE), module(None)
    with_more, without = joined._uses(0, epochs=1)[0].rows, plain._uses(0, epochs=1)[0].rows
    for reads in (True, False):
        joined.trainer = SimpleNamespace(lightning_module=SimpleNamespace(reads_unlabelled=reads))  # type: ignore[assignment]
        given = joined.on_before_batch_transfer(joined.pool[with_more], 0)
        assert len(given) == len(without) + 3 * reads
        assert given.posts[: len(without)].tolist() == without.tolist()
        assert given.input_ids.shape[0] == given.attention_mask.shape[0] == len(given.has["target"]) == len(given)
    alone = joined.pool[with_more[-3:]]
    assert alone.labelled() is alone
    assert plain.on_before_batch_transfer(plain.pool[without], 0).posts.tolist() == without.tolist()


def test_the_stage_of_the_step_that_comes_says_whether_they_are_read() -> None:
    read, idle = SimpleNamespace(of_any_post=True, weight=1.0), SimpleNamespace(of_any_post=True, weight=0.0)
    other = SimpleNamespace(of_any_post=False, weight=1.0)
    stages = [Stage(regulariser=["r_drop"]), Stage(), Stage(regulariser=["vat", "smart"])]
    network: Any = SimpleNamespace(stages=stages, plan=SimpleNamespace(at=lambda step: step))
    network._acting = lambda stage: MultitaskModule._acting(network, stage)
    for vat, said in ((read, [False, True, True]), (idle, [False, False, False])):
        network.regularisers = {"vat": vat, "r_drop": other}
        for step, reads in enumerate(said):
            network.trainer = SimpleNamespace(global_step=step)
            assert MultitaskModule.reads_unlabelled.fget(network) is reads  # type: ignore[attr-defined]
