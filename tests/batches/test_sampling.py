"""Which posts an epoch has: shares of corpora over epochs, no post far ahead of another, rare labels, pure batches."""

import re
import runpy
import sys
from collections import Counter
from collections.abc import Callable
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT, Outcome

from hatemtl.batches.batching import Batching, LengthBuckets, TokenBudget
from hatemtl.batches.sampling import (
    Epochs,
    Sampling,
    Use,
    apart,
    apportioned,
    in_parts,
    once_over,
    rarity,
    shares,
    spread,
    taken,
)
from hatemtl.errors import UserError
from hatemtl.seeds import derive

INF = float("inf")
BUCKETS = LengthBuckets(batch_size=8, window=5, eval_batch_size=16)
BUDGET = TokenBudget(batch_tokens=400, batch_size=12, window=5, eval_batch_tokens=900, eval_batch_size=40)
BATCHINGS = pytest.mark.parametrize("batching", [BUCKETS, BUDGET], ids=["buckets", "budget"])
SIZES = (1000, 250, 40)


def lengths(n: int) -> np.ndarray:
    """Token counts as posts have them: mean about 30, a long tail."""
    return np.random.default_rng(0).gamma(2, 15, n).astype(int) + 3


def mixed(
    *sizes: int,
    batching: Batching = BUCKETS,
    seed: int = 0,
    epochs: int = 10,
    weights: list[np.ndarray] | None = None,
    **options: Any,
) -> Epochs:
    """Epochs over corpora of these sizes, whose training posts are every second row of the pool."""
    ends = np.cumsum(sizes)
    rows = [2 * np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    return Epochs(
        corpora=rows,
        weights=weights or [np.ones(size) for size in sizes],
        lengths=lengths(2 * int(ends[-1])),
        sampling=Sampling(**options),
        batching=batching,
        seed=seed,
        epochs=epochs,
    )


def numbers(epochs: Epochs, epoch: int) -> list[int]:
    """How many posts of each corpus an epoch has."""
    rows = np.concatenate(epochs.batches(epoch))
    return [int(np.isin(rows, corpus).sum()) for corpus in epochs.corpora]


# Every post once


@BATCHINGS
@pytest.mark.parametrize("sizes", [(1,), (83,), (200, 5), (1, 1, 1)])
@pytest.mark.parametrize("batch", ["mixed", "alternating"])
def test_by_their_sizes_every_post_comes_once_an_epoch(sizes: tuple[int, ...], batch: str, batching: Batching) -> None:
    epochs = mixed(*sizes, batch=batch, batching=batching)
    for epoch in range(4):
        assert sorted(np.concatenate(epochs.batches(epoch)).tolist()) == (2 * np.arange(sum(sizes))).tolist()


@BATCHINGS
@pytest.mark.parametrize("batch", ["mixed", "alternating"])
def test_one_corpus_is_shuffled_and_cut_and_nothing_else(batch: str, batching: Batching) -> None:
    for epoch in range(3):
        rng = np.random.default_rng(derive(7, "order", epoch))
        order = 2 * rng.permutation(300)
        plain = [order[cut] for cut in batching.epoch(lengths(600)[order], rng)]
        found = mixed(300, seed=7, batch=batch, batching=batching).batches(epoch)
        assert [one.tolist() for one in found] == [one.tolist() for one in plain]


@pytest.mark.parametrize("temperature", [1, 2, 5, INF])
def test_one_corpus_has_nothing_to_be_weighed_against(temperature: float) -> None:
    one, other = mixed(100, temperature=temperature), mixed(100)
    assert [b.tolist() for b in one.batches(3)] == [b.tolist() for b in other.batches(3)]


# Shares of corpora


def test_shares_by_hand() -> None:
    sizes = np.array([1600, 400, 100])
    assert shares(sizes, 1.0) == pytest.approx([16 / 21, 4 / 21, 1 / 21])
    assert shares(sizes, 1 / 2) == pytest.approx([40 / 70, 20 / 70, 10 / 70])
    assert shares(sizes, 1 / INF) == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert shares(np.array([300, 0, 300]), 0.0) == pytest.approx([0.5, 0, 0.5])
    assert shares(np.array([10**6, 10]), 200.0) == pytest.approx([1, 0])  # no overflow


@pytest.mark.parametrize(("owed", "total", "given"), [
    ([2.0, 3.0], 5, [2, 3]),
    ([1.9999999, 3.0000001], 5, [2, 3]),
    ([0.6, 2.4], 3, [1, 2]),
    ([0.4, 0.4, 0.2], 1, [1, 0, 0]),
    ([-0.3, -0.7, 2.0], 1, [0, 0, 1]),
    ([0.0, 0.0], 0, [0, 0]),
])  # fmt: skip
def test_whole_numbers_nearest_to_what_is_owed(owed: list[float], total: int, given: list[int]) -> None:
    assert apportioned(np.array(owed), total).tolist() == given


@pytest.mark.parametrize("temperature", [1, 1.4, 2, 5, INF])
@pytest.mark.parametrize("steps", [None, 10])
def test_over_epochs_corpora_come_by_the_formula(temperature: float, steps: int | None) -> None:
    """p_i ∝ N_i^(1/T), to the post, after any number of epochs; without `steps`, as many posts as there are."""
    epochs, came = mixed(*SIZES, temperature=temperature, steps=steps), np.zeros(3)
    expected = np.array(SIZES) ** (1 / temperature)
    for epoch in range(10):
        came += numbers(epochs, epoch)
        posts = (epoch + 1) * (sum(SIZES) if steps is None else steps * 8)
        assert came.sum() == posts
        assert np.abs(came - posts * expected / expected.sum()).max() < 1.5


def test_a_small_corpus_has_its_turn_even_where_an_epoch_is_shorter_than_its_share() -> None:
    epochs = mixed(990, 10, steps=1, epochs=100)  # .08 of its posts an epoch
    assert sum(numbers(epochs, epoch)[1] for epoch in range(100)) in (7, 8, 9)


def test_annealing_is_that_of_stickland_and_murray() -> None:
    annealed = Sampling(temperature=1, final_temperature=5)
    for epochs in (2, 5, 25):
        for e in range(1, epochs + 1):
            assert annealed.exponent(e - 1, epochs) == pytest.approx(1 - 0.8 * (e - 1) / (epochs - 1))
    assert annealed.exponent(0, 1) == 1
    assert Sampling(temperature=2).exponent(3, 5) == 0.5
    assert Sampling(temperature=1, final_temperature=INF).exponent(4, 5) == 0


def test_annealed_epochs_have_their_own_shares() -> None:
    epochs, due = mixed(*SIZES, temperature=1, final_temperature=5, epochs=5), np.zeros(3)
    came = np.zeros(3)
    for epoch, exponent in enumerate((1, 0.8, 0.6, 0.4, 0.2)):
        due += sum(SIZES) * np.array(SIZES) ** exponent / (np.array(SIZES) ** exponent).sum()
        came += numbers(epochs, epoch)
        assert np.abs(came - due).max() < 1.5
    assert numbers(epochs, 0) == list(SIZES)


# No post ahead of another


@BATCHINGS
@pytest.mark.parametrize("options", [
    {}, {"temperature": 2}, {"temperature": INF}, {"final_temperature": 5}, {"steps": 7}, {"steps": 50, "temperature": 3},
    {"steps": 7, "batch": "alternating"},
], ids=str)  # fmt: skip
def test_no_post_of_a_corpus_is_ahead_of_another_by_more_than_one(options: dict[str, Any], batching: Batching) -> None:
    epochs, times = mixed(200, 60, 7, batching=batching, **options), Counter[int]()
    for epoch in range(10):
        times.update(np.concatenate(epochs.batches(epoch)).tolist())
        for corpus in epochs.corpora:
            came = [times[row] for row in corpus]
            assert max(came) - min(came) <= 1


def test_a_corpus_is_gone_over_in_another_order_each_time() -> None:
    halves = [set(taken(np.ones(200), 200 * i, 100, 0).tolist()) for i in range(4)]
    for i, one in enumerate(halves):
        assert len(one) == 100
        assert one | set(taken(np.ones(200), 200 * i + 100, 100, 0).tolist()) == set(range(200))
        for other in halves[:i]:
            assert 30 < len(one & other) < 70


@pytest.mark.parametrize("first", [0, 3, 10, 29])
@pytest.mark.parametrize("number", [1, 10, 47])
def test_what_is_taken_at_once_is_what_is_taken_in_pieces(first: int, number: int) -> None:
    weights = np.array([1.0, 1, 1, 1, 1, 1, 1, 4, 4, 9])
    pieces = np.concatenate([taken(weights, i, 1, 5, "x") for i in range(first, first + number)])
    assert np.sort(pieces).tolist() == taken(weights, first, number, 5, "x").tolist()


def test_a_post_drawn_again_comes_at_even_distances() -> None:
    drawn = np.sort(np.concatenate([np.arange(1000), np.tile(np.arange(5), 9)]))
    order = spread(drawn, np.random.default_rng(0))
    assert sorted(order.tolist()) == drawn.tolist()
    for post in range(5):
        places = np.flatnonzero(order == post)
        assert len(places) == 10
        assert np.diff(places).min() > 0.9 * len(drawn) / 10


def test_a_batch_hardly_ever_holds_a_post_twice() -> None:
    """A corpus of 40 posts that comes ten times an epoch, in windows of 40 posts of like length."""
    epochs = mixed(1000, 40, temperature=INF, epochs=1)
    batches = epochs.batches(0)
    assert numbers(epochs, 0) == [520, 520]
    assert sum(len(batch) - len(set(batch.tolist())) for batch in batches) < 0.02 * 1040


# Rare labels


def test_rarity_by_hand() -> None:
    label = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 0]], bool)  # shares .6 and .2; the last post has none
    target = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], bool)  # .4, .2, 0
    assert rarity([label], 1.0) == pytest.approx([5 / 3, 5 / 3, 5 / 3, 5, 1])
    assert rarity([target], 1.0) == pytest.approx([1, 5, 2.5, 1, 1])  # its rarest label counts
    assert rarity([label, target], 1.0) == pytest.approx([5 / 3, 5, 2.5, 5, 1])
    assert rarity([label], 0.5) == pytest.approx(np.sqrt([5 / 3, 5 / 3, 5 / 3, 5, 1]))
    assert rarity([label, target], 0.0) == pytest.approx([1, 1, 1, 1, 1])


