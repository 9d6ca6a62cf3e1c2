"""What every head shares: the contract, the pooling and the layers."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from hatemtl.errors import UserError, did_you_mean
from hatemtl.labels import LabelSpace

Pooling = Literal["cls", "mean", "attention"]


class Head(Protocol):
    """What is read off the encoder for one task: an nn.Module with its loss, its metrics and its decoding.

    primary: the metric that tells which of two epochs is better; higher is better.
    """

    space: LabelSpace
    primary: str

    def __call__(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits from hidden states (B, T, D): (B, C), or (B, T) for tokens."""
        ...

    def weigh(self, positives: Tensor, total: int) -> None:
        """Takes in how many of the `total` training examples carry each label, (C,), to weigh the rare ones in the loss."""
        ...

    def loss(self, logits: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        """The mean loss over the posts that have the annotation; zero, but connected to the graph, where none has."""
        ...

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities of the shape of the logits."""
        ...

    def metric(self) -> Metric:
        """A fresh accumulator: `update(scores, targets, has)` for every batch, then `compute()`."""
        ...

    def rows(self, computed: Tensor) -> dict[str, float]:
        """Metric names (without stage and task) and values, from what `metric().compute()` gave."""
        ...

    def decode(self, scores: Sequence[float], words: Sequence[str]) -> list[str]:
        """What the scores of one post say: the names of its labels, or the words that are marked."""
        ...


class Pool(nn.Module):
    """One vector a post, (B, T, D) → (B, D): its first token, the mean of its tokens, or a learned weighting of them."""

    def __init__(self, kind: Pooling, hidden_size: int) -> None:
        super().__init__()
        if kind not in ("cls", "mean", "attention"):
            raise UserError(f"head pooling {kind!r}: {did_you_mean(kind, ['cls', 'mean', 'attention'])}")
        self.kind = kind
        self.query = nn.Linear(hidden_size, 1) if kind == "attention" else None

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        if self.kind == "cls":
            return hidden[:, 0]
        if self.query is None:
            weights = attention_mask.to(hidden.dtype)
            weights = weights / weights.sum(dim=1, keepdim=True)
        else:
            weights = self.query(hidden).squeeze(-1).masked_fill(attention_mask == 0, -torch.inf).softmax(dim=1)
        return torch.einsum("bt,btd->bd", weights, hidden)


def feed_forward(hidden_size: int, outputs: int, *, layers: int, dropout: float) -> nn.Sequential:
    """`layers` linear layers down to `outputs`, GELU between them, dropout before each."""
    if layers < 1:
        raise UserError(f"head layers={layers}: expected at least 1")
    if not 0 <= dropout < 1:
        raise UserError(f"head dropout={dropout}: expected a probability below 1")
    stack: list[nn.Module] = []
    for _ in range(layers - 1):
        stack += [nn.Dropout(dropout), nn.Linear(hidden_size, hidden_size), nn.GELU()]
    return nn.Sequential(*stack, nn.Dropout(dropout), nn.Linear(hidden_size, outputs))


def check_balance(balance: float) -> None:
    """The exponent of the inverse label frequency lies between 0 (no weighting) and 1 (fully balanced)."""
    if not 0 <= balance <= 1:
        raise UserError(f"head balance={balance}: expected 0 (no weighting) to 1 (fully balanced)")


def masked_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Σ values·weights / Σ weights; zero, but connected to the graph, where no weight is left."""
    return (values * weights).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def f1(tp: float, fp: float, fn: float) -> float:
    """2·tp / (2·tp + fp + fn), and 0 where nothing is there and nothing was predicted (as scikit-learn's default)."""
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0


def count_rows(counts: Mapping[str, tuple[int, int, int]]) -> dict[str, float]:
    """True positives, false positives and false negatives a label: micro-F1 over parts cannot be rebuilt without them."""
    return {
        f"{kind}_{name}": float(value)
        for name, triple in counts.items()
        for kind, value in zip(("tp", "fp", "fn"), triple, strict=True)
    }
