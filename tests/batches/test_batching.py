import numpy as np
import pytest

from hatemtl.batches.batch import padded
from hatemtl.batches.batching import MOST, SMALL, WASTE, Batching, LengthBuckets, TokenBudget, share
from hatemtl.errors import UserError


def budget(
    batch_tokens: int = 400, batch_size: int = 12, window: int = 10, eval_batch_tokens: int = 900, eval_batch_size: int = 40
) -> TokenBudget:
    return TokenBudget(
        batch_tokens=batch_tokens,
        batch_size=batch_size,
        window=window,
        eval_batch_tokens=eval_batch_tokens,
        eval_batch_size=eval_batch_size,
    )


def buckets(batch_size: int = 8, window: int = 10, eval_batch_size: int = 16) -> LengthBuckets:
    return LengthBuckets(batch_size=batch_size, window=window, eval_batch_size=eval_batch_size)


def lengths(n: int, seed: int = 0) -> np.ndarray:
    """Token counts as posts have them: mean about 30, a long tail."""
    return np.random.default_rng(seed).gamma(2, 15, n).astype(int) + 3


def epoch_of(batching: Batching, of: np.ndarray, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of shuffled posts, as positions in `of`."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(of))
    return [order[batch] for batch in batching.epoch(of[order], rng)]


def padding(batches: list[np.ndarray], of: np.ndarray) -> float:
    """The share of a batch's places that hold no token."""
    places = sum(len(batch) * of[batch].max() for batch in batches)
    return 1 - of.sum() / places


@pytest.mark.parametrize("n", [1, 7, 8, 9, 79, 80, 81, 500])
@pytest.mark.parametrize("window", [1, 3, 10, 1000])
def test_every_post_comes_once_an_epoch(n: int, window: int) -> None:
    for epoch in range(3):
        batches = epoch_of(buckets(window=window), lengths(n), 0, epoch)
        assert sorted(np.concatenate(batches).tolist()) == list(range(n))


@pytest.mark.parametrize("n", [1, 15, 16, 17, 500])
def test_every_post_is_evaluated_once(n: int) -> None:
    assert sorted(np.concatenate(buckets().in_order(lengths(n))).tolist()) == list(range(n))


@pytest.mark.parametrize("window", [1, 3, 1000])
def test_batches_are_of_the_given_size_but_for_one(window: int) -> None:
    batches = epoch_of(buckets(window=window), lengths(101), 0, 0)
    assert sorted(map(len, batches)) == [5] + 12 * [8]


def test_an_epoch_is_a_function_of_its_draws_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in epoch_of(buckets(), lengths(200), seed, epoch)]

    first = order(0, 0)
    np.random.default_rng().random(5)
    np.random.seed(1)
    assert order(0, 0) == first
    assert order(0, 1) != first
    assert order(1, 0) != first
    assert order(1, 0) != order(0, 1)


def test_other_epochs_put_other_posts_together() -> None:
    """Not merely the same batches in another order."""
    together = [{frozenset(b.tolist()) for b in epoch_of(buckets(), lengths(500), 0, epoch)} for epoch in range(2)]
    assert len(together[0] & together[1]) < 5


def test_batches_of_a_window_are_of_like_length_and_come_in_no_order_of_length() -> None:
    n = lengths(2000)
    batches = epoch_of(buckets(window=50), n, 0, 0)
    spread = np.mean([np.ptp(n[batch]) for batch in batches])
    assert spread < 0.1 * np.mean([np.ptp(n[batch]) for batch in epoch_of(buckets(window=1), n, 0, 0)])
    in_one_window = epoch_of(buckets(window=1000), n, 0, 0)
    means = [n[batch].mean() for batch in in_one_window]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


def test_a_window_of_one_is_plain_shuffling() -> None:
    """Which posts stand together does not depend on how long they are."""
    n = lengths(2000)
    batches = epoch_of(buckets(window=1), n, 3, 0)
    same = epoch_of(buckets(window=1), np.ones(2000, dtype=int), 3, 0)
    assert [set(batch.tolist()) for batch in batches] == [set(batch.tolist()) for batch in same]
    means = np.array([n[batch].mean() for batch in batches])
    assert means.std() == pytest.approx(n.std() / np.sqrt(8), rel=0.15)  # as of draws at random


