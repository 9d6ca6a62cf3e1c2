from collections.abc import Callable

import numpy as np
import pytest
import torch
from invented import ODD, TEXTS, as_posts, byte_level, every_tokenizer, minilm

from hatemtl.batch import IGNORED, PAD_TO
from hatemtl.corpora.base import Column
from hatemtl.encoder import Tokenizer
from hatemtl.labels import LabelSpace
from hatemtl.pool import Pool


def slot(pool: Pool, row: int) -> slice:
    """Where a post's tokens stand in the pool."""
    return slice(pool.offsets[row], pool.offsets[row + 1])


def test_posts_lie_one_behind_the_other() -> None:
    pool = Pool(minilm(), 128, [as_posts(TEXTS[:3]), as_posts(TEXTS[3:])])
    assert len(pool) == len(TEXTS)
    assert pool.texts == TEXTS
    assert pool.lengths.tolist() == [len(ids) for ids in minilm()(TEXTS)["input_ids"]]
    assert (pool.tokens.dtype, pool.begins.dtype) == (np.int32, np.int32)
    for row, ids in enumerate(minilm()(TEXTS)["input_ids"]):
        assert pool.tokens[slot(pool, row)].tolist() == ids


@pytest.mark.parametrize("max_length", [3, 5, 8])
def test_no_post_is_longer_than_max_length_and_a_cut_one_keeps_its_specials(max_length: int) -> None:
    pool = Pool(minilm(), max_length, [as_posts(TEXTS)])
    assert pool.lengths.max() == max_length
    for row in range(len(pool)):
        ids = pool.tokens[slot(pool, row)]
        assert (ids[0], ids[-1]) == (minilm().cls_token_id, minilm().sep_token_id)


def test_word_annotations_stand_where_words_begin_and_nowhere_else() -> None:
    words = [np.arange(len(text.split(" ")), dtype=np.float32) / 10 for text in TEXTS]
    has = np.arange(len(TEXTS)) % 3 != 1
    column = Column(LabelSpace("tokens", ("marked",)), np.fromiter(words, object, len(words)), has)
    for max_length in (128, 6):
        pool = Pool(minilm(), max_length, [as_posts(TEXTS)])
        pool.annotate("rationale", column, 0)
        for row in range(len(pool)):
            targets, begins = pool.targets["rationale"][slot(pool, row)], pool.begins[slot(pool, row)]
            assert (targets[begins < 0] == IGNORED).all()
            if has[row]:
                np.testing.assert_array_equal(targets[begins >= 0], words[row][: (begins >= 0).sum()])
            else:
                assert (targets == IGNORED).all()


def test_a_word_that_makes_no_token_shifts_no_mark() -> None:
    column = Column(
        LabelSpace("tokens", ("marked",)), np.fromiter([np.array([0, 1, 1], np.float32)], object, 1), np.array([True])
    )
    for text in ("we  dronk", "we \u200d dronk"):
        pool = Pool(minilm(), 128, [as_posts([text])])
        pool.annotate("rationale", column, 0)
        marks = pool.targets["rationale"][pool.begins >= 0].tolist()
        assert marks == [0.0, 1.0]
        assert pool.begins[pool.begins >= 0].tolist() == [0, 2]


def test_values_a_token_become_values_a_word() -> None:
    pool = Pool(minilm(), 128, [as_posts(["x", "fizzlewits are here"])])
    width = int(pool.lengths[1])
    values = [float(i) for i in range(width)] + [99.0] * 5  # padding behind
    assert pool.at_words(1, values) == [1.0, width - 3, width - 2]


