"""Holds all posts of a run as token ids with every task's targets over them; a slice of it is a batch."""

import math
import os
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from hatemtl.answers import Answers, Passage
from hatemtl.batches.augmentation import Augmenter
from hatemtl.batches.batch import Batch, padded
from hatemtl.batches.masking import Masking
from hatemtl.batches.sampling import Use
from hatemtl.batches.token_cache import Tokens, cached, tokenize
from hatemtl.corpora.base import Column, Posts
from hatemtl.corpora.lexicon import Lexicon
from hatemtl.corpora.preprocess import AS_IS, Preprocess
from hatemtl.encoders.pretrained import Tokenizer
from hatemtl.errors import UserError
from hatemtl.labels import IGNORED, LabelSpace
from hatemtl.seeds import derive

WHOLE = 10**9  # tokens: no post has as many
A_CORE = 8  # processes that make batches, at most: a hundred thousand make the machine stand still


class TokenizedPosts(Dataset[Batch]):
    """The N posts of all corpora as flat token ids, and each task's targets over them. Indexed by rows, it gives a Batch.

    A post is one sequence of tokens, or one for each of its choices; words are those of its first.
    prefix: (all tokens, D), what frozen layers make of them, if `frozen_prefix.Prefix` has filled it in.
    tokens, offsets, begins, second, where: as in `token_cache.Tokens`. located: whether `where` is there, which answers are
    read off; `seconds` are then the posts' second texts, "" of those without. cache: the folder that keeps them, if any.
    firsts: (N + 1,), which is each post's first sequence.
    texts: as their authors wrote them; `preprocess` makes of each what is tokenized, word by word.
    masks: how the posts of a task are masked, for those that guess masked tokens. draw: the number that they are drawn by.
    labelled: how many posts come before those that no task annotates.
    on_gpu: whether batches are padded as a GPU computes them best; None for wherever there is one.
    augmenter: changes the posts of a training epoch, by the numbers `changes`; none for what is evaluated.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_length: int,
        parts: list[Posts],
        cache: Path | None = None,
        preprocess: Preprocess = AS_IS,
        *,
        located: bool = False,
        on_gpu: bool | None = None,
    ) -> None:
        self.ids = [post for posts in parts for post in posts.ids]
        self.texts = [text for posts in parts for text in posts.texts]
        pairs = (posts.pairs or [()] * len(posts) for posts in parts) if located else ()
        self.seconds = [pair[0] if pair else "" for of_part in pairs for pair in of_part]
        self.splits = np.concatenate([posts.splits for posts in parts])
        self.tokenizer, self.pad, self.max_length = tokenizer, tokenizer.pad_token_id, max_length
        self.preprocess = preprocess
        made: dict[int, tuple[Tokens, np.ndarray]] = {}  # a corpus may be there twice, once to be masked
        for posts in parts:
            if id(posts) not in made:
                texts, seconds, of_each = _sequences(posts, preprocess)
                made[id(posts)] = cached(tokenizer, max_length, texts, cache, seconds, located=located), of_each
        tokens = Tokens.join([made[id(posts)][0] for posts in parts])
        self.tokens, self.offsets, self.begins, self.second = tokens.ids, tokens.offsets, tokens.begins, tokens.second
        self.where = tokens.where
        counts = np.concatenate([made[id(posts)][1] for posts in parts])
        self.firsts = np.concatenate([[0], counts.cumsum()])
        later = np.ones(len(self.offsets) - 1, bool)
        later[self.firsts[:-1]] = False
        self.begins = np.where(np.repeat(later, np.diff(self.offsets)), -1, self.begins)  # a word begins once
        self.prefix: torch.Tensor | None = None
        self.spaces: dict[str, LabelSpace] = {}
        self.targets: dict[str, np.ndarray] = {}
        self.shares: dict[str, np.ndarray] = {}
        self.counts: dict[str, np.ndarray] = {}  # (N, C), of tasks with a lexicon
        self.right: dict[str, np.ndarray] = {}  # (N, A, 2), of answers, as in `Column.values`
        self.beyond: dict[str, np.ndarray] = {}  # of words, what `targets` has no token for: one value a word of `cut`
        self.has: dict[str, np.ndarray] = {}
        self.worth: dict[str, np.ndarray] = {}  # (N,), how much a post counts in the task's loss, where not all count alike
        self.masks: dict[str, Masking] = {}
        self.labelled = len(self.ids)
        self.augmenter: Augmenter | None = None
        self.changes: dict[str, int] = {}
        # to ask at every batch takes half a millisecond
        self.on_gpu = torch.cuda.is_available() if on_gpu is None else on_gpu
        self.draw = derive(0, "masks", -1)  # of evaluation, so that runs of all seeds are asked the same

    @property
    def lengths(self) -> np.ndarray:
        """Counts the token ids of each post, (N,), of its longest sequence if it has several."""
        return np.maximum.reduceat(np.diff(self.offsets), self.firsts[:-1])

    @cached_property
    def cut(self) -> tuple[np.ndarray, np.ndarray]:
        """(N + 1,) where the words start that `max_length` cuts off a post, and (all of them,) their places in its text.

        Texts that fill their sequence are tokenized once more, whole: a word that makes no token was never there.
        """
        starts, ends = self.offsets[self.firsts[:-1]], self.offsets[self.firsts[:-1] + 1]
        full = np.flatnonzero(ends - starts == self.max_length)
        whole = tokenize(self.tokenizer, WHOLE, [self.preprocess(self.texts[row]) for row in full])
        words, counts = [np.zeros(0, np.int32)], np.zeros(len(self), np.int64)
        for row, start, end in zip(full, whole.offsets[:-1], whole.offsets[1:], strict=True):
            words.append(np.setdiff1d(whole.begins[start:end], [-1, *self.begins[starts[row] : ends[row]]]))
            counts[row] = len(words[-1])
        return np.concatenate([[0], counts.cumsum()]), np.concatenate(words)

    def span(self, row: int) -> tuple[int, int]:
        """Gives where a post's tokens stand, of all its sequences."""
        begin, end = self.offsets[self.firsts[[row, row + 1]]]
        return int(begin), int(end)

    def tokens_of(self, rows: np.ndarray) -> np.ndarray:
        """Tells of all tokens, (all tokens,) bool, whether each is one of these posts'."""
        mine = np.zeros(len(self), dtype=bool)
        mine[rows] = True
        return np.repeat(mine, np.diff(self.offsets[self.firsts]))

    def drawn(self, seed: int, epoch: int) -> "TokenizedPosts":
        """Gives the same posts, with the masks and the augmentation of a training epoch."""
        if not self.masks and self.augmenter is None:
            return self
        pool = copy(self)
        pool.draw = derive(seed, "masks", epoch)
        pool.changes = self.augmenter.drawn(seed, epoch) if self.augmenter is not None else {}
        return pool

    def __len__(self) -> int:
        return len(self.ids)

    def annotate(self, task: str, column: Column, first: int) -> None:
        """Adds a task's column, whose posts stand from position `first` on; other posts do not have it."""
        rows = slice(first, first + len(column.values))
        if column.space.about == "second texts":
            choices = np.diff(self.firsts)[rows]
            if (column.values[column.has] >= choices[column.has]).any() or choices.max(initial=0) > len(column.space):
                raise ValueError("a post has more choices than there are names, or fewer than the place of the right one")
        self.spaces[task] = column.space
        self.has[task] = np.zeros(len(self), dtype=bool)
        self.has[task][rows] = column.has
        if column.space.about == "words":
            mine = first + np.flatnonzero(column.has)
            self.targets[task], self.beyond[task] = self._at_tokens(column.values[column.has], mine)
        elif column.space.about == "answers":
            if self.preprocess.asked:
                keys = " ".join(f"preprocess.{name}=false" for name in self.preprocess.asked)
                raise UserError(f"task {task!r} has answers by their places in texts, which stay as they are; type {keys}")
            self.right[task] = np.full((len(self), *column.values.shape[1:]), -1, np.int64)
            self.right[task][rows][column.has] = column.values[column.has]
            self.targets[task] = np.full((len(self), 2), int(IGNORED))
            for row in np.flatnonzero(self.has[task]).tolist():
                passage = self.passage(row, self.right[task][row])
                if (whole := passage.whole(full=len(passage.where) == self.max_length)) is not None:
                    self.targets[task][row] = whole
        else:
            self.targets[task] = np.zeros((len(self), *column.values.shape[1:]), dtype=column.values.dtype)
            self.targets[task][rows][column.has] = column.values[column.has]  # a placeholder must not reach the loss
            if column.shares is not None:
                self.shares[task] = np.zeros((len(self), len(column.space)), np.float32)
                self.shares[task][rows][column.has] = column.shares[column.has]

    def passage(self, row: int, right: np.ndarray | None = None) -> Passage:
        """Gives a post's second text with its tokens. right: the answers to be found in it, -1 where there are fewer."""
        assert self.where is not None  # or no answers are asked for
        start, end = self.offsets[self.firsts[row] : self.firsts[row] + 2]
        known = np.zeros((0, 2), np.int64) if right is None else right[right[:, 0] >= 0]
        return Passage(self.seconds[row], self.where[start:end], known)

    def count(self, lexicons: Mapping[str, Lexicon]) -> "TokenizedPosts":
        """Counts the words of tasks' lexicons in the posts as they are read, of which only the first texts count."""
        read = [*map(self.preprocess, self.texts)] if lexicons else []
        self.counts |= {task: lexicon.counts(read) for task, lexicon in lexicons.items()}
        return self

    def _at_tokens(self, values: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(all tokens,) float32: the values a word of these rows, where the word begins; `IGNORED` elsewhere.

        And (all words of `cut` and one,) float32, theirs; the last is `IGNORED`.
        """
        words = np.zeros(len(self), dtype=np.int64)
        words[rows] = np.fromiter(map(len, values), np.int64, len(values))
        first = words.cumsum() - words
        flat = np.concatenate([np.zeros(0, np.float32), *values])
        here = np.flatnonzero((self.begins >= 0) & self.tokens_of(np.flatnonzero(words)))
        post, word = np.searchsorted(self.offsets[self.firsts], here, side="right") - 1, self.begins[here]
        if (word >= words[post]).any():
            raise ValueError("a post has more words than values a word")
        targets = np.full(len(self.tokens), IGNORED, dtype=np.float32)
        targets[here] = flat[first[post] + word]
        starts, cut = self.cut
        post = np.repeat(np.arange(len(self)), np.diff(starts))
        mine = np.flatnonzero(words[post])
        beyond = np.full(len(cut) + 1, IGNORED, dtype=np.float32)
        beyond[mine] = flat[(first[post] + cut)[mine]]
        return targets, beyond

    def at_words(self, row: int, values: list[float], beyond: Sequence[float] = ()) -> list[float]:
        """Turns a post's values a token (T), padding included, into values a word of `text.split(" ")`.

        beyond: those of the words that max_length cuts off, 0 if not given. A word that makes no token, as between two
        spaces, has NaN.
        """
        first = self.firsts[row]
        begins = self.begins[self.offsets[first] : self.offsets[first + 1]]
        starts, cut = self.cut
        cut = cut[starts[row] : starts[row + 1]]
        words = np.full(self.texts[row].count(" ") + 1, math.nan)
        words[begins[begins >= 0]] = np.asarray(values, dtype=np.float64)[: len(begins)][begins >= 0]
        words[cut] = beyond[: len(cut)] if len(beyond) else 0
        return words.tolist()

    def counted(self, task: str) -> np.ndarray:
        """Counts what a task's loss is a mean of, by post, (N,): its annotated words' tokens, its worth, or 1; 0 without.

        Nor does an answer count that was cut off.
        """
        has = self.has[task].astype(np.int64)
        if self.spaces[task].about == "answers":
            return has * (self.targets[task][:, 0] >= 0)
        if self.spaces[task].about != "words":
            return has * self.worth[task] if task in self.worth else has
        before = np.concatenate([[0], np.cumsum(self.targets[task] >= 0)])
        first = self.firsts[:-1]
        return has * (before[self.offsets[first + 1]] - before[self.offsets[first]])

    def _sequences(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(S,) the sequences of these posts, and which of the posts each is of; None where each has one."""
        counts = self.firsts[rows + 1] - self.firsts[rows]
        if len(rows) == counts.sum():
            return self.firsts[rows], None
        owner = np.repeat(np.arange(len(rows)), counts)
        return self.firsts[rows][owner] + np.arange(len(owner)) - (counts.cumsum() - counts)[owner], owner

    def _width(self, lengths: np.ndarray) -> int:
        """Gives the tokens that a batch of sequences of these lengths has room for."""
        # a CPU's kernels take any length: there, padding to 8 would cost a tenth of the speed
        return min(int(padded(lengths.max()) if self.on_gpu else lengths.max()), self.max_length)

    def __getitem__(self, asked: np.ndarray | Use) -> Batch:
        """Makes the batch of these posts; of one given as `~row`, without its annotations (see `batching.share`)."""
        rows, only, parts, part = asked if isinstance(asked, Use) else Use(asked)
        absent = rows < 0
        rows = np.where(absent, ~rows, rows)
        sequences, owner = self._sequences(rows)
        starts = self.offsets[sequences]
        lengths = self.offsets[sequences + 1] - starts
        width = self._width(lengths)
        inside = np.arange(width) < lengths[:, None]
        places = np.where(inside, starts[:, None] + np.arange(width), 0)
        ids = np.where(inside, self.tokens[places], self.pad).astype(np.int64)
        later = None if self.second is None else inside & (np.arange(width) >= self.second[sequences][:, None])
        if self.augmenter is not None and self.changes:
            begins = np.where(inside, self.begins[places], -1)
            read = self.augmenter(rows if owner is None else rows[owner], ids, begins, inside, self.changes)
            lengths = read.inside.sum(axis=1)
            width = self._width(lengths)
            order, inside = read.order[:, :width], read.inside[:, :width]
            ids = np.where(inside, read.ids[:, :width], self.pad)
            places = np.where(inside, np.take_along_axis(places, order, axis=1), 0)
            later = None if later is None else inside & np.take_along_axis(later, order, axis=1)
        first = slice(None) if owner is None else np.flatnonzero(np.diff(owner, prepend=-1))
        has = {task: some[rows] & ~absent for task, some in self.has.items()}
        targets: dict[str, Any] = {}
        for task, values in self.targets.items():
            about = self.spaces[task].about
            if about == "answers":
                learned = torch.from_numpy(np.where(absent[:, None], int(IGNORED), values[rows]))
                targets[task] = Answers(learned, [self.passage(row, self.right[task][row]) for row in rows.tolist()])
                continue
            if about == "masked tokens":
                mine = np.full((len(rows), width), int(IGNORED))
                if has[task].any():
                    some = inside[first] & has[task][:, None]
                    ids[first], mine = self.masks[task](ids[first], places[first], some, self.draw)
            elif about == "words":
                mine = np.where(inside[first], values[places[first]], np.float32(IGNORED))
                starts, ends = self.cut[0][rows], self.cut[0][rows + 1]
                words = starts[:, None] + np.arange((ends - starts).max(initial=0))
                cut = self.beyond[task][np.where(words < ends[:, None], words, -1)]
                mine = np.concatenate([mine, cut], axis=1)
                mine[absent] = IGNORED
            else:
                mine = values[rows]
                mine[absent] = 0
            targets[task] = torch.from_numpy(mine)
        answerable = None if self.where is None else inside & (self.where[places, 1] > self.where[places, 0])
        shares = {task: values[rows] for task, values in self.shares.items()}
        for mine in shares.values():
            mine[absent] = 0
        return Batch(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(inside.astype(np.int64)),
            targets=targets,
            has={task: torch.from_numpy(some) for task, some in has.items()},
            posts=torch.from_numpy(rows.astype(np.int64)),
            owner=None if owner is None else torch.from_numpy(owner),
            token_type_ids=None if later is None or not later.any() else torch.from_numpy(later.astype(np.int64)),
            prefix=None if self.prefix is None else self.prefix[torch.from_numpy(places)],
            tokens=int(lengths.sum()),
            only=only,
            parts=parts,
            part=part,
            shares={task: torch.from_numpy(mine) for task, mine in shares.items()},
            unlabelled=None if self.labelled == len(self) else torch.from_numpy(rows >= self.labelled),
            counts={task: torch.from_numpy(values[rows]) for task, values in self.counts.items()},
            answerable=None if answerable is None else torch.from_numpy(answerable),
        )


def _sequences(posts: Posts, preprocess: Preprocess) -> tuple[list[str], list[str | None] | None, np.ndarray]:
    """The texts of a corpus as sequences, each as often as it has second texts; these; (N,) how many each post has."""
    read = [*map(preprocess, posts.texts)]
    if posts.pairs is None or not any(posts.pairs):
        return read, None, np.ones(len(posts), np.int64)
    pairs = [tuple(map(preprocess, pair)) or (None,) for pair in posts.pairs]
    texts = [text for text, pair in zip(read, pairs, strict=True) for _ in pair]
    return texts, [second for pair in pairs for second in pair], np.fromiter(map(len, pairs), np.int64, len(pairs))


def check_workers(workers: int) -> None:
    """Raises UserError where that is no number of processes, or of so many that the machine would stand still."""
    most = A_CORE * (os.cpu_count() or 1)
    if not 0 <= workers <= most:
        raise UserError(
            f"data.workers={workers}: expected a number of processes, 0 for none beside the training, to {most}, "
            f"{A_CORE} a core of this machine"
        )


def loader(pool: TokenizedPosts, batches: Sampler[Any] | Sequence[Any], workers: int = 0) -> DataLoader[Batch]:
    """Hands each array of rows to the pool whole: a batch is a few slices, not B look-ups.

    workers: processes that make batches; the batches and their order are the same for any number.
    """
    check_workers(workers)
    # of its own generator, or every pass over the posts would draw a number from the global one
    generator, pinned = torch.Generator(), torch.cuda.is_available()
    return DataLoader(pool, sampler=batches, batch_size=None, num_workers=workers, generator=generator, pin_memory=pinned)
