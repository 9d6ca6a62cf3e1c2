"""Draws the posts of each epoch, mixes corpora in a batch or keeps them apart, and shares batches out among tasks.

K corpora of N_i training posts are drawn from with p_i ∝ N_i^(1/T): T = 1 as they are, T = 2 by their square roots, T = ∞
alike. A T between is the rule of multilingual BERT and of Arivazhagan et al. 2019 (arXiv:1907.05019); one that rises over
the epochs is the annealing of Stickland & Murray 2019 (arXiv:1902.02671). All of it is a function of seed and epoch alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from hatemtl.batches.batching import Batching
from hatemtl.errors import UserError
from hatemtl.seeds import derive


class Use(NamedTuple):
    """A batch of training: its rows, and the one task that it is stepped for, None for all at once.

    parts: of what each task's loss is a mean of in the optimizer step, the share that this batch has; None for all of it.
    part: of the posts that the step has for the same task, or for all at once, the share that are in this batch.
    """

    rows: np.ndarray
    only: str | None = None
    parts: Mapping[str, float] | None = None
    part: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Tells how often the posts of each corpus come; the YAMLs of conf/sampling tell of each key."""

    temperature: float = 1.0
    final_temperature: float | None = None
    steps: int | None = None
    balance: float = 0.0
    batch: Literal["mixed", "alternating"] = "mixed"
    step: Literal["joint", "per_task"] = "joint"

    def __post_init__(self) -> None:
        for name, value in (("temperature", self.temperature), ("final_temperature", self.final_temperature)):
            if value is not None and not value > 0:
                raise UserError(f"sampling.{name}={value}: expected a number above 0, such as 1, 2, 5 or inf")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"sampling.steps={self.steps}: expected at least 1 batch an epoch, or null for all posts")
        if not 0 <= self.balance <= 1:
            raise UserError(
                f"sampling.balance={self.balance}: expected 0 (posts alike) to 1 (rare labels as often as others)"
            )

    def exponent(self, epoch: int, epochs: int) -> float:
        """Gives 1/T in this epoch (from 0) of so many: from T = 1 to 5 Stickland & Murray's 1 − .8·(e − 1)/(E − 1)."""
        last = self.temperature if self.final_temperature is None else self.final_temperature
        done = epoch / (epochs - 1) if epochs > 1 else 0.0
        return (1 - done) / self.temperature + done / last


def shares(sizes: np.ndarray, exponent: float) -> np.ndarray:
    """Gives (K,) the share of each corpus among the posts drawn, from the number of posts that it has, (K,)."""
    powers = np.where(sizes > 0, (sizes / sizes.max()) ** exponent, 0.0)
    return powers / powers.sum()


def apportioned(owed: np.ndarray, total: int) -> np.ndarray:
    """Rounds to (K,) whole numbers of this sum, none negative, nearest to what each corpus is owed, (K,), of that sum."""
    given = np.floor(np.maximum(owed, 0)).astype(np.int64)
    while rest := total - int(given.sum()):
        lacks = owed - given
        given[lacks.argmax() if rest > 0 else np.where(given > 0, lacks, np.inf).argmin()] += 1 if rest > 0 else -1
    return given


def rarity(carried: Sequence[np.ndarray], balance: float) -> np.ndarray:
    """Weighs posts, (N,), for drawing, on any scale: (1 / share of its rarest label)^balance, 1 for one without labels.

    carried: a task each, (N, C) whether the post carries the label; the rarest is the rarest of all tasks.
    """
    rarest = np.min([np.where(one, one.mean(axis=0), 1.0).min(axis=1) for one in carried], axis=0)
    return rarest**-balance