def test_full_balance_shows_every_label_as_often() -> None:
    """Of 90 posts 60 have one label, 27 another, 3 a third: 30 of each a pass, so each of the three comes ten times."""
    labels = np.repeat([0, 1, 2], [60, 27, 3])
    weights = rarity([labels[:, None] == np.arange(3)], 1.0)
    for seed in range(20):
        drawn = once_over(weights, np.random.default_rng(seed))
        assert np.bincount(labels[drawn]).tolist() == pytest.approx([30, 30, 30], abs=1)
        assert set(np.bincount(drawn, minlength=90)[87:]) <= {9, 10, 11}
        assert set(np.bincount(drawn, minlength=90)[:60]) <= {0, 1}


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
def test_posts_come_in_proportion_to_their_weights_or_less_than_once_off(balance: float) -> None:
    rng = np.random.default_rng(0)
    weights = rarity([rng.integers(0, 5, 200)[:, None] < np.arange(1, 6)], balance)
    expected, total = 200 * weights / weights.sum(), np.zeros(200)
    for seed in range(400):
        came = np.bincount(once_over(weights, np.random.default_rng(seed)), minlength=200)
        assert came.sum() == 200
        assert np.abs(came - expected).max() < 1
        total += came
    assert total / 400 == pytest.approx(expected, abs=0.11)  # four standard errors of a coin


