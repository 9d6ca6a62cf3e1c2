"""Turns corpora into batches: every corpus is loaded and tokenized once, whatever number of tasks reads it."""

from collections.abc import Mapping
from functools import partial
from itertools import accumulate as accumulated
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from hatemtl.batches.batch import Batch
from hatemtl.batches.batching import Batching, place, share
from hatemtl.batches.masking import Masking
from hatemtl.batches.sampling import Epochs, Sampling, Use, apart, in_parts, rarity
from hatemtl.batches.tokenized_posts import TokenizedPosts, check_workers, loader
from hatemtl.corpora.base import Corpus, Split
from hatemtl.corpora.folds import Folds
from hatemtl.encoders.pretrained import Tokenizer
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace
from hatemtl.seeds import derive
from hatemtl.tasks import Task, check_annotated

PROPORTIONAL = Sampling()


class DataModule(L.LightningDataModule):
    """Posts of every task's corpus, in batches of like length for training and in order of length for the rest.

    batching: how posts become batches. sampling: which posts an epoch has, and what a batch is stepped for;
    changes: samplings that take its place, by the epoch, counted from 0, from which on.
    workers: processes that make batches beside the training. folds: which posts of each corpus train and which are tested,
    None for the corpus' own splits.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        batching: Batching,
        sampling: Sampling = PROPORTIONAL,
        changes: Mapping[int, Sampling] | None = None,
        seed: int,
        workers: int = 0,
        folds: Folds | None = None,
    ) -> None:
        super().__init__()
        check_workers(workers)
        self.tasks, self.batching, self.sampling, self.seed, self.workers = tasks, batching, sampling, seed, workers
        self.changes = changes or {}
        loaded = {corpus: corpus.load() for corpus in dict.fromkeys(task.corpus for task in tasks.values())}
        self.corpora = {corpus: posts if folds is None else folds.of_run(posts) for corpus, posts in loaded.items()}
        self.columns = {name: task.annotations(self.corpora[task.corpus]) for name, task in tasks.items()}
        # what stands in the pool: each corpus once, and once more for each task that reads it masked
        self.parts = [*dict.fromkeys(self._part(name) for name in tasks)]
        self.starts: dict[tuple[Corpus, str | None], int] = {}  # of the parts, in the pool

    @property
    def spaces(self) -> dict[str, LabelSpace]:
        """Gives the label space of every task."""
        return {task: column.space for task, column in self.columns.items()}

    def fingerprints(self) -> dict[str, str]:
        """Gives the fingerprint of every task's corpus, with the shares of annotators where the task reads them."""
        marks = {corpus: posts.fingerprint() for corpus, posts in self.corpora.items()}
        read = {name: str(self.tasks[name].column) for name, column in self.columns.items() if column.shares is not None}
        of = {name: self.corpora[self.tasks[name].corpus] for name in read}
        return {n: of[n].fingerprint(read[n]) if n in read else marks[task.corpus] for n, task in self.tasks.items()}

    def readers(self) -> dict[Corpus, str]:
        """Lists the tasks that read each corpus."""
        return {c: "+".join(name for name, task in self.tasks.items() if task.corpus == c) for c in self.corpora}

    def leave_out(self, posts: Mapping[Corpus, np.ndarray]) -> None:
        """Takes the posts at these positions out of their corpora; to be called before `tokenize`."""
        for corpus, gone in posts.items():
            kept = np.setdiff1d(np.arange(len(self.corpora[corpus])), gone)
            self.corpora[corpus] = self.corpora[corpus].at(kept)
            for name, column in self.columns.items():
                if self.tasks[name].corpus == corpus:
                    self.columns[name] = column.at(kept)

    def check_split(self, split: Split) -> None:
        """Raises UserError where this split says nothing of a task, or the training posts all the same."""
        for name, task in self.tasks.items():
            check_annotated(name, task, self.columns[name], self.corpora[task.corpus].splits, split)

    def tokenize(self, tokenizer: Tokenizer, max_length: int, cache: Path | None = None) -> None:
        """Turns the posts into token ids, or takes them from the folder `cache`, before any loader; again, does nothing.

        Raises UserError where no batch can hold the longest post.
        """
        if self.starts:
            return
        parts = [self.corpora[corpus] for corpus, _ in self.parts]
        self.starts = dict(zip(self.parts, np.cumsum([0, *map(len, parts[:-1])]).tolist(), strict=True))
        self._made: dict[tuple[int, int], Epochs] = {}
        self.pool = TokenizedPosts(tokenizer, max_length, parts, cache)
        self.batching.in_order(self.pool.lengths)  # what it refuses is found out before anything is written
        for name, task in self.tasks.items():
            self.pool.annotate(name, self.columns[name], self.first(name))
            if task.column is None:  # it guesses masked tokens
                self.pool.masks[name] = Masking.of(tokenizer, task.head_settings["share"])

    def first(self, task: str) -> int:
        """Finds where the posts of a task's corpus begin in the pool."""
        return self.starts[self._part(task)]

    def _part(self, task: str) -> tuple[Corpus, str | None]:
        """Gives the posts of the pool that the task reads: those of its corpus that others read too, or its own."""
        return self.tasks[task].corpus, task if self.tasks[task].column is None else None

    def rows(self, split: Split) -> np.ndarray:
        """Finds the posts of a split in the pool."""
        rows = np.flatnonzero(self.pool.splits == split)
        if not len(rows):
            raise UserError(f"no corpus of these tasks has posts in the {split} split")
        return rows

    def some(self, split: Split, posts: int) -> list[Batch]:
        """Draws batches of so many posts of a split, or of all if there are fewer, drawn by the seed."""
        rows = self.rows(split)
        drawn = np.sort(np.random.default_rng(derive(self.seed, "some", split)).permutation(rows)[:posts])
        return [self.pool[drawn[batch]] for batch in self.batching.in_order(self.pool.lengths[drawn])]

    def observed(self, task: str) -> torch.Tensor:
        """Gives the annotations that training shows, as `Head.observe` takes them."""
        pool, rows = self.pool, self.rows("train")
        has = rows[pool.has[task][rows]]
        if pool.spaces[task].about != "words":
            return torch.from_numpy(pool.targets[task][has])
        values = pool.targets[task]
        return torch.from_numpy(values[pool.tokens_of(has) & (values >= 0)])

    def training_tokens(self, epochs: int) -> int:
        """Counts the tokens that so many epochs read."""
        lengths = self.pool.lengths
        return sum(int(lengths[rows].sum()) for epoch in range(epochs) for rows, *_ in self._uses(epoch, epochs=epochs))

    def ends(self, epochs: int, accumulate: int) -> list[int]:
        """Counts the optimizer steps by the end of each of so many epochs: one ends with a step, of however few batches."""
        uses = partial(self._uses, epochs=epochs, accumulate=accumulate)
        return list(accumulated(-(-len(uses(epoch)) // accumulate) for epoch in range(epochs)))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Gives the batches of the trainer's epoch, for which it has to ask anew: `reload_dataloaders_every_n_epochs=1`."""
        epoch, epochs, accumulate = 0, 1, 1
        if (trainer := self.trainer) is not None:
            epoch, epochs, accumulate = trainer.current_epoch, trainer.max_epochs or 1, trainer.accumulate_grad_batches
        uses = self._uses(epoch, epochs=epochs, accumulate=accumulate)
        mine = [use._replace(rows=share(use.rows, *place())) for use in uses]
        return loader(self.pool.drawn(self.seed, epoch), mine, self.workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("test")

    def _uses(self, epoch: int, *, epochs: int, accumulate: int = 1) -> list[Use]:
        """Lists the batches that this epoch of so many trains on, over all processes."""
        made = self._epochs(epoch, epochs)
        batches = made.batches(epoch - made.first)
        if made.sampling.step == "joint":
            uses = [Use(rows) for rows in batches]
        else:
            rng = np.random.default_rng(derive(self.seed, "tasks", epoch))
            uses = [Use(*use) for use in apart(batches, self.pool.has, accumulate, rng)]
        return uses if accumulate == 1 else [*in_parts(uses, self.pool.has, accumulate)]

    def _epochs(self, epoch: int, epochs: int) -> Epochs:
        """Gives the batches of the epochs, of so many, that are sampled as this one; they remember where one ended."""
        first = max(begin for begin in (0, *self.changes) if begin <= epoch)
        last = min(begin for begin in (epochs, *self.changes) if begin > epoch)
        if (first, last) not in self._made:
            sampling = self.changes.get(first, self.sampling)
            train = self.rows("train")
            starts = np.searchsorted(train, [*self.starts.values()][1:])
            parts = {part: rows for part, rows in zip(self.parts, np.split(train, starts), strict=True) if len(rows)}
            self._made[first, last] = Epochs(
                corpora=list(parts.values()),
                weights=[self._weights(corpus, rows, sampling.balance) for (corpus, _), rows in parts.items()],
                lengths=self.pool.lengths,
                sampling=sampling,
                batching=self.batching,
                seed=self.seed,
                first=first,
                epochs=last - first,
            )
        return self._made[first, last]

    def _weights(self, corpus: Corpus, rows: np.ndarray, balance: float) -> np.ndarray:
        """Gives the frequency, of any scale, at which each of these rows of a corpus is to come."""
        carried = []
        for name, task in self.tasks.items():
            space, values, has = self.pool.spaces[name], self.pool.targets[name], self.pool.has[name][rows, None]
            if task.corpus == corpus and space.carries == "one":
                carried.append((values[rows, None] == np.arange(len(space))) & has)
            elif task.corpus == corpus and space.carries == "any":
                carried.append((values[rows] >= 0.5) & has)
        return rarity(carried, balance) if carried else np.ones(len(rows))

    def _in_order(self, split: Split) -> DataLoader[Batch]:
        rows = self.rows(split)
        batches = [share(rows[batch], *place()) for batch in self.batching.in_order(self.pool.lengths[rows])]
        return loader(self.pool, batches, self.workers)
