"""Counts what heads are judged by, batch by batch, and makes figures of the counts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

COUNTS = ("tp", "fp", "fn")  # true positives, false positives, false negatives: figures that are numbers of posts or words


class Figure(NamedTuple):
    """A number that a head is judged by. label: the one that it is of, None for all of them."""

    name: str
    label: str | None
    value: float

    @property
    def key(self) -> str:
        """Tells how `primary` names it: f1_women, macro_f1."""
        return self.name if self.label is None else f"{self.name}_{self.label}"


class Tally(Metric):
    """Adds up what `count` makes of each batch's scores, targets and has, from a tensor of zeros on; or puts it end to end.

    No size of what is made may depend on values, which would have to come from the device first.
    """

    found: Tensor | list[Tensor]

    def __init__(self, count: Callable[[Tensor, Tensor, Tensor], Tensor], zeros: Tensor | None = None) -> None:
        super().__init__()
        self.count = count
        self.add_state("found", [] if zeros is None else zeros, dist_reduce_fx="cat" if zeros is None else "sum")

    def update(self, scores: Tensor, targets: Tensor, has: Tensor) -> None:
        found = self.count(scores, targets, has)
        if isinstance(self.found, list):
            self.found.append(found)
        else:
            self.found += found

    def compute(self) -> Tensor:
        return dim_zero_cat(self.found) if isinstance(self.found, list) else self.found


def confusion(labels: int, predict: Callable[[Tensor], Tensor]) -> Tally:
    """Counts posts of label i for which label j was predicted, (C, C) int64, over the posts that are annotated.

    predict: the labels' positions (B,) that scores (B, C) say.
    """

    def count(scores: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        places = targets * labels + predict(scores)  # no bincount, whose size would have to come from the device
        counts = torch.zeros(labels * labels, dtype=torch.int64, device=scores.device).index_add_(0, places, has.long())
        return counts.view(labels, labels)

    return Tally(count, torch.zeros(labels, labels, dtype=torch.int64))


def likeliest(scores: Tensor) -> Tensor:
    """Picks the label of the highest score, (B, C) → (B,)."""
    return scores.argmax(dim=1)


def f1(tp: float, fp: float, fn: float) -> float:
    """Computes 2·tp / (2·tp + fp + fn), 0 where nothing is there and nothing was predicted (as scikit-learn's default)."""
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0


def label_rows(counts: Tensor, names: Sequence[str], overall: Figure) -> list[Figure]:
    """Gives F1 of each label and their mean, a figure of all labels, and the counts (C, 3) that F1 is made of."""
    f1s = [f1(*of_label) for of_label in counts.tolist()]
    each = [Figure("f1", name, value) for name, value in zip(names, f1s, strict=True)]
    return [*each, Figure("macro_f1", None, sum(f1s) / len(f1s)), overall, *count_rows(counts, names)]


def count_rows(counts: Tensor, names: Sequence[str]) -> list[Figure]:
    """Gives the `COUNTS` (C, 3) of each label: micro-F1 over parts cannot be rebuilt without them."""
    of_labels = zip(names, counts.tolist(), strict=True)
    return [Figure(kind, name, float(n)) for name, of_label in of_labels for kind, n in zip(COUNTS, of_label, strict=True)]
