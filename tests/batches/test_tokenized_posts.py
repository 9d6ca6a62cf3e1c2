from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from invented import ODD, TEXTS, as_posts, byte_level, every_tokenizer, minilm

from hatemtl.batches.batch import PAD_TO
from hatemtl.batches.masking import Masking
from hatemtl.batches.tokenized_posts import TokenizedPosts
from hatemtl.corpora.base import Column
from hatemtl.corpora.preprocess import Preprocess
from hatemtl.encoders.pretrained import Tokenizer
from hatemtl.errors import UserError
from hatemtl.labels import IGNORED, LabelSpace


def slot(pool: TokenizedPosts, row: int) -> slice:
    """Where a post's tokens stand in the pool."""
    return slice(pool.offsets[row], pool.offsets[row + 1])


def test_posts_lie_one_behind_the_other() -> None:
    pool = TokenizedPosts(minilm(), 128, [as_posts(TEXTS[:3]), as_posts(TEXTS[3:])])
    assert len(pool) == len(TEXTS)
    assert pool.texts == TEXTS
    assert pool.lengths.tolist() == [len(ids) for ids in minilm()(TEXTS)["input_ids"]]
    assert (pool.tokens.dtype, pool.begins.dtype) == (np.int32, np.int32)
    for row, ids in enumerate(minilm()(TEXTS)["input_ids"]):
        assert pool.tokens[slot(pool, row)].tolist() == ids


@pytest.mark.parametrize("max_length", [3, 5, 8])
def test_no_post_is_longer_than_max_length_and_a_cut_one_keeps_its_specials(max_length: int) -> None:
    pool = TokenizedPosts(minilm(), max_length, [as_posts(TEXTS)])
    assert pool.lengths.max() == max_length
    for row in range(len(pool)):
        ids = pool.tokens[slot(pool, row)]
        assert (ids[0], ids[-1]) == (minilm().cls_token_id, minilm().sep_token_id)


def test_word_annotations_stand_where_words_begin_and_nowhere_else() -> None:
    words = [np.arange(len(text.split(" ")), dtype=np.float32) / 10 for text in TEXTS]
    has = np.arange(len(TEXTS)) % 3 != 1
    column = Column(LabelSpace("tokens", ("marked",)), np.fromiter(words, object, len(words)), has)
    for max_length in (128, 6):
        pool = TokenizedPosts(minilm(), max_length, [as_posts(TEXTS)])
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
        pool = TokenizedPosts(minilm(), 128, [as_posts([text])])
        pool.annotate("rationale", column, 0)
        marks = pool.targets["rationale"][pool.begins >= 0].tolist()
        assert marks == [0.0, 1.0]
        assert pool.begins[pool.begins >= 0].tolist() == [0, 2]


def test_values_a_token_become_values_a_word() -> None:
    pool = TokenizedPosts(minilm(), 128, [as_posts(["x", "fizzlewits are here"])])
    width = int(pool.lengths[1])
    values = [float(i) for i in range(width)] + [99.0] * 5  # padding behind
    assert pool.at_words(1, values) == [1.0, width - 3, width - 2]


