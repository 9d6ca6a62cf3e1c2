"""Makes batches of posts: chooses their members and order, and the posts that each process computes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from hatemtl.batches.batch import padded
from hatemtl.errors import UserError

WASTE = 0.12  # of an evaluation batch's places; on a CPU next to none of it is computed
SMALL = 2048  # places: of so few, padding costs less than one more batch
MOST = 8192  # places: a larger batch takes no shorter, and more memory


class Batching(Protocol):
    """A way to make batches of posts, given their lengths in tokens (N,). A batch is an array of positions in `lengths`.

    Both raise UserError where no batch can hold the longest post.
    """

    @property
    def batch_size(self) -> int:
        """Posts that a training batch has at most."""
        ...

    def epoch(self, lengths: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Makes training batches of posts that come in this order, each once; the batches are shuffled."""
        ...

    def in_order(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Makes batches for evaluation: all posts once, from short to long."""
        ...


@dataclass(frozen=True, kw_only=True)
class LengthBuckets:
    """Batches of so many posts, of like length, out of windows of shuffled posts: little padding.

    In evaluation a batch has fewer than eval_batch_size where it would be padded much. A batch is an array of positions in
    the posts' lengths in tokens, (N,).
    """

    batch_size: int
    window: int
    eval_batch_size: int

    def __post_init__(self) -> None:
        _check_counts(self)

    def epoch(self, lengths: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Makes training batches of posts that come in this order, each once; the batches are shuffled."""

        def cuts(some: np.ndarray) -> np.ndarray:
            full, rest = divmod(len(some), self.batch_size)
            ends = np.arange(1, full + (rest > 0)) * self.batch_size
            # the one smaller batch stands anywhere among them: posts in it weigh more, which the longest shall not always do
            ends[int(rng.integers(full + 1)) :] += rest - self.batch_size if rest else 0
            return ends

        size = self.window * self.batch_size
        return _shuffled(lengths, range(size, len(lengths), size), cuts, rng)

    def in_order(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Makes batches for evaluation: all posts once, from short to long."""
        order = np.argsort(lengths, kind="stable")
        return np.split(order, _tight(lengths[order], self.eval_batch_size))


@dataclass(frozen=True, kw_only=True)
class TokenBudget:
    """Batches of so many padded tokens, of like length, out of windows of shuffled posts: steps of even cost.

    The mean of a batch weighs its posts alike, so a long post weighs more in a step than a short; the last batch of a
    window, smaller than the others, holds its longest posts. Both ways to batch raise UserError where none can hold the
    longest post.
    """

    batch_tokens: int
    batch_size: int
    window: int
    eval_batch_tokens: int
    eval_batch_size: int

    def __post_init__(self) -> None:
        _check_counts(self)

    def epoch(self, lengths: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        self._check(lengths)
        before = padded(lengths).cumsum() - padded(lengths)
        windows = np.flatnonzero(np.diff(before // (self.window * self.batch_tokens))) + 1
        return _shuffled(lengths, windows, lambda some: _cuts(padded(some), self.batch_tokens, self.batch_size), rng)

    def in_order(self, lengths: np.ndarray) -> list[np.ndarray]:
        self._check(lengths)
        order = np.argsort(lengths, kind="stable")
        return np.split(order, _cuts(padded(lengths[order]), self.eval_batch_tokens, self.eval_batch_size))

    def _check(self, lengths: np.ndarray) -> None:
        longest = int(padded(lengths.max(initial=1)))
        for name in ("batch_tokens", "eval_batch_tokens"):
            if getattr(self, name) < longest:
                raise UserError(
                    f"batching.{name}={getattr(self, name)}: expected room for the longest post; type "
                    f"batching.{name}={longest} or more, or a smaller encoder.max_length"
                )


def _shuffled(
    lengths: np.ndarray, windows: Any, cuts: Callable[[np.ndarray], Any], rng: np.random.Generator
) -> list[np.ndarray]:
    """Cuts each window of posts, from short to long, into batches, and shuffles these. windows: where all but one begin."""
    batches = []
    for window in np.split(np.arange(len(lengths)), windows):
        window = window[np.argsort(lengths[window], kind="stable")]
        batches += np.split(window, cuts(lengths[window]))
    return [batches[i] for i in rng.permutation(len(batches))]


def _cuts(widths: np.ndarray, tokens: int, posts: int) -> list[int]:
    """Gives where batches but the first begin, among padded lengths (N,) from short to long; a batch's last is its width."""
    cuts, start = [], 0
    while start < len(widths):
        places = widths[start : start + posts] * np.arange(1, 1 + min(posts, len(widths) - start))
        start += int(np.searchsorted(places, tokens, side="right"))
        cuts.append(start)
    return cuts[:-1]


def _tight(lengths: np.ndarray, posts: int) -> list[int]:
    """Gives where batches of so many posts at most begin but the first, among lengths (N,) from short to long.

    A batch holds no more than `MOST` places, unless one post does, and than `WASTE` of padding, unless it is small.
    """
    cuts, end = [], len(lengths)
    while end:
        sizes = np.arange(1, min(posts, end) + 1)
        places = sizes * lengths[end - 1]
        padding = places - lengths[end - len(sizes) : end][::-1].cumsum()
        end -= int(sizes[(padding <= WASTE * places) & (places <= MOST) | (places <= SMALL)].max(initial=1))
        cuts.append(end)
    return cuts[:-1][::-1]


def _check_counts(batching: Any) -> None:
    for name, value in vars(batching).items():
        if value < 1:
            raise UserError(f"batching.{name}={value}: expected a whole number of at least 1")


def share(batch: np.ndarray, rank: int, world: int) -> np.ndarray:
    """Gives the rows of a batch that process `rank` of `world` computes: every world-th, so all get posts of like length.

    All processes step together. Where a batch has fewer rows than there are processes, one that would get none gets the
    first row as `~row`, which stands for the post without its annotations: it takes part and counts for nothing.
    """
    mine, first = batch[rank::world], batch[:1]
    return mine if len(mine) else np.where(first < 0, first, ~first)


def micro(batch: np.ndarray, number: int) -> list[np.ndarray]:
    """Cuts a batch, whose rows go from short to long, into so many micro-batches; one that gets no row has `~row`, as above.

    >>> [part.tolist() for part in micro(np.array([4, 7, 9]), 2)], [part.tolist() for part in micro(np.array([4]), 2)]
    ([[4, 7], [9]], [[4], [-5]])
    """
    return [part if len(part) else ~batch[:1] for part in np.array_split(batch, number)]


def place() -> tuple[int, int]:
    """Gives the rank of this process and how many train together; (0, 1) for one alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
