"""From corpora to batches: every corpus is loaded and tokenized once, whatever number of tasks reads it."""

import math
from collections.abc import Mapping
from itertools import chain

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hatemtl.batch import IGNORED, Batch
from hatemtl.corpora.base import Column, Posts, Split
from hatemtl.encoder import Tokenizer
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace
from hatemtl.sampling import EpochBatches, LengthBuckets
from hatemtl.tasks import Task

PAD_TO = 8  # lengths are padded to a multiple of this: matrix units take no smaller step


class Pool(Dataset[Batch]):
    """The posts of all corpora as flat token ids, and each task's targets over them. Indexed by rows, it gives a Batch.

    tokens: (all tokens,) int32. offsets: (N + 1,) int64, where each post's tokens start. begins: (all tokens,) int32, the
    index of the word that begins at a token, -1 where none does.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, parts: list[Posts]) -> None:
        self.ids = [post for posts in parts for post in posts.ids]
        self.texts = [text for posts in parts for text in posts.texts]
        self.splits = np.concatenate([posts.splits for posts in parts])
        self.pad = tokenizer.pad_token_id
        encoded = tokenizer(
            self.texts, truncation=True, max_length=max_length, return_offsets_mapping=True, return_attention_mask=False
        )
        lengths = np.array([len(ids) for ids in encoded["input_ids"]])
        self.offsets = np.concatenate([[0], lengths.cumsum()])
        self.tokens = np.fromiter(chain.from_iterable(encoded["input_ids"]), np.int32, count=self.offsets[-1])
        self.begins = np.concatenate(
            [_word_begins(text, spans) for text, spans in zip(self.texts, encoded["offset_mapping"], strict=True)]
        )
        self.spaces: dict[str, LabelSpace] = {}
        self.targets: dict[str, np.ndarray] = {}
        self.has: dict[str, np.ndarray] = {}

    @property
    def lengths(self) -> np.ndarray:
        """(N,) token ids of each post."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.ids)

    def annotate(self, task: str, column: Column, first: int) -> None:
        """Adds a task's column, whose posts stand from position `first` on; other posts do not have it."""
        rows = slice(first, first + len(column.values))
        self.spaces[task] = column.space
        self.has[task] = np.zeros(len(self), dtype=bool)
        self.has[task][rows] = column.has
        if column.space.kind == "tokens":
            self.targets[task] = np.full(len(self.tokens), IGNORED, dtype=np.float32)
            for row in np.flatnonzero(self.has[task]):
                tokens = slice(self.offsets[row], self.offsets[row + 1])
                begins = self.begins[tokens]
                self.targets[task][tokens][begins >= 0] = column.values[row - first][begins[begins >= 0]]
        else:
            self.targets[task] = np.zeros((len(self), *column.values.shape[1:]), dtype=column.values.dtype)
            self.targets[task][rows][column.has] = column.values[column.has]  # a placeholder must not reach the loss

    def at_words(self, row: int, values: list[float]) -> list[float]:
        """A post's values a token (T), padding included, as values a word, up to the last that begins within max_length.

        A word that makes no token, as between two spaces, has NaN.
        """
        begins = self.begins[self.offsets[row] : self.offsets[row + 1]]
        words = [math.nan] * (int(begins.max(initial=-1)) + 1)
        for token in np.flatnonzero(begins >= 0):
            words[begins[token]] = values[token]
        return words

    def __getitem__(self, rows: np.ndarray) -> Batch:
        starts, lengths = self.offsets[rows], self.lengths[rows]
        width = -(-int(lengths.max()) // PAD_TO) * PAD_TO
        inside = np.arange(width) < lengths[:, None]
        places = np.where(inside, starts[:, None] + np.arange(width), 0)
        targets = {
            task: np.where(inside, values[places], np.float32(IGNORED))
            if self.spaces[task].kind == "tokens"
            else values[rows]
            for task, values in self.targets.items()
        }
        return Batch(
            input_ids=torch.from_numpy(np.where(inside, self.tokens[places], self.pad).astype(np.int64)),
            attention_mask=torch.from_numpy(inside.astype(np.int64)),
            targets={task: torch.from_numpy(values) for task, values in targets.items()},
            has={task: torch.from_numpy(has[rows]) for task, has in self.has.items()},
            posts=torch.from_numpy(np.asarray(rows, dtype=np.int64)),
        )


def _word_begins(text: str, spans: list[tuple[int, int]]) -> np.ndarray:
    """(T,) int32: the index of the word (`text.split(" ")`) that begins at each token, -1 for later pieces and specials."""
    starts, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    spaces = np.flatnonzero(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32) == ord(" "))
    # the last character, since some tokenizers count the space before a word into its first piece
    words = np.where(ends > starts, np.searchsorted(spaces, ends - 1, side="right"), -1)
    seen = np.maximum.accumulate(np.concatenate([[-1], words[:-1]])) if len(words) else words
    return np.where(words > seen, words, -1).astype(np.int32)