@pytest.mark.parametrize("max_length", [3, 5, 8, 11])
@every_tokenizer
def test_words_that_are_cut_off_keep_their_values_behind_the_tokens(make: Callable[[], Tokenizer], max_length: int) -> None:
    """Whatever the cut, a post has the words that it has; those that make no token are no words at any length."""
    texts = [*TEXTS, *ODD, "x y z", "we two are exactly it", "long " * 30]
    draw = np.random.default_rng(0)
    marks = np.fromiter((draw.integers(0, 2, len(t.split(" "))).astype(np.float32) for t in texts), object, len(texts))
    has = draw.random(len(texts)) < 0.8
    column = Column(LabelSpace("tokens", ("marked",)), marks, has)

    def words(length: int) -> tuple[list[list[float]], list[list[float]]]:
        pool = TokenizedPosts(make(), length, [as_posts(["before"]), as_posts(texts)])
        pool.annotate("rationale", column, 1)
        targets, said = [], []
        for rows in (np.arange(1, 9), np.arange(9, len(pool))):
            batch = pool[rows]
            width = batch.input_ids.shape[1]
            for row, mine in zip(rows.tolist(), batch.targets["rationale"].tolist(), strict=True):
                targets.append(pool.at_words(row, mine[:width], mine[width:]))
                said.append(pool.at_words(row, [1.0] * width))
        return targets, said

    whole, every = words(128)
    cut, read = words(max_length)
    for i, text in enumerate(texts):
        assert len(whole[i]) == len(cut[i]) == len(read[i]) == len(text.split(" "))
        np.testing.assert_array_equal(whole[i], cut[i])
        expected = marks[i] if has[i] else np.full(len(marks[i]), IGNORED)
        np.testing.assert_array_equal(whole[i], np.where(np.isnan(every[i]), np.nan, expected))
        assert np.isnan(every[i]).tolist() == np.isnan(read[i]).tolist()
        assert 0.0 not in every[i] and all(word in (0.0, 1.0) for word in read[i] if not np.isnan(word))
    assert sum(w == 0 for post in read for w in post) > 20


def test_a_second_text_takes_no_word_of_the_first() -> None:
    """Of two texts the longer is cut first, so a filled sequence may have lost words of the first, the second, or both."""
    texts = ["we two are here now", "we two", "these are quite a few words for so small a place"]
    posts = replace(as_posts(texts), pairs=[("one two three four five six",), ("a b c d e f g h i j",), ("a",)])
    marks = np.fromiter((np.arange(len(t.split(" ")), dtype=np.float32) for t in texts), object, 3)
    pool = TokenizedPosts(minilm(), 10, [posts])
    pool.annotate("words", Column(LabelSpace("tokens", ("m",)), marks, np.ones(3, bool)), 0)
    batch = pool[np.arange(3)]
    assert batch.input_ids.shape == (3, 10)
    for row, mine in enumerate(batch.targets["words"].tolist()):
        assert pool.at_words(row, mine[:10], mine[10:]) == list(range(len(texts[row].split(" "))))
    assert batch.targets["words"].shape[1] > 10
    assert (batch.targets["words"][1, 10:] == IGNORED).all()


def test_a_post_that_stands_for_none_has_no_word_that_is_cut_off() -> None:
    marks = np.fromiter([np.ones(9, np.float32)], object, 1)
    pool = TokenizedPosts(minilm(), 4, [as_posts(["a b c d e f g h i"])])
    pool.annotate("words", Column(LabelSpace("tokens", ("m",)), marks, np.ones(1, bool)), 0)
    assert (pool[np.array([~0])].targets["words"] == IGNORED).all()