@pytest.mark.parametrize("gpu", [True, False])
@every_tokenizer
def test_a_batch_is_as_wide_as_its_longest_post_and_for_a_gpu_a_multiple_of_eight(
    make: Callable[[], Tokenizer], gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    step = PAD_TO if gpu else 1
    pool = Pool(make(), 128, [as_posts([*TEXTS, "word " * 60])])
    for rows in ([0], [9], [0, 5, 9], [len(TEXTS)], list(range(len(TEXTS)))):
        batch = pool[np.array(rows)]
        width, longest = batch.input_ids.shape[1], pool.lengths[rows].max()
        assert width % step == 0
        assert 0 <= width - longest < step
        assert batch.attention_mask.sum(1).tolist() == pool.lengths[rows].tolist()
        assert batch.posts.tolist() == rows
        for i, row in enumerate(rows):
            n = int(pool.lengths[row])
            assert batch.input_ids[i, :n].tolist() == pool.tokens[slot(pool, row)].tolist()
            assert (batch.input_ids[i, n:] == make().pad_token_id).all()
            assert batch.attention_mask[i].tolist() == [1] * n + [0] * (width - n)


def test_the_placeholder_of_a_post_without_annotation_becomes_zero() -> None:
    pool = Pool(minilm(), 128, [as_posts(["a", "b"])])
    has = np.array([True, False])
    pool.annotate("label", Column(LabelSpace("multiclass", ("x", "y")), np.array([1, -1]), has), 0)
    pool.annotate("target", Column(LabelSpace("multilabel", ("x",)), np.array([[1], [np.nan]], np.float32), has), 0)
    batch = pool[np.array([0, 1])]
    assert batch.targets["label"].tolist() == [1, 0]
    assert batch.targets["target"].tolist() == [[1], [0]]


def test_annotating_leaves_the_corpus_as_it_was() -> None:
    values = np.array([1, 0])
    pool = Pool(minilm(), 128, [as_posts(["a", "b"])])
    pool.annotate("label", Column(LabelSpace("multiclass", ("x", "y")), values, np.array([True, True])), 0)
    pool.targets["label"][:] = 7
    assert values.tolist() == [1, 0]


def test_targets_all_at_once_are_those_of_a_post_at_a_time() -> None:
    draw = np.random.default_rng(0)
    texts = [*TEXTS, *ODD]
    words = [draw.random(len(text.split(" "))).astype(np.float32) for text in texts]
    has = draw.random(len(texts)) < 0.7
    column = Column(LabelSpace("tokens", ("marked",)), np.fromiter(words, object, len(words)), has)
    for max_length in (128, 5):
        pool = Pool(byte_level(), max_length, [as_posts(["another", "corpus"]), as_posts(texts), as_posts(["a third"])])
        pool.annotate("rationale", column, 2)
        expected = np.full(len(pool.tokens), IGNORED, dtype=np.float32)
        for i in np.flatnonzero(has):
            begins = pool.begins[slot(pool, 2 + i)]
            expected[slot(pool, 2 + i)][begins >= 0] = words[i][begins[begins >= 0]]
        np.testing.assert_array_equal(pool.targets["rationale"], expected)


def test_marks_for_fewer_words_than_a_post_has_are_a_bug() -> None:
    column = Column(LabelSpace("tokens", ("m",)), np.fromiter([np.ones(1, np.float32)] * 2, object, 2), np.ones(2, bool))
    pool = Pool(minilm(), 128, [as_posts(["two words", "one"])])
    with pytest.raises(ValueError, match="more words than values"):
        pool.annotate("rationale", column, 0)


def test_a_column_without_annotations_marks_nothing() -> None:
    column = Column(LabelSpace("tokens", ("m",)), np.fromiter([np.ones(1, np.float32)], object, 1), np.array([False]))
    pool = Pool(minilm(), 128, [as_posts(["one"])])
    pool.annotate("rationale", column, 0)
    assert (pool.targets["rationale"] == IGNORED).all()


@pytest.mark.parametrize("max_length", [3, 13, 20])
def test_no_batch_is_wider_than_the_encoder_takes(max_length: int) -> None:
    pool = Pool(minilm(), max_length, [as_posts([*TEXTS, "word " * 60])])
    assert pool[np.arange(len(pool))].input_ids.shape[1] == max_length


def test_padding_is_what_batches_hold_beside_their_tokens() -> None:
    pool = Pool(minilm(), 128, [as_posts(TEXTS)])
    rows = [np.array([0, 5, 9]), np.array([1]), np.array([2, 3])]
    batches = [pool[some] for some in rows]
    assert [batch.tokens for batch in batches] == [int(batch.attention_mask.sum()) for batch in batches]
    assert pool.padding(rows) == 1 - sum(b.tokens for b in batches) / sum(b.input_ids.numel() for b in batches)
    assert pool.padding([np.array([9])]) == 0
    assert pool.padding([np.array([5, 9])]) == 1 - (pool.lengths[5] + pool.lengths[9]) / (2 * pool.lengths[[5, 9]].max())


def test_a_post_that_fills_a_place_carries_no_annotation() -> None:
    pool = Pool(minilm(), 128, [as_posts(["you dronk", "fine"])])
    has = np.array([True, True])
    pool.annotate("label", Column(LabelSpace("multiclass", ("x", "y")), np.array([1, 1]), has), 0)
    marks = np.fromiter([np.ones(2, np.float32), np.ones(1, np.float32)], object, 2)
    pool.annotate("words", Column(LabelSpace("tokens", ("m",)), marks, has), 0)
    filler, post = pool[np.array([~0])], pool[np.array([0])]
    assert torch.equal(filler.input_ids, post.input_ids)
    assert filler.posts.tolist() == [0]
    assert not any(some.any() for some in filler.has.values())
    assert filler.targets["label"].tolist() == [0]
    assert (filler.targets["words"] == IGNORED).all()
    assert pool[np.array([0])].targets["label"].tolist() == [1]  # and the pool is as it was