class DataModule(L.LightningDataModule):
    """Posts of every task's corpus, in length buckets for training and in order of length for the rest."""

    def __init__(self, tasks: Mapping[str, Task], *, sampling: LengthBuckets, seed: int) -> None:
        super().__init__()
        self.tasks, self.sampling, self.seed = tasks, sampling, seed
        self.corpora = {corpus: corpus.load() for corpus in dict.fromkeys(task.corpus for task in tasks.values())}
        self.columns = {name: task.annotations(self.corpora[task.corpus]) for name, task in tasks.items()}

    @property
    def spaces(self) -> dict[str, LabelSpace]:
        """The label space of every task."""
        return {task: column.space for task, column in self.columns.items()}

    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of every task's corpus."""
        marks = {corpus: posts.fingerprint() for corpus, posts in self.corpora.items()}
        return {name: marks[task.corpus] for name, task in self.tasks.items()}

    def tokenize(self, tokenizer: Tokenizer, max_length: int) -> None:
        """Turns the posts into token ids; to be called once, before any loader."""
        self.pool = Pool(tokenizer, max_length, list(self.corpora.values()))
        sizes = [len(posts) for posts in self.corpora.values()]
        firsts = dict(zip(self.corpora, np.concatenate([[0], np.cumsum(sizes)[:-1]]).tolist(), strict=True))
        for name, task in self.tasks.items():
            self.pool.annotate(name, self.columns[name], firsts[task.corpus])

    def rows(self, split: Split) -> np.ndarray:
        """Where the posts of a split stand in the pool."""
        rows = np.flatnonzero(self.pool.splits == split)
        if not len(rows):
            raise UserError(f"no corpus of these tasks has posts in the {split} split")
        return rows

    def frequencies(self, task: str) -> tuple[torch.Tensor, int]:
        """How many training examples (posts, or words for tokens) carry each label, (C,), and how many there are."""
        space, rows = self.pool.spaces[task], self.rows("train")
        has = rows[self.pool.has[task][rows]]
        values = self.pool.targets[task]
        if space.kind == "multiclass":
            return torch.from_numpy(np.bincount(values[has], minlength=len(space)).astype(np.float32)), len(has)
        if space.kind == "multilabel":
            return torch.from_numpy(values[has].sum(axis=0)), len(has)
        mine = np.zeros(len(self.pool), dtype=bool)
        mine[has] = True
        counted = values[np.repeat(mine, self.pool.lengths) & (values >= 0)]
        return torch.tensor([counted.sum()]), len(counted)

    def train_dataloader(self) -> DataLoader[Batch]:
        rows = self.rows("train")
        batches = EpochBatches(self.sampling, rows, self.pool.lengths[rows], self.seed)
        if self.trainer is not None:  # a resumed run takes its first batches before Lightning sets the epoch
            batches.set_epoch(self.trainer.current_epoch)
        return loader(self.pool, batches)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("test")

    def _in_order(self, split: Split) -> DataLoader[Batch]:
        rows = self.rows(split)
        return loader(self.pool, [rows[batch] for batch in self.sampling.in_order(self.pool.lengths[rows])])


def loader(pool: Pool, batches: EpochBatches | list[np.ndarray]) -> DataLoader[Batch]:
    """Hands each array of rows to the pool whole: a batch is a few slices, not B look-ups."""
    # of its own generator, or every pass over the posts would draw a number from the global one
    generator = torch.Generator()
    return DataLoader(pool, sampler=batches, batch_size=None, generator=generator, pin_memory=torch.cuda.is_available())