@pytest.mark.parametrize("gpu", [True, False])
@every_tokenizer
def test_a_batch_is_as_wide_as_its_longest_post_and_for_a_gpu_a_multiple_of_eight(
    make: Callable[[], Tokenizer], gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    step = PAD_TO if gpu else 1
    pool = TokenizedPosts(make(), 128, [as_posts([*TEXTS, "word " * 60])])
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
    pool = TokenizedPosts(minilm(), 128, [as_posts(["a", "b"])])
    has = np.array([True, False])
    pool.annotate("label", Column(LabelSpace("multiclass", ("x", "y")), np.array([1, -1]), has), 0)
    pool.annotate("target", Column(LabelSpace("multilabel", ("x",)), np.array([[1], [np.nan]], np.float32), has), 0)
    batch = pool[np.array([0, 1])]
    assert batch.targets["label"].tolist() == [1, 0]
    assert batch.targets["target"].tolist() == [[1], [0]]


def test_annotating_leaves_the_corpus_as_it_was() -> None:
    values = np.array([1, 0])
    pool = TokenizedPosts(minilm(), 128, [as_posts(["a", "b"])])
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
        pool = TokenizedPosts(
            byte_level(), max_length, [as_posts(["another", "corpus"]), as_posts(texts), as_posts(["a third"])]
        )
        pool.annotate("rationale", column, 2)
        expected = np.full(len(pool.tokens), IGNORED, dtype=np.float32)
        for i in np.flatnonzero(has):
            begins = pool.begins[slot(pool, 2 + i)]
            expected[slot(pool, 2 + i)][begins >= 0] = words[i][begins[begins >= 0]]
        np.testing.assert_array_equal(pool.targets["rationale"], expected)


def test_marks_for_fewer_words_than_a_post_has_are_a_bug() -> None:
    column = Column(LabelSpace("tokens", ("m",)), np.fromiter([np.ones(1, np.float32)] * 2, object, 2), np.ones(2, bool))
    pool = TokenizedPosts(minilm(), 128, [as_posts(["two words", "one"])])
    with pytest.raises(ValueError, match="more words than values"):
        pool.annotate("rationale", column, 0)


def test_a_column_without_annotations_marks_nothing() -> None:
    column = Column(LabelSpace("tokens", ("m",)), np.fromiter([np.ones(1, np.float32)], object, 1), np.array([False]))
    pool = TokenizedPosts(minilm(), 128, [as_posts(["one"])])
    pool.annotate("rationale", column, 0)
    assert (pool.targets["rationale"] == IGNORED).all()


@pytest.mark.parametrize("max_length", [3, 13, 20])
def test_no_batch_is_wider_than_the_encoder_takes(max_length: int) -> None:
    pool = TokenizedPosts(minilm(), max_length, [as_posts([*TEXTS, "word " * 60])])
    assert pool[np.arange(len(pool))].input_ids.shape[1] == max_length


def test_padding_is_what_batches_hold_beside_their_tokens() -> None:
    pool = TokenizedPosts(minilm(), 128, [as_posts(TEXTS)])
    rows = [np.array([0, 5, 9]), np.array([1]), np.array([2, 3])]
    batches = [pool[some] for some in rows]
    assert [batch.tokens for batch in batches] == [int(batch.attention_mask.sum()) for batch in batches]
    assert [batch.input_ids.numel() for batch in batches] == [len(some) * pool.lengths[some].max() for some in rows]
    assert pool[np.array([9])].input_ids.numel() == pool[np.array([9])].tokens


def test_a_post_that_fills_a_place_carries_no_annotation() -> None:
    pool = TokenizedPosts(minilm(), 128, [as_posts(["you dronk", "fine"])])
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


# Second texts


PAIRS: list[tuple[str, ...]] = [
    ("so it is", "no", "fizzlewits are everywhere"), (), ("a pair",), ("ok then", "never"), ("another pair here",),
]  # fmt: skip
PAIRED = replace(as_posts(["you dronk", "hm", "hi there you", "fine", "x"]), pairs=PAIRS)


def sequences(row: int) -> list[tuple[str, str | None]]:
    """What a post of `PAIRED` is read as."""
    return [(PAIRED.texts[row], second) for second in PAIRS[row] or (None,)]  # type: ignore[list-item]


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [3, 0], [1, 2, 4], [2], [1], [4, ~0]], ids=str)
def test_a_post_is_a_sequence_a_choice_as_the_tokenizer_makes_them(rows: list[int]) -> None:
    pool = TokenizedPosts(minilm(), 128, [as_posts(["another corpus", "before"]), PAIRED])
    batch = pool[np.array([row + 2 if row >= 0 else row - 2 for row in rows])]
    mine = [max(row, ~row) for row in rows]
    pairs = [pair for row in mine for pair in sequences(row)]
    own = [minilm()(*pair) for pair in pairs]
    width = max(len(one["input_ids"]) for one in own)
    for key, pad in (("input_ids", minilm().pad_token_id), ("attention_mask", 0), ("token_type_ids", 0)):
        expected = [one[key] + [pad] * (width - len(one[key])) for one in own]
        if key == "token_type_ids" and not any(map(sum, expected)):
            assert batch.token_type_ids is None
        else:
            assert batch.inputs[key].tolist() == expected
    assert batch.posts.tolist() == [row + 2 for row in mine]
    owner = [i for i, row in enumerate(mine) for _ in sequences(row)]
    assert (list(range(len(rows))) if batch.owner is None else batch.owner.tolist()) == owner
    assert (batch.owner is None) is (len(owner) == len(rows))
    assert batch.tokens == int(batch.attention_mask.sum())


