import numpy as np

from hatemtl.corpora.splitting import divide, nested

KEYS = [f"post {i}" for i in range(1000)]
STRATA = np.arange(1000) % 10 // 7  # seven in ten of one label, three of the other


def test_shares_are_met_in_every_stratum() -> None:
    splits = divide(KEYS, (0.8, 0.1, 0.1), 0, STRATA)
    for stratum, size in ((0, 700), (1, 300)):
        counts = [int(((splits == split) & (stratum == STRATA)).sum()) for split in ("train", "val", "test")]
        assert np.allclose(counts, [0.8 * size, 0.1 * size, 0.1 * size], atol=1)


def test_equal_keys_stand_in_one_split() -> None:
    keys = [f"group {i % 37}" for i in range(1000)]
    splits = divide(keys, (0.6, 0.2, 0.2), 0)
    assert all(len({split for key, split in zip(keys, splits, strict=True) if key == group}) == 1 for group in set(keys))
    assert abs((splits == "train").mean() - 0.6) < 0.05


def test_a_split_depends_on_seed_and_not_on_the_order_of_posts() -> None:
    splits, again = divide(KEYS, (0.8, 0.1, 0.1), 0), divide(KEYS[::-1], (0.8, 0.1, 0.1), 0)
    assert (splits == again[::-1]).all()
    assert (splits != divide(KEYS, (0.8, 0.1, 0.1), 1)).any()


def test_nothing_of_a_share_of_zero() -> None:
    assert set(divide(KEYS, (0.5, 0.5, 0), 0)) == {"train", "val"}


def test_a_smaller_share_lies_within_a_larger() -> None:
    before: set[int] = set()
    for fraction in (0.05, 0.1, 0.2, 0.7, 1.0):
        kept = set(nested(KEYS, STRATA, fraction, 3).tolist())
        assert before <= kept and abs(len(kept) - 1000 * fraction) <= 1
        assert abs(sum(STRATA[i] for i in kept) - 300 * fraction) <= 1
        before = kept
    assert before == set(range(1000))


def test_a_share_keeps_a_post_of_every_stratum_and_changes_with_the_seed() -> None:
    kept = nested(KEYS, STRATA, 0.001, 0)
    assert set(STRATA[kept]) == {0, 1}
    assert set(nested(KEYS, STRATA, 0.1, 0)) != set(nested(KEYS, STRATA, 0.1, 1))
