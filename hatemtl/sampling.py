"""Which posts stand together in a batch, and in what order batches come."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from hatemtl.errors import UserError
from hatemtl.seeds import derive


@dataclass(frozen=True, kw_only=True)
class LengthBuckets:
    """Batches of posts of like length, out of shuffled windows: every post once an epoch, little padding.

    batch_size: posts a training batch. window: batches that are sorted by length together; 1 is plain shuffling.
    eval_batch_size: posts a batch where nothing is trained.
    """

    batch_size: int
    window: int
    eval_batch_size: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "window", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"sampling.{name}={getattr(self, name)}: expected at least 1")

    def epoch(self, lengths: np.ndarray, seed: int, epoch: int) -> list[np.ndarray]:
        """The batches of one epoch as positions in `lengths` (N,); a function of seed and epoch alone."""
        rng = np.random.default_rng(derive(seed, "order", epoch))
        order = rng.permutation(len(lengths))
        batches = []
        for window in np.split(order, range(self.window * self.batch_size, len(order), self.window * self.batch_size)):
            window = window[np.argsort(lengths[window], kind="stable")]
            batches += np.split(window, range(self.batch_size, len(window), self.batch_size))
        return [batches[i] for i in rng.permutation(len(batches))]

    def in_order(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Batches for evaluation: all posts once, from short to long."""
        order = np.argsort(lengths, kind="stable")
        return np.split(order, range(self.eval_batch_size, len(order), self.eval_batch_size))


class EpochBatches(Sampler[np.ndarray]):
    """The training batches of the epoch that was last set."""

    def __init__(self, buckets: LengthBuckets, rows: np.ndarray, lengths: np.ndarray, seed: int) -> None:
        self.buckets, self.rows, self.lengths, self.seed, self.current = buckets, rows, lengths, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.current = epoch

    def __iter__(self) -> Iterator[np.ndarray]:
        for batch in self.buckets.epoch(self.lengths, self.seed, self.current):
            yield self.rows[batch]

    def __len__(self) -> int:
        return -(-len(self.rows) // self.buckets.batch_size)