def test_a_posts_length_is_that_of_its_longest_sequence() -> None:
    pool = TokenizedPosts(minilm(), 128, [PAIRED, as_posts(["one more"])])
    own = [max(len(minilm()(*pair)["input_ids"]) for pair in sequences(row)) for row in range(5)]
    assert pool.lengths.tolist() == [*own, 4]
    assert pool[np.arange(5)].input_ids.shape[1] == max(own)


def test_words_are_those_of_the_first_sequence() -> None:
    marks = np.fromiter((np.arange(len(t.split(" ")), dtype=np.float32) for t in PAIRED.texts), object, 5)
    pool = TokenizedPosts(minilm(), 128, [as_posts(["before"]), PAIRED])
    pool.annotate("words", Column(LabelSpace("tokens", ("m",)), marks, np.ones(5, bool)), 1)
    batch = pool[np.array([3, 1, 2])]
    for i, row in enumerate((3, 1, 2)):
        assert pool.at_words(row, batch.targets["words"][i].tolist()) == list(range(len(pool.texts[row].split(" "))))
    assert (pool.targets["words"] >= 0).sum() == sum(len(text.split(" ")) for text in PAIRED.texts)  # once each
    assert pool.tokens_of(np.array([1])).nonzero()[0].tolist() == list(range(*pool.span(1)))
    assert (batch.targets["words"].shape, batch.input_ids.shape[0]) == ((3, batch.input_ids.shape[1]), 5)


def test_where_no_text_has_a_second_one_nothing_is_there_for_them() -> None:
    for posts in (as_posts(TEXTS), replace(as_posts(TEXTS), pairs=[()] * len(TEXTS))):
        pool = TokenizedPosts(minilm(), 128, [posts])
        batch = pool[np.arange(4)]
        assert pool.second is batch.owner is batch.token_type_ids is None


def test_the_right_choice_is_one_of_those_that_are_there() -> None:
    pool, has = TokenizedPosts(minilm(), 128, [PAIRED]), np.array([True, False, False, True, False])
    three, two = LabelSpace("choice", ("1", "2", "3")), LabelSpace("choice", ("1", "2"))
    pool.annotate("right", Column(three, np.array([2, 0, 0, 1, 0]), has), 0)
    assert pool[np.array([3, 0])].targets["right"].tolist() == [1, 2]
    for space, values in ((three, [2, 0, 0, 2, 0]), (two, [1, 0, 0, 1, 0])):
        with pytest.raises(ValueError, match="more choices than there are names, or fewer"):
            pool.annotate("right", Column(space, np.array(values), has), 0)


# Masks


def masked(share: float = 0.3) -> TokenizedPosts:
    """`TEXTS` twice, the second time to be masked."""
    posts = as_posts(TEXTS)
    pool = TokenizedPosts(minilm(), 128, [posts, posts])
    everything = np.ones(len(TEXTS), bool)
    pool.annotate("label", Column(LabelSpace("multiclass", ("x", "y")), np.arange(len(TEXTS)) % 2, everything), 0)
    column = Column(LabelSpace("masked", ("tokens",)), np.zeros(len(TEXTS), np.int64), everything)
    pool.annotate("masked", column, len(TEXTS))
    pool.masks["masked"] = Masking.of(minilm(), share)
    return pool


