"""All posts of a run as token ids with every task's targets over them; a slice of it is a batch."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hatemtl.batch import IGNORED, Batch, padded
from hatemtl.corpora.base import Column, Posts
from hatemtl.encoder import Tokenizer
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace
from hatemtl.sampling import EpochBatches
from hatemtl.tokencache import Tokens, cached


class Pool(Dataset[Batch]):
    """The posts of all corpora as flat token ids, and each task's targets over them. Indexed by rows, it gives a Batch.

    prefix: (all tokens, D), what frozen layers make of them, if `prefix.Prefix` has filled it in.
    tokens, offsets, begins: as in `tokencache.Tokens`. cache: the folder that keeps them, if any.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, parts: list[Posts], cache: Path | None = None) -> None:
        self.ids = [post for posts in parts for post in posts.ids]
        self.texts = [text for posts in parts for text in posts.texts]
        self.splits = np.concatenate([posts.splits for posts in parts])
        self.pad, self.max_length = tokenizer.pad_token_id, max_length
        tokens = Tokens.join([cached(tokenizer, max_length, posts.texts, cache) for posts in parts])
        self.tokens, self.offsets, self.begins = tokens.ids, tokens.offsets, tokens.begins
        self.prefix: torch.Tensor | None = None
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
            self.targets[task] = self._at_tokens(column.values[column.has], first + np.flatnonzero(column.has))
        else:
            self.targets[task] = np.zeros((len(self), *column.values.shape[1:]), dtype=column.values.dtype)
            self.targets[task][rows][column.has] = column.values[column.has]  # a placeholder must not reach the loss

    def _at_tokens(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(all tokens,) float32: the values a word of these rows, where the word begins; `IGNORED` elsewhere."""
        words = np.zeros(len(self), dtype=np.int64)
        words[rows] = np.fromiter(map(len, values), np.int64, len(values))
        first = words.cumsum() - words
        flat = np.concatenate([np.zeros(0, np.float32), *values])
        here = np.flatnonzero((self.begins >= 0) & np.repeat(words > 0, self.lengths))
        post, word = np.searchsorted(self.offsets, here, side="right") - 1, self.begins[here]
        if (word >= words[post]).any():
            raise ValueError("a post has more words than values a word")
        targets = np.full(len(self.tokens), IGNORED, dtype=np.float32)
        targets[here] = flat[first[post] + word]
        return targets

    def at_words(self, row: int, values: list[float]) -> list[float]:
        """A post's values a token (T), padding included, as values a word, up to the last that begins within max_length.

        A word that makes no token, as between two spaces, has NaN.
        """
        begins = self.begins[self.offsets[row] : self.offsets[row + 1]]
        words = np.full(int(begins.max(initial=-1)) + 1, math.nan)
        words[begins[begins >= 0]] = np.asarray(values, dtype=np.float64)[: len(begins)][begins >= 0]
        return words.tolist()

    def width(self, rows: np.ndarray) -> int:
        """How many tokens a batch of these posts is padded to: those of the longest; for a GPU a multiple of `PAD_TO`.

        On a CPU, whose kernels take any length, padding to 8 would cost a tenth of the speed.
        """
        longest = (self.offsets[rows + 1] - self.offsets[rows]).max()
        return min(int(padded(longest)) if torch.cuda.is_available() else int(longest), self.max_length)

    def padding(self, batches: Iterable[np.ndarray]) -> float:
        """The share of places in these batches of rows that hold no token."""
        tokens, places = 0, 0
        for rows in batches:
            tokens += int((self.offsets[rows + 1] - self.offsets[rows]).sum())
            places += len(rows) * self.width(rows)
        return 1 - tokens / places

    def __getitem__(self, rows: np.ndarray) -> Batch:
        """The batch of these posts; of one given as `~row`, without its annotations (see `sampling.share`)."""
        absent = rows < 0
        rows = np.where(absent, ~rows, rows)
        starts, width = self.offsets[rows], self.width(rows)
        lengths = self.offsets[rows + 1] - starts
        inside = np.arange(width) < lengths[:, None]
        places = np.where(inside, starts[:, None] + np.arange(width), 0)
        targets: dict[str, torch.Tensor] = {}
        for task, values in self.targets.items():
            words = self.spaces[task].kind == "tokens"
            mine = np.where(inside, values[places], np.float32(IGNORED)) if words else values[rows]
            mine[absent] = IGNORED if words else 0
            targets[task] = torch.from_numpy(mine)
        return Batch(
            input_ids=torch.from_numpy(np.where(inside, self.tokens[places], self.pad).astype(np.int64)),
            attention_mask=torch.from_numpy(inside.astype(np.int64)),
            targets=targets,
            has={task: torch.from_numpy(has[rows] & ~absent) for task, has in self.has.items()},
            posts=torch.from_numpy(rows.astype(np.int64)),
            prefix=None if self.prefix is None else self.prefix[torch.from_numpy(places)],
            tokens=int(lengths.sum()),
        )


def check_workers(workers: int) -> None:
    """Raises UserError where that is no number of processes."""
    if not isinstance(workers, int) or workers < 0:
        raise UserError(f"data.workers={workers}: expected a number of processes, 0 for none beside the training")


def loader(pool: Pool, batches: EpochBatches | list[np.ndarray], workers: int = 0) -> DataLoader[Batch]:
    """Hands each array of rows to the pool whole: a batch is a few slices, not B look-ups.

    workers: processes that make batches; the batches and their order are the same for any number.
    """
    # of its own generator, or every pass over the posts would draw a number from the global one
    check_workers(workers)
    generator, pinned = torch.Generator(), torch.cuda.is_available()
    return DataLoader(pool, sampler=batches, batch_size=None, num_workers=workers, generator=generator, pin_memory=pinned)
