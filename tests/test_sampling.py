import numpy as np
import pytest

from hatemtl.errors import UserError
from hatemtl.sampling import EpochBatches, LengthBuckets


def buckets(batch_size: int = 8, window: int = 10, eval_batch_size: int = 16) -> LengthBuckets:
    return LengthBuckets(batch_size=batch_size, window=window, eval_batch_size=eval_batch_size)


def lengths(n: int, seed: int = 0) -> np.ndarray:
    """Token counts as posts have them: mean about 30, a long tail."""
    return np.random.default_rng(seed).gamma(2, 15, n).astype(int) + 3


def padding(batches: list[np.ndarray], of: np.ndarray) -> float:
    """The share of a batch's places that hold no token."""
    places = sum(len(batch) * of[batch].max() for batch in batches)
    return 1 - of.sum() / places


@pytest.mark.parametrize("n", [1, 7, 8, 9, 79, 80, 81, 500])
@pytest.mark.parametrize("window", [1, 3, 10, 1000])
def test_every_post_comes_once_an_epoch(n: int, window: int) -> None:
    for epoch in range(3):
        batches = buckets(window=window).epoch(lengths(n), seed=0, epoch=epoch)
        assert sorted(np.concatenate(batches).tolist()) == list(range(n))


@pytest.mark.parametrize("n", [1, 15, 16, 17, 500])
def test_every_post_is_evaluated_once(n: int) -> None:
    assert sorted(np.concatenate(buckets().in_order(lengths(n))).tolist()) == list(range(n))


@pytest.mark.parametrize("window", [1, 3, 1000])
def test_batches_are_of_the_given_size_but_for_one(window: int) -> None:
    batches = buckets(window=window).epoch(lengths(101), seed=0, epoch=0)
    assert sorted(map(len, batches)) == [5] + 12 * [8]
    assert [len(batch) for batch in buckets().in_order(lengths(101))] == 6 * [16] + [5]


def test_an_epoch_is_a_function_of_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in buckets().epoch(lengths(200), seed, epoch)]

    first = order(0, 0)
    np.random.default_rng().random(5)
    np.random.seed(1)
    assert order(0, 0) == first
    assert order(0, 1) != first
    assert order(1, 0) != first
    assert order(1, 0) != order(0, 1)


def test_other_epochs_put_other_posts_together() -> None:
    """Not merely the same batches in another order."""
    together = [{frozenset(b.tolist()) for b in buckets().epoch(lengths(500), 0, epoch)} for epoch in range(2)]
    assert len(together[0] & together[1]) < 5


def test_batches_of_a_window_are_of_like_length_and_come_in_no_order_of_length() -> None:
    n = lengths(2000)
    batches = buckets(window=50).epoch(n, seed=0, epoch=0)
    spread = np.mean([np.ptp(n[batch]) for batch in batches])
    assert spread < 0.1 * np.mean([np.ptp(n[batch]) for batch in buckets(window=1).epoch(n, 0, 0)])
    in_one_window = buckets(window=1000).epoch(n, seed=0, epoch=0)
    means = [n[batch].mean() for batch in in_one_window]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


def test_a_window_of_one_is_plain_shuffling() -> None:
    """Which posts stand together does not depend on how long they are."""
    n = lengths(2000)
    batches = buckets(window=1).epoch(n, seed=3, epoch=0)
    same = buckets(window=1).epoch(np.ones(2000, dtype=int), seed=3, epoch=0)
    assert [set(batch.tolist()) for batch in batches] == [set(batch.tolist()) for batch in same]
    means = np.array([n[batch].mean() for batch in batches])
    assert means.std() == pytest.approx(n.std() / np.sqrt(8), rel=0.15)  # as of draws at random


def test_a_wider_window_pads_less() -> None:
    n = lengths(3000)
    shares = [padding(buckets(batch_size=32, window=window).epoch(n, 0, 0), n) for window in (1, 4, 50)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.5
    assert shares[2] < 0.1


def test_evaluation_goes_from_short_to_long_whatever_the_training_batches() -> None:
    n = lengths(300)
    batches = buckets().in_order(n)
    in_order = n[np.concatenate(batches)]
    assert (np.diff(in_order) >= 0).all()
    for one, other in zip(batches, buckets(batch_size=3, window=7).in_order(n), strict=True):
        np.testing.assert_array_equal(one, other)


def test_posts_of_one_length_keep_their_order_in_evaluation() -> None:
    assert np.concatenate(buckets().in_order(np.full(40, 5))).tolist() == list(range(40))


@pytest.mark.parametrize("name", ["batch_size", "window", "eval_batch_size"])
def test_a_size_below_one_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"sampling\.{name}=0.*at least 1"):
        buckets(**{name: 0})


@pytest.mark.parametrize("n", [1, 8, 9, 83])
def test_the_sampler_gives_pool_rows_and_knows_how_many_batches_come(n: int) -> None:
    rows = 1000 + 2 * np.arange(n)
    sampler = EpochBatches(buckets(), rows, lengths(n), seed=0)
    batches = list(sampler)
    assert len(sampler) == len(batches)
    assert sorted(np.concatenate(batches).tolist()) == rows.tolist()


def test_the_sampler_changes_its_order_when_the_epoch_is_set_and_only_then() -> None:
    def order() -> list[int]:
        return np.concatenate(list(sampler)).tolist()

    sampler = EpochBatches(buckets(), np.arange(100), lengths(100), seed=0)
    first = order()
    assert order() == first
    sampler.set_epoch(1)
    second = order()
    assert second != first
    sampler.set_epoch(0)
    assert order() == first


def test_the_epoch_counts_that_is_set_when_the_first_batch_is_asked_for() -> None:
    sampler = EpochBatches(buckets(), np.arange(100), lengths(100), seed=0)
    early = iter(sampler)
    sampler.set_epoch(3)
    for one, other in zip(early, sampler, strict=True):
        np.testing.assert_array_equal(one, other)
