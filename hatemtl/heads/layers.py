"""Holds the parts that heads are built of: pooling, linear layers, and what reads a lexicon's counts."""

from typing import Literal

import torch
from torch import Tensor, nn

from hatemtl.errors import UserError

Pooling = Literal["cls", "mean", "attention"]


class Pool(nn.Module):
    """One vector a post, (B, T, D) → (B, D): its first token, the mean of its tokens, or a learned weighting of them."""

    def __init__(self, kind: Pooling, hidden_size: int) -> None:
        super().__init__()
        self.kind = kind
        self.query = nn.Linear(hidden_size, 1) if kind == "attention" else None

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        if self.kind == "cls":
            return hidden[:, 0]
        return torch.einsum("bt,btd->bd", self.weights(hidden, attention_mask), hidden)

    def weights(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Gives how much each token counts, (B, T), but where only the first does."""
        if self.query is not None:
            return self.query(hidden).squeeze(-1).masked_fill(attention_mask == 0, -torch.inf).softmax(dim=1)
        weights = attention_mask.to(hidden.dtype)
        return weights / weights.sum(dim=1, keepdim=True)


class Counts(nn.Module):
    """Puts C counts of a post behind its vector, (B, D) → (B, D + C), each less its mean over its deviation in training."""

    scale: Tensor

    def __init__(self, counts: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.stack([torch.zeros(counts), torch.ones(counts)]))

    def observe(self, values: Tensor) -> None:
        """Takes in the training posts' counts, (N, C); a loaded head keeps what its weights were trained for."""
        if torch.equal(self.scale, Counts(len(self.scale[0])).scale.to(self.scale)) and len(values):
            deviation = values.double().std(dim=0, correction=0)
            self.scale.copy_(torch.stack([values.double().mean(dim=0), deviation.where(deviation > 0, 1.0)]))

    def forward(self, vectors: Tensor, counts: Tensor | None) -> Tensor:
        if counts is None:
            raise UserError(
                "a head with a lexicon counts the words of whole posts, and was asked about tokens alone; leave out the "
                "evaluations that do so, or train it with tasks.TASK.head.lexicon=null"
            )
        mean, deviation = self.scale
        return torch.cat([vectors, (counts - mean) / deviation], dim=1)


def counting(lexicon: str | None, counts: int) -> Counts | None:
    """Makes the part of a head that reads so many counts of a lexicon; None where there is no lexicon."""
    if bool(lexicon) != bool(counts):
        raise ValueError(f"lexicon={lexicon} with {counts} counts: expected both or none")
    return Counts(counts) if counts else None


def feed_forward(hidden_size: int, outputs: int, *, layers: int, dropout: float, counts: int = 0) -> nn.Sequential:
    """Stacks `layers` linear layers down to `outputs`, GELU between them, dropout before each.

    counts: how many numbers the first reads beside the hidden ones.
    """
    if layers < 1:
        raise UserError(f"head layers={layers}: expected at least 1")
    if not 0 <= dropout < 1:
        raise UserError(f"head dropout={dropout}: expected a probability below 1")
    stack: list[nn.Module] = []
    inputs = [hidden_size + counts, *[hidden_size] * (layers - 1)]
    for size in inputs[:-1]:
        stack += [nn.Dropout(dropout), nn.Linear(size, hidden_size), nn.GELU()]
    return nn.Sequential(*stack, nn.Dropout(dropout), nn.Linear(inputs[-1], outputs))
