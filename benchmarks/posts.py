"""The posts of a benchmark as any library wants them; where they come from is the business of ours.py."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Examples:
    """N posts of one split.

    words: of each post. label: (N,) int64, one of `labels`. target: (N, C) float32.
    rationale: a float32 array with a value a word, None where a post is not annotated.
    """

    words: list[list[str]]
    label: np.ndarray
    target: np.ndarray
    rationale: list[np.ndarray | None]
    labels: int

    @property
    def texts(self) -> list[str]:
        return [" ".join(words) for words in self.words]

    def __len__(self) -> int:
        return len(self.words)


def draw(positions: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` of `positions`, in their order, or all of them where there are no more; a function of the seed alone."""
    if count >= len(positions):
        return positions
    return np.sort(np.random.default_rng(seed).choice(positions, count, replace=False))


def batches(positions: np.ndarray, sizes: np.ndarray, count: int, seed: int, *, size: int = 32) -> np.ndarray:
    """`count` of `positions`, in their order, as batches of `size` that hold posts of like sizes, from small to large.

    Few posts drawn as they come make batches of any lengths, half of them padding, as no trainer that sorts has of many: one
    that looks for like ones among fifty batches finds them in a fiftieth of all. There each batch is drawn here.
    """
    if count >= len(positions):
        return positions
    ordered, number = positions[np.argsort(sizes, kind="stable")], -(-count // size)
    window = max(size, len(positions) // 50)
    begins = (len(positions) - window) * (np.arange(number) + 0.5) / number
    rng = np.random.default_rng(seed)
    found = [rng.choice(ordered[begin : begin + window], size, replace=False) for begin in begins.astype(int)]
    return np.sort(np.concatenate(found)[:count])


def macro_f1(predicted: np.ndarray, truth: np.ndarray, classes: int) -> float:
    """The mean of the F1 of each class (N,), 0 where a class neither is there nor was predicted.

    >>> macro_f1(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
    0.6666666666666666
    """
    table = np.zeros((classes, classes))
    np.add.at(table, (truth, predicted), 1)
    found, sizes = np.diag(table), table.sum(0) + table.sum(1)
    return float(np.divide(2 * found, sizes, out=np.zeros(classes), where=sizes > 0).mean())