def test_balance_moves_the_posts_of_a_corpus_and_not_the_corpora() -> None:
    labels = np.repeat([0, 1], [180, 20])
    weights = [rarity([labels[:, None] == np.arange(2)], 1.0), np.ones(100)]
    epochs = mixed(200, 100, weights=weights)
    for epoch in range(5):
        assert numbers(epochs, epoch) == [200, 100]
        rows = np.concatenate(epochs.batches(epoch))
        assert np.bincount(labels[rows[rows < 400] // 2]).tolist() == pytest.approx([100, 100], abs=1)


# Batches


@BATCHINGS
def test_alternating_batches_are_of_one_corpus_and_come_in_random_order(batching: Batching) -> None:
    epochs, runs = mixed(*SIZES, batch="alternating", temperature=2, batching=batching), []
    for epoch in range(5):
        of = []
        for batch in epochs.batches(epoch):
            (corpus,) = {int(np.searchsorted([rows[-1] for rows in epochs.corpora], row)) for row in batch}
            of.append(corpus)
        share = np.bincount(of) / len(of)
        runs.append(np.mean([a == b for a, b in pairwise(of)]) - (share**2).sum())
    assert abs(np.mean(runs)) < 0.06  # the next batch is of the same corpus as often as chance has it


def test_mixed_batches_hold_several_corpora() -> None:
    epochs = mixed(300, 300, epochs=1)
    both = [len({int(row >= 600) for row in batch}) == 2 for batch in epochs.batches(0)]
    assert np.mean(both) > 0.9


@BATCHINGS
@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("batch", ["mixed", "alternating"])
def test_an_epoch_of_fixed_steps_has_so_many_full_batches(steps: int, batch: str, batching: Batching) -> None:
    epochs = mixed(200, 60, 7, steps=steps, temperature=2, batch=batch, batching=batching)
    for epoch in range(4):
        batches = epochs.batches(epoch)
        assert len(batches) == steps
        assert all(len(rows) <= batching.batch_size for rows in batches)
        if steps == 100:
            assert np.mean([len(rows) for rows in batches]) > 0.8 * np.mean([len(rows) for rows in mixed(267).batches(0)])


@BATCHINGS
@pytest.mark.parametrize("options", [{}, {"temperature": INF, "steps": 9}, {"batch": "alternating"}], ids=str)
def test_an_epoch_is_a_function_of_seed_and_epoch_alone(options: dict[str, Any], batching: Batching) -> None:
    """Whatever epochs were asked for before, as a resumed run has not asked for the first."""

    def order(epochs: Epochs, epoch: int) -> str:
        return str([batch.tolist() for batch in epochs.batches(epoch)])

    def fresh(seed: int = 0) -> Epochs:
        return mixed(100, 20, seed=seed, batching=batching, **options)

    whole, resumed = fresh(), fresh()
    orders = [order(whole, epoch) for epoch in range(5)]
    assert [order(resumed, epoch) for epoch in (3, 4, 1, 3, 0, 2)] == [orders[epoch] for epoch in (3, 4, 1, 3, 0, 2)]
    assert len({*orders, *(order(fresh(1), epoch) for epoch in range(5))}) == 10


def test_which_posts_a_short_epoch_draws_is_the_seeds() -> None:
    drawn = [{*np.concatenate(mixed(1000, steps=3, seed=seed).batches(0)).tolist()} for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1] and all(len(drawn[0] & other) < 12 for other in drawn[2:])  # of 24, by chance some


# Wrong input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "sampling.temperature=0: expected a number above 0"),
        ({"temperature": -1.0}, "sampling.temperature=-1.0: expected a number above 0"),
        ({"temperature": float("nan")}, "sampling.temperature=nan"),
        ({"final_temperature": 0}, "sampling.final_temperature=0"),
        ({"steps": 0}, "sampling.steps=0: expected at least 1 batch"),
        ({"balance": 1.1}, "sampling.balance=1.1: expected 0"),
        ({"balance": -0.1}, "sampling.balance=-0.1"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        Sampling(**options)


# One task a step, several batches a step


BATCHES = [np.arange(8 * i, 8 * i + 8) for i in range(20)]
HAS = {
    "all": np.ones(160, dtype=bool),
    "even": np.arange(160) % 2 == 0,
    "early": np.arange(160) < 44,  # half of the sixth batch
    "none": np.zeros(160, dtype=bool),
}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_batch_is_used_once_for_each_task_with_the_posts_that_it_annotates(accumulate: int) -> None:
    uses = apart(BATCHES, HAS, accumulate, np.random.default_rng(0))
    assert Counter(task for _, task in uses) == {"all": 20, "even": 20, "early": 6}
    for task, has in HAS.items():
        rows = [rows.tolist() for rows, only in uses if only == task]
        assert sorted(rows) == [mine for batch in BATCHES if (mine := batch[has[batch]].tolist())]


def test_tasks_take_turns_at_random() -> None:
    orders = []
    for seed in range(200):
        order = [task for _, task in apart(BATCHES, HAS, 1, np.random.default_rng(seed))]
        orders.append([task == "even" for task in order])
    assert np.mean(orders, axis=0) == pytest.approx(np.full(46, 20 / 46), abs=0.15)
    assert len({str(order) for order in orders}) == 200


def test_accumulated_batches_are_of_one_task_but_for_the_rests_at_the_end() -> None:
    tasks = [task for _, task in apart(BATCHES, HAS, 3, np.random.default_rng(0))]
    steps = [set(tasks[i : i + 3]) for i in range(0, len(tasks), 3)]
    assert all(len(step) == 1 for step in steps[: 6 + 6 + 2])
    assert [task for task, _ in groupby(tasks[42:])] == ["all", "even"]


@pytest.mark.slow
def test_one_command_compares_the_ways_to_step_and_to_mix(
    cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four runs, each with a save_path of its own, and their table."""
    monkeypatch.chdir(tmp_path)
    corpora = [
        *("tasks=[label,target]", "corpus@tasks.label.corpus=sample", "corpus@tasks.target.corpus=sample"),
        *("tasks.label.corpus.size=300", "tasks.target.corpus.size=100", "tasks.target.corpus.seed=1"),
    ]
    ways = ["sampling.step=joint,per_task", "sampling.batch=mixed,alternating"]
    done = cli("-m", *ways, *corpora, "encoder=tiny", "optimization.epochs=1", "action=[train,test]")
    assert done.code == 0, done.err
    runs = [path.parent for path in (tmp_path / "adapters").glob("*/*/results.csv")]
    settings = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs]
    found = {(config["sampling"]["step"], config["sampling"]["batch"]) for config in settings}
    assert found == {(step, batch) for step in ("joint", "per_task") for batch in ("mixed", "alternating")}
    monkeypatch.setattr(sys, "argv", ["table.py", "adapters/label+target-*/*", "--metric", "*macro_f1"])
    monkeypatch.syspath_prepend(str(ROOT / "analysis"))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "analysis" / "table.py"), run_name="__main__")
    assert not ended.value.code


@pytest.mark.parametrize("accumulate", [2, 3, 7])
def test_the_parts_of_a_step_are_shares_of_its_annotated_posts(accumulate: int) -> None:
    uses = [Use(rows) for rows in BATCHES]
    parted = [*in_parts(uses, uses, HAS, accumulate)]
    assert [use.rows.tolist() for use in parted] == [use.rows.tolist() for use in uses]
    for i in range(0, len(parted), accumulate):
        step = parted[i : i + accumulate]  # the last may be short
        for task, has in HAS.items():
            counts = np.array([has[use.rows].sum() for use in step])
            found = [use.parts[task] for use in step if use.parts is not None]
            assert found == pytest.approx(counts / max(counts.sum(), 1))
        sizes = np.array([len(use.rows) for use in step])
        assert [use.part for use in step] == pytest.approx(sizes / sizes.sum())


def test_the_parts_of_steps_apart_are_of_the_one_task() -> None:
    uses = [Use(*use) for use in apart(BATCHES, HAS, 2, np.random.default_rng(0))]
    parted = [*in_parts(uses, uses, HAS, 2)]
    for use in parted:
        assert use.parts is not None
        assert {task for task, part in use.parts.items() if part} <= {use.only}
    for i in range(0, len(parted), 2):
        for only in {use.only for use in parted[i : i + 2]}:
            assert sum(use.part for use in parted[i : i + 2] if use.only == only) == pytest.approx(1)