def once_over(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws (N,) positions in `weights` (N,), in proportion to them: where they are equal, every position once.

    By systematic resampling: N equal steps along the cumulated weights, so a position comes as often as it should or less
    than once more or fewer, and so do all positions of one weight together.
    """
    order = rng.permutation(len(weights))
    if np.ptp(weights) == 0:
        return order
    order = order[np.argsort(weights[order], kind="stable")]
    edges = weights[order].cumsum() * (len(weights) / weights.sum())
    edges[-1] = len(weights)
    times = np.diff(np.floor(edges + rng.random()), prepend=0).astype(np.int64)
    return rng.permutation(np.repeat(order, times))


def taken(weights: np.ndarray, first: int, number: int, seed: int, *names: object) -> np.ndarray:
    """Takes so many positions (sorted) of a corpus's endless sequence, from its `first` on: it is gone over again."""
    n = len(weights)
    passes = range(first // n, -(-(first + number) // n))
    drawn = [once_over(weights, np.random.default_rng(derive(seed, "pass", *names, i))) for i in passes]
    return np.sort(np.concatenate(drawn)[first % n : first % n + number])


def spread(drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Orders the drawn posts (M,), given sorted, at random; one that was drawn t times comes at t even distances."""
    when = np.empty(len(drawn))
    when[rng.permutation(len(drawn))] = np.arange(len(drawn)) / max(len(drawn), 1)
    _, first, times = np.unique(drawn, return_index=True, return_counts=True)
    time = np.arange(len(drawn)) - np.repeat(first, times)  # this is the post's 0th, 1st, ... time
    return drawn[np.argsort((time + np.repeat(when[first], times)) / np.repeat(times, times), kind="stable")]


@dataclass(kw_only=True)
class Epochs:
    """The training batches of every epoch of a run, as rows of the pool: a function of seed and epoch alone.

    corpora: the rows of each corpus's training posts, ascending, none empty. weights: how often each of them is to come.
    lengths: of the whole pool, in tokens. epochs: so many are sampled like this, after the `first` ones of the run.
    """

    corpora: Sequence[np.ndarray]
    weights: Sequence[np.ndarray]
    lengths: np.ndarray
    sampling: Sampling
    batching: Batching
    seed: int
    epochs: int = 1
    first: int = 0

    def __post_init__(self) -> None:
        self.sizes = np.array([len(rows) for rows in self.corpora])
        # of each epoch begun: how many posts of each corpus came before it, and how many should have
        self._came, self._due = [np.zeros_like(self.sizes)], [np.zeros(len(self.sizes))]

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Gives the batches of one epoch, over all processes."""
        while len(self._came) <= epoch:
            self.batches(len(self._came) - 1)
        if (steps := self.sampling.steps) is None:
            return self._of(int(self.sizes.sum()), epoch)
        posts = steps * self.batching.batch_size  # more cannot be in so many batches
        while len(batches := self._of(posts, epoch)) > steps:
            posts = min(posts - 1, posts * steps // len(batches))
        while len(batches) < steps:
            largest = max(range(len(batches)), key=lambda i: len(batches[i]))
            batches[largest : largest + 1] = np.array_split(batches[largest], 2)
        return batches

    def _of(self, posts: int, epoch: int) -> list[np.ndarray]:
        share = shares(self.sizes, self.sampling.exponent(epoch, self.epochs))
        came, due = self._came[epoch], self._due[epoch] + posts * share
        numbers = apportioned(due - came, posts)
        self._came[epoch + 1 :], self._due[epoch + 1 :] = [came + numbers], [due]
        names = (self.first,) if self.first else ()
        drawn = [
            rows[taken(weights, int(first), int(number), self.seed, i, *names)]
            for i, (rows, weights, first, number) in enumerate(zip(self.corpora, self.weights, came, numbers, strict=True))
            if number
        ]
        rng = np.random.default_rng(derive(self.seed, "order", self.first + epoch))
        rows = spread(np.concatenate(drawn), rng)
        corpus = np.searchsorted([rows[-1] for rows in self.corpora], rows)
        groups = [rows] if self.sampling.batch == "mixed" else [rows[corpus == i] for i in np.unique(corpus)]
        batches = [group[batch] for group in groups for batch in self.batching.epoch(self.lengths[group], rng)]
        return batches if len(groups) == 1 else [batches[i] for i in rng.permutation(len(batches))]


def apart(
    batches: Sequence[np.ndarray], has: Mapping[str, np.ndarray], accumulate: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, str]]:
    """Gives every batch of rows once for each task that annotates posts in it, with these posts alone, in random order.

    has[task]: (N,) whether the post carries the task's annotation. accumulate: how many make an optimizer step: so many of
    one task follow each other. Those left over come last, where a step may hold more than one task's.
    """
    steps = []
    for task, annotated in has.items():
        mine = [(rows[annotated[rows]], task) for rows in batches if annotated[rows].any()]
        steps += [mine[i : i + accumulate] for i in range(0, len(mine), accumulate)]
    whole, rest = ([step for step in steps if (len(step) == accumulate) is full] for full in (True, False))
    return [use for step in (*(whole[i] for i in rng.permutation(len(whole))), *rest) for use in step]


def in_parts(uses: Sequence[Use], mine: Sequence[Use], counted: Mapping[str, np.ndarray], accumulate: int) -> Iterator[Use]:
    """Gives a process's own part of the batches, with its share of what every task's loss is a mean of in their step, and of
    its posts.

    So the mean of a step is that of one large batch, however many posts of it lack an annotation, and the last step of an
    epoch is whole however few batches it has. uses: the batches of all processes. counted[task]: (N,) how many answers of
    the post the task's loss is a mean of, each by its worth.
    """

    def count(use: Use, task: str) -> float:
        return float(counted[task][use.rows[use.rows >= 0]].sum()) if use.only in (None, task) else 0.0

    def posts(use: Use) -> int:
        return int((use.rows >= 0).sum())

    for i in range(0, len(uses), accumulate):
        step = slice(i, i + accumulate)
        whole = {task: sum(count(use, task) for use in uses[step]) or 1.0 for task in counted}
        for use in mine[step]:
            alike = sum(posts(other) for other in uses[step] if other.only == use.only)
            yield use._replace(parts={task: count(use, task) / of for task, of in whole.items()}, part=posts(use) / alike)