def test_only_the_posts_of_the_masked_task_are_masked_and_nothing_is_lost() -> None:
    pool, n = masked(), len(TEXTS)
    batch = pool[np.arange(2 * n)]
    targets, plain = batch.targets["masked"], TokenizedPosts(minilm(), 128, [as_posts(TEXTS)])[np.arange(n)].input_ids
    assert targets.dtype == torch.int64
    assert torch.equal(batch.input_ids[:n], plain)
    assert (targets[:n] == IGNORED).all()
    assert torch.equal(batch.input_ids[n:].where(targets[n:] == IGNORED, targets[n:]), plain)
    assert (targets[n:] != IGNORED).any(dim=1).all()
    assert batch.has["masked"].tolist() == [False] * n + [True] * n


def test_masks_depend_on_the_epoch_and_the_post_and_on_no_batch() -> None:
    pool, n = masked(), len(TEXTS)

    def read(pool: TokenizedPosts, rows: list[int]) -> dict[int, list[int]]:
        batch = pool[np.array(rows)]
        return {row: ids[: pool.lengths[row]].tolist() for row, ids in zip(rows, batch.input_ids, strict=True)}

    rows = list(range(n, 2 * n))
    first = read(pool.drawn(3, 0), rows)
    assert read(pool.drawn(3, 0), rows[::-1]) == first
    assert {
        row: ids for some in (rows[:2], rows[2:7], rows[7:]) for row, ids in read(pool.drawn(3, 0), some).items()
    } == first
    assert read(pool.drawn(3, 1), rows) != first
    assert read(pool.drawn(4, 0), rows) != first
    assert read(pool, rows) == read(masked(), rows)  # of evaluation, whatever the seed


def test_a_masked_post_that_fills_a_place_is_as_it_is() -> None:
    pool = masked()
    filler = pool[np.array([~len(TEXTS)])]
    assert torch.equal(filler.input_ids, pool[np.array([0])].input_ids)
    assert (filler.targets["masked"] == IGNORED).all()


def test_without_masks_an_epochs_pool_is_the_pool() -> None:
    pool = TokenizedPosts(minilm(), 128, [as_posts(TEXTS)])
    assert pool.drawn(0, 3) is pool


def test_shares_of_annotators_stand_beside_the_targets_and_are_what_is_learned() -> None:
    shares = np.linspace(0, 1, 2 * len(TEXTS), dtype=np.float32).reshape(-1, 2)
    has = np.arange(len(TEXTS)) % 3 != 1
    soft = Column.of("multiclass", ["x", "y"], shares.argmax(axis=1), has, shares)
    pool = TokenizedPosts(minilm(), 128, [as_posts(TEXTS[:2]), as_posts(TEXTS)])
    pool.annotate("soft", soft, 2)
    pool.annotate("hard", replace(soft, shares=None), 2)
    batch = pool[np.array([0, 2, 3, ~4])]  # another corpus' post, one, one without, and one that another process has
    assert batch.targets["soft"].tolist() == batch.targets["hard"].tolist() == batch.learned("hard").tolist()
    assert batch.learned("soft").tolist() == [[0, 0], shares[0].tolist(), [0, 0], [0, 0]]
    assert batch.some(1, 3).learned("soft").tolist() == [shares[0].tolist(), [0, 0]]


def test_a_fingerprint_tells_shares_where_they_are_asked_for() -> None:
    one, other = (
        as_posts(TEXTS[:1], {"label": Column.of("multiclass", ["x", "y"], [0], shares=[shares])})
        for shares in ([0.7, 0.3], [1, 0])
    )
    assert one.fingerprint() == other.fingerprint()
    assert len({one.fingerprint(), one.fingerprint("label"), other.fingerprint("label")}) == 3


# Answers in second texts

CONTEXT = "Hyperglump, the choir of <Grünau>, sang: «soup»  and garden cake!"
RIGHT = ("choir", "Grünau", "soup", "cake", "ump, the ch", "Hyperglump", "!")


