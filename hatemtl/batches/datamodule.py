"""Turns corpora into batches: every corpus is loaded and tokenized once, whatever number of tasks reads it."""

import time
from collections.abc import Mapping
from functools import partial
from itertools import accumulate as accumulated
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from hatemtl.batches.augmentation import Augmentation, Augmenter
from hatemtl.batches.batch import Batch
from hatemtl.batches.batching import Batching, micro, place, share
from hatemtl.batches.masking import Masking
from hatemtl.batches.sampling import Epochs, Sampling, Use, apart, in_parts, rarity
from hatemtl.batches.tokenized_posts import TokenizedPosts, check_workers, loader
from hatemtl.batches.unlabelled import Unlabelled
from hatemtl.corpora.base import Corpus, Split
from hatemtl.corpora.folds import Folds
from hatemtl.corpora.preprocess import AS_IS, Preprocess
from hatemtl.encoders.pretrained import Tokenizer
from hatemtl.errors import UserError
from hatemtl.heads.base import Head
from hatemtl.labels import LabelSpace
from hatemtl.seeds import derive
from hatemtl.tasks import Task, check_annotated

PROPORTIONAL = Sampling()


class DataModule(L.LightningDataModule):
    """Posts of every task's corpus, in batches of like length for training and in order of length for the rest.

    batching: how posts become batches. sampling: which posts an epoch has, and what a batch is stepped for;
    changes: samplings that take its place, by the epoch, counted from 0, from which on.
    workers: processes that make batches beside the training. micro_batches: how many each batch is computed in. folds: which
    posts of each corpus train and which are tested, None for the corpus' own splits. preprocess: rewrites each text before
    it is tokenized. augmentations: change the posts of each training epoch. unlabelled: posts that join each training batch,
    of no task.
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
        micro_batches: int = 1,
        folds: Folds | None = None,
        preprocess: Preprocess = AS_IS,
        augmentations: Mapping[str, Augmentation] = MappingProxyType({}),
        unlabelled: Unlabelled | None = None,
    ) -> None:
        super().__init__()
        self.preprocess, self.augmentations, self.unlabelled = preprocess, augmentations, unlabelled
        check_workers(workers)
        if micro_batches < 1:
            raise UserError(f"data.micro_batches={micro_batches}: expected a whole number of at least 1, or auto")
        self.cuts = {0: micro_batches}  # by the epoch from which on
        self.tasks, self.batching, self.sampling, self.seed, self.workers = tasks, batching, sampling, seed, workers
        self.changes = changes or {}
        loaded = {corpus: corpus.load() for corpus in dict.fromkeys(task.corpus for task in tasks.values())}
        self.corpora = {corpus: posts if folds is None else folds.of_run(posts) for corpus, posts in loaded.items()}
        self.whole = {**self.corpora}  # also what is left out of them
        self.columns = {name: task.annotations(self.corpora[task.corpus]) for name, task in tasks.items()}
        self.lexicons = {name: lexicon for name, task in tasks.items() if (lexicon := task.lexicon) is not None}
        # what stands in the pool: each corpus once, and once more for each task that reads it masked
        self.parts = [*dict.fromkeys(self._part(name) for name in tasks)]
        if unlabelled is not None:
            if unlabelled.corpus in self.corpora:
                reads = self.readers()[unlabelled.corpus]
                raise UserError(f"unlabelled.corpus: all of its posts are there already, as those of {reads}; give another")
            self.corpora[unlabelled.corpus] = unlabelled.load()
            self.parts.append((unlabelled.corpus, ""))  # the last, and no task's
        self.starts: dict[tuple[Corpus, str | None], int] = {}  # of the parts, in the pool
        self.seconds = 0.0  # that tokenizing took

    @property
    def spaces(self) -> dict[str, LabelSpace]:
        """Gives the label space of every task."""
        return {task: column.space for task, column in self.columns.items()}

    def fingerprints(self) -> dict[str, str]:
        """Gives the fingerprint of every task's corpus as read, with the shares of annotators where the task reads them."""
        marks = {corpus: posts.fingerprint() for corpus, posts in self.whole.items()}
        read = {name: str(self.tasks[name].column) for name, column in self.columns.items() if column.shares is not None}
        of = {name: self.whole[self.tasks[name].corpus] for name in read}
        return {n: of[n].fingerprint(read[n]) if n in read else marks[task.corpus] for n, task in self.tasks.items()}

    def readers(self) -> dict[Corpus, str]:
        """Lists the tasks that read each corpus."""
        reads = {c: "+".join(name for name, task in self.tasks.items() if task.corpus == c) for c in self.corpora}
        return {corpus: names or "unlabelled" for corpus, names in reads.items()}

    @property
    def paired(self) -> set[str]:
        """Names the tasks some of whose posts are read with second texts."""
        return {name for name, task in self.tasks.items() if any(self.corpora[task.corpus].pairs or ())}

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

        Raises UserError where no batch can hold the longest post, or the posts or the tokenizer take no augmentation.
        """
        if self.starts:
            return
        begun, parts = time.perf_counter(), [self.corpora[corpus] for corpus, _ in self.parts]
        self.starts = dict(zip(self.parts, np.cumsum([0, *map(len, parts[:-1])]).tolist(), strict=True))
        self._made: dict[tuple[int, int], Epochs] = {}
        self._ends: dict[tuple[int, int, int], list[int]] = {}
        located = any(space.about == "answers" for space in self.spaces.values())
        self.pool = TokenizedPosts(tokenizer, max_length, parts, cache, self.preprocess, located=located)
        self.seconds = time.perf_counter() - begun
        if self.unlabelled is not None:
            self.pool.labelled = [*self.starts.values()][-1]
        self.batching.in_order(self.pool.lengths)  # what it refuses is found out before anything is written
        for name, task in self.tasks.items():
            self.pool.annotate(name, self.columns[name], self.first(name))
            if task.column is None:  # it guesses masked tokens
                self.pool.masks[name] = Masking.of(tokenizer, task.head_settings["share"])
        self.pool.count(self.lexicons)
        if self.augmentations:
            why = {
                "second texts": "compares second texts, whose words stay as they are, so these would tell the right one",
                "answers": "learns where an answer stands behind its question, whose words therefore stay as they are",
            }
            for name, space in self.spaces.items():
                if space.about in why:
                    raise UserError(
                        f"augmentation=[{','.join(self.augmentations)}]: task {name!r} {why[space.about]}; leave "
                        f"augmentation out, or the task"
                    )
            self.pool.augmenter = Augmenter(self.augmentations, tokenizer, self.pool.ids)

    def first(self, task: str) -> int:
        """Finds where the posts of a task's corpus begin in the pool."""
        return self.starts[self._part(task)]

    def _part(self, task: str) -> tuple[Corpus, str | None]:
        """Gives the posts of the pool that the task reads: those of its corpus that others read too, or its own."""
        return self.tasks[task].corpus, task if self.tasks[task].column is None else None

    def rows(self, split: Split) -> np.ndarray:
        """Finds the posts of a split in the pool, but for unlabelled ones."""
        rows = np.flatnonzero(self.pool.splits[: self.pool.labelled] == split)
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

    def weigh(self, task: str, head: Head) -> None:
        """Has posts count in an optimizer step's loss of a task as they do in its head's, which has observed them."""
        pool = self.pool
        if pool.spaces[task].about == "posts":
            worth = head.worth(torch.from_numpy(pool.shares.get(task, pool.targets[task])))
            if worth is not None:
                pool.worth[task] = worth.double().numpy()

    def counted(self, task: str) -> torch.Tensor:
        """Gives what the task's lexicon counts in its training posts, (N, C)."""
        rows = self.rows("train")
        return torch.from_numpy(self.pool.counts[task][rows[self.pool.has[task][rows]]])

    def training_tokens(self, epochs: int) -> int:
        """Counts the tokens that so many epochs read."""
        lengths = self.pool.lengths
        uses = [use for epoch in range(epochs) for use in self._uses(epoch, epochs=epochs)]
        return sum(int(lengths[rows[rows >= 0]].sum()) for rows, *_ in uses)

    @property
    def micro_batches(self) -> int:
        """Tells in how many micro-batches each batch is computed now."""
        return [*self.cuts.values()][-1]

    def cut(self, micro_batches: int, epoch: int) -> None:
        """Has every batch from this epoch on computed in so many micro-batches."""
        self.cuts = {first: number for first, number in self.cuts.items() if first < epoch} | {epoch: micro_batches}

    def state_dict(self) -> dict[str, Any]:
        return {"cuts": self.cuts}

    def cut_as(self, state: Mapping[str, Any]) -> None:
        """Goes on as `state_dict` says, which the trainer would read too late, unless more micro-batches are asked for."""
        asked, self.cuts = self.micro_batches, dict(state.get("cuts", self.cuts))
        if asked > self.micro_batches:
            self.cut(asked, max(self.cuts) + 1)

    def largest_batch(self) -> np.ndarray:
        """Gives the batch of the first epoch that takes most: the most posts times the longest's tokens."""
        return max(self._epochs(0, 1).batches(0), key=lambda rows: len(rows) * int(self.pool.lengths[rows].max()))

    def longest_batch(self) -> int:
        """Counts the posts of the batch that has the most."""
        return max(map(len, self._epochs(0, 1).batches(0)))

    def ends(self, epochs: int, accumulate: int) -> list[int]:
        """Counts the optimizer steps by the end of each of so many epochs: one ends with a step, of however few batches.

        accumulate: micro-batches a step.
        """
        key = epochs, accumulate, self.micro_batches
        if key not in self._ends:  # every batch of the run has to be drawn to count them
            uses = partial(self._uses, epochs=epochs, accumulate=accumulate)
            self._ends[key] = list(accumulated(-(-len(uses(epoch)) // accumulate) for epoch in range(epochs)))
        return self._ends[key]

    def train_dataloader(self) -> DataLoader[Batch]:
        """Gives the batches of the trainer's epoch, for which it has to ask anew: `reload_dataloaders_every_n_epochs=1`."""
        epoch, epochs, accumulate = 0, 1, self.micro_batches
        if (trainer := self.trainer) is not None:
            epoch, epochs, accumulate = trainer.current_epoch, trainer.max_epochs or 1, trainer.accumulate_grad_batches
        uses, (rank, world) = self._uses(epoch, epochs=epochs, accumulate=accumulate), place()
        mine = [use._replace(rows=share(use.rows, rank, world)) for use in uses]
        if accumulate * world > 1:
            counted = {task: self.pool.counted(task) for task in self.tasks}
            mine = [*in_parts(uses, mine, counted, accumulate)]
        return loader(self.pool.drawn(self.seed, epoch), mine, self.workers)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Leaves unlabelled posts out of a training step in which no regulariser would say anything of them."""
        module: Any = None if batch.unlabelled is None or self.trainer is None else self.trainer.lightning_module
        return batch if module is None or module.reads_unlabelled else batch.labelled()

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("test")

    def _uses(self, epoch: int, *, epochs: int, accumulate: int | None = None) -> list[Use]:
        """Lists the micro-batches that this epoch of so many trains on, over all processes.

        accumulate: those of an optimizer step; None for those of one batch.
        """
        accumulate = accumulate or self.micro_batches
        made = self._epochs(epoch, epochs)
        batches = made.batches(epoch - made.first)
        if made.sampling.step == "joint":
            uses = [Use(rows) for rows in batches]
        else:
            rng = np.random.default_rng(derive(self.seed, "tasks", epoch))
            uses = [Use(*use) for use in apart(batches, self.pool.has, accumulate // self.micro_batches, rng)]
        if self.unlabelled is not None:
            rows = np.arange(self.pool.labelled, len(self.pool))
            uses = self.unlabelled.joined(uses, rows, self.pool.lengths, self.seed, epoch)
        if self.micro_batches > 1:
            uses = [use._replace(rows=rows) for use in uses for rows in micro(use.rows, self.micro_batches)]
        return uses

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
        whole = [rows[batch] for batch in self.batching.in_order(self.pool.lengths[rows])]
        parts = [part for batch in whole for part in np.array_split(batch, self.micro_batches) if len(part)]
        batches = [share(part, *place()) for part in parts]
        return loader(self.pool, batches, self.workers)
