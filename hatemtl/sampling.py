"""Which posts stand together in a batch, in what order batches come, and which process computes which posts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Sampler

from hatemtl.batch import padded
from hatemtl.errors import UserError
from hatemtl.seeds import derive


class Sampling(Protocol):
    """A way to make batches of posts, given their lengths in tokens (N,). A batch is an array of positions in `lengths`.

    Both raise UserError where no batch can hold the longest post.
    """

    def epoch(self, lengths: np.ndarray, seed: int, epoch: int) -> list[np.ndarray]:
        """The training batches of one epoch, every post once; a function of seed and epoch alone."""
        ...

    def in_order(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Batches for evaluation: all posts once, from short to long."""
        ...


@dataclass(frozen=True, kw_only=True)
class LengthBuckets:
    """Batches of so many posts, of like length, out of shuffled windows: every post once an epoch, little padding.

    batch_size: posts a training batch, over all devices. window: batches that are sorted by length together; 1 is plain
    shuffling. eval_batch_size: posts a batch where nothing is trained.
    """

    batch_size: int
    window: int
    eval_batch_size: int

    def __post_init__(self) -> None:
        _at_least_one(self, "batch_size", "window", "eval_batch_size")

    def epoch(self, lengths: np.ndarray, seed: int, epoch: int) -> list[np.ndarray]:
        """The batches of one epoch as positions in `lengths` (N,); a function of seed and epoch alone."""
        rng = np.random.default_rng(derive(seed, "order", epoch))
        order = rng.permutation(len(lengths))
        batches = []
        for window in np.split(order, range(self.window * self.batch_size, len(order), self.window * self.batch_size)):
            window = window[np.argsort(lengths[window], kind="stable")]
            full, rest = divmod(len(window), self.batch_size)
            cuts = np.arange(1, full + (rest > 0)) * self.batch_size
            # the one smaller batch stands anywhere among them: posts in it weigh more, which the longest shall not always do
            cuts[int(rng.integers(full + 1)) :] += rest - self.batch_size if rest else 0
            batches += np.split(window, cuts)
        return [batches[i] for i in rng.permutation(len(batches))]

    def in_order(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Batches for evaluation: all posts once, from short to long."""
        order = np.argsort(lengths, kind="stable")
        return np.split(order, range(self.eval_batch_size, len(order), self.eval_batch_size))


@dataclass(frozen=True, kw_only=True)
class TokenBudget:
    """Batches of so many padded tokens, of like length, out of shuffled windows: steps of even cost, few posts where long.

    batch_tokens: padded tokens a training batch at most, over all devices. batch_size: posts a training batch at most.
    window: batches' worth of tokens that are sorted by length together. eval_batch_tokens, eval_batch_size: the same
    where nothing is trained. The mean of a batch weighs its posts alike, so a long post weighs more in a step than a short;
    the last batch of a window, smaller than the others, holds its longest posts.
    """

    batch_tokens: int
    batch_size: int
    window: int
    eval_batch_tokens: int
    eval_batch_size: int

    def __post_init__(self) -> None:
        _at_least_one(self, "batch_tokens", "batch_size", "window", "eval_batch_tokens", "eval_batch_size")

    def epoch(self, lengths: np.ndarray, seed: int, epoch: int) -> list[np.ndarray]:
        """The batches of one epoch as positions in `lengths` (N,); a function of seed and epoch alone."""
        self._check(lengths)
        rng = np.random.default_rng(derive(seed, "order", epoch))
        order = rng.permutation(len(lengths))
        before = padded(lengths[order]).cumsum() - padded(lengths[order])
        windows = np.flatnonzero(np.diff(before // (self.window * self.batch_tokens))) + 1
        batches = []
        for window in np.split(order, windows):
            window = window[np.argsort(lengths[window], kind="stable")]
            batches += np.split(window, _cuts(padded(lengths[window]), self.batch_tokens, self.batch_size))
        return [batches[i] for i in rng.permutation(len(batches))]

    def in_order(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Batches for evaluation: all posts once, from short to long."""
        self._check(lengths)
        order = np.argsort(lengths, kind="stable")
        return np.split(order, _cuts(padded(lengths[order]), self.eval_batch_tokens, self.eval_batch_size))

    def _check(self, lengths: np.ndarray) -> None:
        longest = int(padded(lengths.max(initial=1)))
        for name in ("batch_tokens", "eval_batch_tokens"):
            if getattr(self, name) < longest:
                raise UserError(
                    f"sampling.{name}={getattr(self, name)}: expected room for the longest post; type "
                    f"sampling.{name}={longest} or more, or a smaller encoder.max_length"
                )


def _cuts(widths: np.ndarray, tokens: int, posts: int) -> list[int]:
    """Where batches begin but the first, among padded lengths (N,) from short to long; the last of a batch is its width."""
    cuts, start = [], 0
    while start < len(widths):
        places = widths[start : start + posts] * np.arange(1, 1 + min(posts, len(widths) - start))
        start += int(np.searchsorted(places, tokens, side="right"))
        cuts.append(start)
    return cuts[:-1]


def _at_least_one(sampling: Any, *names: str) -> None:
    for name in names:
        value = getattr(sampling, name)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"sampling.{name}={value}: expected a whole number of at least 1")


def share(batch: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The rows of a batch that process `rank` of `world` computes: every world-th, so all get posts of like length.

    All processes step together. Where a batch has fewer rows than there are processes, one that would get none gets the
    first row as `~row`, which stands for the post without its annotations: it takes part and counts for nothing.
    """
    mine = batch[rank::world]
    return mine if len(mine) else ~batch[:1]


def place() -> tuple[int, int]:
    """The rank of this process and how many train together; (0, 1) for one alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class EpochBatches(Sampler[np.ndarray]):
    """This process's share of the training batches of the epoch that was last set."""

    def __init__(self, sampling: Sampling, rows: np.ndarray, lengths: np.ndarray, seed: int) -> None:
        self.sampling, self.rows, self.lengths, self.seed, self.current = sampling, rows, lengths, seed, 0
        self._made: tuple[int, list[np.ndarray]] = (-1, [])

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.current = epoch

    def batches(self) -> list[np.ndarray]:
        """The whole batches of the epoch, over all processes, as positions in `lengths`."""
        if self._made[0] != self.current:  # an epoch's length is asked for many times
            self._made = self.current, self.sampling.epoch(self.lengths, self.seed, self.current)
        return self._made[1]

    def __iter__(self) -> Iterator[np.ndarray]:
        for batch in self.batches():
            yield share(self.rows[batch], *place())

    def __len__(self) -> int:
        return len(self.batches())