def asked(make: Callable[[], Tokenizer], max_length: int, answers: list[list[str]], **more: Any) -> TokenizedPosts:
    """A question a list of answers, each in the one context; behind them a post without a second text."""
    values = np.full((len(answers) + 1, max(map(len, answers)), 2), -1)
    for row, of_post in zip(values, answers, strict=False):
        row[: len(of_post)] = [(CONTEXT.index(one), CONTEXT.index(one) + len(one)) for one in of_post]
    has = np.arange(len(values)) < len(answers)
    posts = as_posts([f"what is it {i}?" for i in range(len(values))])
    posts = replace(posts, pairs=[(CONTEXT,)] * len(answers) + [()])
    pool = TokenizedPosts(make(), max_length, [posts], located=True, **more)
    pool.annotate("answer", Column(LabelSpace("span", ("answer",)), values, has), 0)
    return pool


@every_tokenizer
def test_an_answer_is_learned_at_the_tokens_that_show_it_and_read_off_them(make: Callable[[], Tokenizer]) -> None:
    pool = asked(make, 128, [[one] for one in RIGHT])
    batch = pool[np.arange(len(pool))]
    for row, right in enumerate(RIGHT):
        first, last = batch.targets["answer"].places[row].tolist()
        passage = batch.targets["answer"].passages[row]
        begin, end = passage.between(first, last)
        assert right in passage.text[begin:end] and passage.answers == [right]
        assert passage.text[begin:end] == right or right == "ump, the ch" or len(passage.text[begin:end]) <= len(right) + 6
        assert batch.answerable is not None and batch.answerable[row, [first, last]].all()
        if last > first:  # no token too many; at the start one may stand for the space before the first word alone
            assert right not in passage.text[slice(*passage.between(first, last - 1))]
    assert batch.targets["answer"].places[-1].tolist() == [IGNORED, IGNORED] and not batch.has["answer"][-1]
    assert not batch.answerable[-1].any()  # type: ignore[index]


def test_tokens_that_may_be_answers_are_those_of_the_second_text() -> None:
    pool = asked(minilm, 128, [["soup"]])
    batch = pool[np.array([0])]
    ids = batch.input_ids[batch.answerable]  # type: ignore[index]
    assert ids.tolist() == minilm()(CONTEXT, add_special_tokens=False)["input_ids"]


def test_an_answer_that_is_cut_off_is_not_learned_but_one_that_is_whole() -> None:
    whole = asked(minilm, 128, [["cake"]])
    length = int(whole.lengths[0])
    for cut in (1, 4):
        pool = asked(minilm, length - cut, [["garden cake"], ["garden cake", "choir"], ["choir"]])
        learned = pool.targets["answer"][:3, 0]
        assert (learned >= 0).tolist() == [cut == 1, True, True]  # at first the mark behind it alone is cut off
        assert pool.counted("answer").tolist() == [int(cut == 1), 1, 1, 0]
        assert pool.passage(1, pool.right["answer"][1]).answers == ["garden cake", "choir"]  # both are right all the same


def test_answers_share_batches_with_other_posts_whose_sequences_they_do_not_touch() -> None:
    pool = asked(minilm, 64, [["soup"], ["cake"]])
    absent = pool[np.array([~0, 1])]
    assert absent.targets["answer"].places[0].tolist() == [IGNORED, IGNORED] and absent.has["answer"].tolist() == [
        False,
        True,
    ]
    some = absent.some(1, 2)
    assert len(some.targets["answer"]) == 1 and some.answerable is not None and len(some.answerable) == 1
    moved = absent.to("cpu")
    assert torch.equal(moved.targets["answer"].places, absent.targets["answer"].places)


def test_texts_that_are_rewritten_have_no_places() -> None:
    with pytest.raises(UserError, match=r"task 'answer' has answers by their places.*type preprocess.case=false"):
        asked(minilm, 64, [["soup"]], preprocess=Preprocess(case=True))
