import numpy as np
import pytest
from invented import byte_level, minilm

from hatemtl.batches.masking import Masking, uniform
from hatemtl.errors import UserError
from hatemtl.labels import IGNORED

VOCABULARY, MASK, SPECIAL = 1000, 4, 5  # ids below 5 are special


def masking(share: float = 0.15) -> Masking:
    return Masking(share, MASK, np.arange(VOCABULARY) >= SPECIAL)


def texts(rows: int = 200, width: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, places and where there is a token, of texts of 3 to `width` tokens with a special one at each end."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(3, width + 1, rows)
    inside = np.arange(width) < lengths[:, None]
    ids = np.where(inside, draw.integers(SPECIAL, VOCABULARY, (rows, width)), 0)
    ids[:, 0], ids[np.arange(rows), lengths - 1] = 1, 2
    starts = lengths.cumsum() - lengths
    return ids, np.where(inside, starts[:, None] + np.arange(width), 0), inside


@pytest.mark.parametrize("share", [0.01, 0.15, 0.5, 0.99])
def test_of_each_text_exactly_its_share_is_asked_for_and_one_token_at_least(share: float) -> None:
    ids, places, inside = texts()
    read, asked = masking(share)(ids, places, inside, 7)
    ordinary = (ids >= SPECIAL).sum(axis=1)
    assert (asked != IGNORED).sum(axis=1).tolist() == [max(1, round(share * int(n))) for n in ordinary]
    assert (ids[asked != IGNORED] >= SPECIAL).all()
    assert (read.dtype, asked.dtype) == (np.int64, np.int64)


def test_what_is_asked_for_is_what_stood_there_and_all_else_is_as_it_was() -> None:
    ids, places, inside = texts()
    read, asked = masking()(ids, places, inside, 7)
    chosen = asked != IGNORED
    assert (asked[chosen] == ids[chosen]).all()
    assert (read[~chosen] == ids[~chosen]).all()


def test_of_ten_tokens_eight_read_as_the_mask_one_as_another_and_one_as_it_is() -> None:
    ids, places, inside = texts(4000)
    read, asked = masking()(ids, places, inside, 7)
    read, true = read[asked != IGNORED], asked[asked != IGNORED]
    assert len(true) > 15_000
    assert (read == MASK).mean() == pytest.approx(0.8, abs=0.01)
    assert (read == true).mean() == pytest.approx(0.1, abs=0.01)
    other = read[(read != MASK) & (read != true)]
    assert len(other) / len(true) == pytest.approx(0.1, abs=0.01)
    assert other.min() >= SPECIAL
    counts = np.bincount((other - SPECIAL) * 5 // (VOCABULARY - SPECIAL), minlength=5)
    assert counts / len(other) == pytest.approx([0.2] * 5, abs=0.03)


def test_every_token_is_asked_for_as_often_as_another_over_the_epochs() -> None:
    ids, places, inside = texts(1, width=22, seed=1)
    ids, places, inside = (
        array[:, :12] for array in (np.tile(np.arange(5, 27), (1, 1)), np.arange(22)[None], inside | True)
    )
    often = sum((masking(0.25)(ids, places, inside, epoch)[1] != IGNORED)[0].astype(int) for epoch in range(4000))
    assert often / 4000 == pytest.approx([0.25] * 12, abs=0.03)


def test_a_text_is_masked_alike_in_whatever_batch() -> None:
    ids, places, inside = texts(20)
    read, asked = masking()(ids, places, inside, 7)
    for row in range(20):
        length = int(inside[row].sum())
        alone = masking()(*(array[row : row + 1, :length] for array in (ids, places, inside)), 7)
        assert alone[0][0].tolist() == read[row, :length].tolist()
        assert alone[1][0].tolist() == asked[row, :length].tolist()


def test_a_text_of_special_tokens_has_nothing_to_guess() -> None:
    ids, places, inside = np.array([[1, 2]]), np.array([[0, 1]]), np.ones((1, 2), bool)
    read, asked = masking()(ids, places, inside, 7)
    assert read.tolist() == ids.tolist()
    assert (asked == IGNORED).all()


def test_draws_are_even_and_unlike() -> None:
    one, two, three = (
        uniform(np.arange(100_000), 0, 0),
        uniform(np.arange(100_000), 0, 1),
        uniform(np.arange(100_000), 1, 0),
    )
    for draw in (one, two, three):
        assert draw.min() >= 0
        assert draw.max() < 1
        assert np.bincount((draw * 10).astype(int)) / 100_000 == pytest.approx([0.1] * 10, abs=0.005)
    assert abs(np.corrcoef([one, two, three])[np.triu_indices(3, 1)]).max() < 0.02
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.02


def test_the_stream_is_split_mix_64_by_hand() -> None:
    """The first three values from seed 1234567, as published with the generator's reference code."""
    first = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [uniform(np.array([0]), 1234567, which)[0] for which in range(3)] == [(n >> 11) * 2.0**-53 for n in first]


def test_a_tokenizer_masks_with_its_own_token_and_never_asks_for_a_special_one() -> None:
    mine = Masking.of(minilm(), 0.15)
    assert mine.mask == minilm().mask_token_id
    assert set(np.flatnonzero(~mine.ordinary)) == set(minilm().all_special_ids)


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    with pytest.raises(UserError, match="no mask token.*encoder=minilm"):
        Masking.of(byte_level(), 0.15)
