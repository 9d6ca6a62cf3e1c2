"""From corpora to batches: every corpus is loaded and tokenized once, whatever number of tasks reads it."""

from collections.abc import Mapping
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from hatemtl.batch import Batch
from hatemtl.corpora.base import Split
from hatemtl.encoder import Tokenizer
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace
from hatemtl.pool import Pool, check_workers, loader
from hatemtl.sampling import EpochBatches, Sampling, place, share
from hatemtl.tasks import Task


class DataModule(L.LightningDataModule):
    """Posts of every task's corpus, in batches of like length for training and in order of length for the rest.

    workers: processes that make batches beside the training.
    """

    def __init__(self, tasks: Mapping[str, Task], *, sampling: Sampling, seed: int, workers: int = 0) -> None:
        super().__init__()
        check_workers(workers)
        self.tasks, self.sampling, self.seed, self.workers = tasks, sampling, seed, workers
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

    def tokenize(self, tokenizer: Tokenizer, max_length: int, cache: Path | None = None) -> None:
        """Turns the posts into token ids, or takes them from the folder `cache`; to be called once, before any loader.

        Raises UserError where no batch can hold the longest post.
        """
        self.pool = Pool(tokenizer, max_length, list(self.corpora.values()), cache)
        self.sampling.in_order(self.pool.lengths)  # what it refuses is found out before anything is written
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

    def training_tokens(self, epochs: int) -> int:
        """The tokens that so many epochs read."""
        return int(self.pool.lengths[self.rows("train")].sum()) * epochs

    def steps(self, epochs: int, accumulate: int) -> int:
        """The optimizer steps of a run of so many epochs; an epoch ends with a step, however few batches are left."""
        batches = self._training()
        total = 0
        for epoch in range(epochs):
            batches.set_epoch(epoch)
            total += -(-len(batches) // accumulate)
        return total

    def train_dataloader(self) -> DataLoader[Batch]:
        """The batches of the trainer's epoch, whose number another epoch may not have.

        So the trainer has to ask anew each epoch: `reload_dataloaders_every_n_epochs=1`.
        """
        batches = self._training()
        if self.trainer is not None:  # a resumed run takes its first batches before Lightning sets the epoch
            batches.set_epoch(self.trainer.current_epoch)
        return loader(self.pool, batches, self.workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("test")

    def _training(self) -> EpochBatches:
        rows = self.rows("train")
        return EpochBatches(self.sampling, rows, self.pool.lengths[rows], self.seed)

    def _in_order(self, split: Split) -> DataLoader[Batch]:
        rows = self.rows(split)
        batches = [share(rows[batch], *place()) for batch in self.sampling.in_order(self.pool.lengths[rows])]
        return loader(self.pool, batches, self.workers)