def test_a_wider_window_pads_less() -> None:
    n = lengths(3000)
    shares = [padding(epoch_of(buckets(batch_size=32, window=window), n, 0, 0), n) for window in (1, 4, 50)]
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


@pytest.mark.parametrize("n", [1, 7, 500, 3000])
def test_an_evaluation_batch_is_full_or_small_or_would_be_padded_too_much(n: int) -> None:
    of = lengths(n)
    batches = buckets(eval_batch_size=64).in_order(of)
    assert sorted(np.concatenate(batches).tolist()) == list(range(n))
    for before, batch in zip([np.zeros(0, int), *batches], batches, strict=False):
        places = len(batch) * of[batch].max()
        assert len(batch) <= 64
        assert places - of[batch].sum() <= WASTE * places or places <= SMALL
        if len(before) and len(batch) < 64:  # one more post would have been too much
            wider = np.append(batch, before[-1])
            places = len(wider) * of[wider].max()
            assert places - of[wider].sum() > WASTE * places and places > SMALL
    assert padding(batches, of) <= WASTE or n < 3000  # a few small ones weigh nothing there


def test_of_long_posts_an_evaluation_batch_holds_fewer() -> None:
    for length, expected in ((MOST // 16, 16), (MOST, 1), (MOST + 1, 1), (MOST // 200, 64)):
        batches = buckets(eval_batch_size=64).in_order(np.full(128, length))
        assert {len(batch) for batch in batches} == {expected}


@pytest.mark.parametrize("batching", [buckets(), budget()], ids=["buckets", "budget"])
def test_posts_of_one_length_keep_their_order_in_evaluation(batching: Batching) -> None:
    of = np.arange(400) % 3 + 4
    assert np.concatenate(batching.in_order(of)).tolist() == sorted(range(400), key=of.__getitem__)


@pytest.mark.parametrize("name", ["batch_size", "window", "eval_batch_size"])
def test_a_size_below_one_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"batching\.{name}=0.*at least 1"):
        buckets(**{name: 0})


# A budget of tokens


@pytest.mark.parametrize("n", [1, 2, 80, 500, 3000])
@pytest.mark.parametrize("window", [1, 10, 1000])
def test_within_a_budget_every_post_comes_once_an_epoch_and_once_in_evaluation(n: int, window: int) -> None:
    for batches in (
        *(epoch_of(budget(window=window), lengths(n), 0, epoch) for epoch in range(3)),
        budget().in_order(lengths(n)),
    ):
        assert sorted(np.concatenate(batches).tolist()) == list(range(n))


@pytest.mark.parametrize("window", [1, 10, 1000])
def test_no_batch_exceeds_its_budget_of_tokens_or_posts(window: int) -> None:
    n, batching = lengths(3000), budget(window=window)
    for batches, tokens, posts in ((epoch_of(batching, n, 0, 0), 400, 12), (batching.in_order(n), 900, 40)):
        places = [len(batch) * int(padded(n[batch]).max()) for batch in batches]
        assert max(places) <= tokens
        assert max(map(len, batches)) == posts


def test_a_budget_is_used_up() -> None:
    """But for the last batch of a window, a batch has no room for another post as long as its longest."""
    n = lengths(3000)
    batches = epoch_of(budget(window=1000), n, 0, 0)
    widths = [int(padded(n[batch]).max()) for batch in batches]
    rooms = [min(12, 400 // width) - len(batch) for batch, width in zip(batches, widths, strict=True)]
    places = np.array([len(batch) * width for batch, width in zip(batches, widths, strict=True)])
    full = np.array([len(batch) == 12 for batch in batches])
    assert np.mean(places[~full]) > 0.85 * 400
    assert np.mean(np.array(rooms) > 1) < 0.02


def test_within_a_budget_an_epoch_is_a_function_of_its_draws_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in epoch_of(budget(), lengths(400), seed, epoch)]

    assert order(0, 0) == order(0, 0)
    assert len({str(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_evaluation_within_a_budget_goes_from_short_to_long() -> None:
    n = lengths(700)
    assert (np.diff(n[np.concatenate(budget().in_order(n))]) >= 0).all()


@pytest.mark.parametrize("name", ["batch_tokens", "eval_batch_tokens"])
def test_a_budget_below_the_longest_post_is_refused_and_the_least_one_named(name: str) -> None:
    n, batching = np.array([3, 41, 8]), budget(**{name: 47})
    for make in (lambda: epoch_of(batching, n, 0, 0), lambda: batching.in_order(n)):
        with pytest.raises(UserError, match=rf"batching\.{name}=47: .* type batching\.{name}=48 or more"):
            make()
    assert len(np.concatenate(epoch_of(budget(**{name: 48}), n, 0, 0))) == 3


@pytest.mark.parametrize("name", ["batch_tokens", "batch_size", "window", "eval_batch_tokens", "eval_batch_size"])
@pytest.mark.parametrize("value", [0, -3])
def test_a_budget_that_is_no_number_of_anything_is_refused(name: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"batching\.{name}={value}: .*at least 1"):
        budget(**{name: value})


# No bias

BATCHINGS = pytest.mark.parametrize("batching", [buckets(), buckets(window=1), budget()], ids=["buckets", "plain", "budget"])
CHI_SQUARE_999 = 37.7  # with 15 degrees of freedom, exceeded once in a thousand


@BATCHINGS
def test_a_post_stands_anywhere_in_an_epoch(batching: Batching) -> None:
    """Sixteenths of the epoch in which a short, a middling and a long post come, over 800 epochs: chi-square of uniform."""
    n = lengths(300)
    for post in np.argsort(n)[[0, 150, 299]]:
        found = np.zeros(16)
        for epoch in range(800):
            batches = epoch_of(batching, n, 7, epoch)
            at = next(i for i, batch in enumerate(batches) if post in batch)
            # anywhere within its step, for the number of batches is no multiple of sixteen
            found[int(16 * (at + np.random.default_rng(epoch).random()) / len(batches))] += 1
        assert ((found - 50) ** 2 / 50).sum() < CHI_SQUARE_999


@BATCHINGS
def test_when_a_post_comes_has_nothing_to_do_with_its_length(batching: Batching) -> None:
    n, r = lengths(2000), []
    for epoch in range(30):
        batches = epoch_of(batching, n, 0, epoch)
        when = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
        r.append(np.corrcoef(when, n[np.concatenate(batches)])[0, 1])
    assert abs(np.mean(r)) < 0.03
    assert np.abs(r).max() < 0.25


@BATCHINGS
def test_a_post_meets_other_neighbours_in_every_epoch(batching: Batching) -> None:
    n = lengths(2000)
    met: list[set[tuple[int, int]]] = []
    for epoch in range(4):
        pairs = ((int(a), int(b)) for batch in epoch_of(batching, n, 0, epoch) for a in batch for b in batch if a < b)
        met.append(set(pairs))
    for one in range(4):
        for two in range(one):
            assert len(met[one] & met[two]) < 0.15 * len(met[one])


def test_the_smaller_batch_is_not_always_that_of_the_longest_posts() -> None:
    n = np.arange(1, 104)  # 12 batches of 8 and one of 7
    smaller = [n[min(epoch_of(buckets(window=100), n, 0, epoch), key=len)].mean() for epoch in range(400)]
    assert np.mean(smaller) == pytest.approx(n.mean(), abs=5)
    assert len({round(one) for one in smaller}) == 13


# Several processes


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@BATCHINGS
def test_processes_share_each_batch_and_all_step_together(batching: Batching, world: int) -> None:
    n = lengths(203)
    for batch in epoch_of(batching, n, 0, 0):
        shares = [share(batch, rank, world) for rank in range(world)]
        assert all(len(mine) for mine in shares)
        counted = np.concatenate([mine[mine >= 0] for mine in shares])
        assert sorted(counted.tolist()) == sorted(batch.tolist())
        assert np.ptp([(mine >= 0).sum() for mine in shares]) <= 1
        assert all(~mine[mine < 0] in batch for mine in shares if (mine < 0).any())


def test_processes_get_posts_of_like_length() -> None:
    n = lengths(2000)
    widest = np.array(
        [[n[share(batch, rank, 2)].max() for rank in range(2)] for batch in epoch_of(buckets(batch_size=32), n, 0, 0)[:-1]]
    )
    assert np.abs(np.diff(widest, axis=1)).mean() < 0.05 * widest.mean()


def test_one_process_alone_gets_the_batch_itself() -> None:
    batch = np.array([4, 2, 9])
    np.testing.assert_array_equal(share(batch, 0, 1), batch)
