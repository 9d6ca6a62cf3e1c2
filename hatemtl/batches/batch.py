"""Holds one step's posts as padded token ids, with each task's targets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hatemtl.answers import Answers

PAD_TO = 8  # the matrix units of a GPU take no smaller step
# what has a row a sequence, not a post
SEQUENCES = ("input_ids", "attention_mask", "token_type_ids", "prefix", "answerable")


def padded(lengths: np.ndarray) -> np.ndarray:
    """Pads lengths in tokens as a batch on a GPU pads them, up to the next multiple of `PAD_TO`."""
    return -(-lengths // PAD_TO) * PAD_TO


@dataclass
class Batch:
    """B posts in S sequences of T token ids with the targets of every task.

    A post is one sequence, or one for each of its choices; all but choices are read off its first.
    input_ids, attention_mask: (S, T) int64.
    targets[task]: (B,) int64 for multiclass, ordinal and choice, (B,) float32 for score, (B, C) float32 for multilabel,
        (B, T) int64 for masked, `IGNORED` where a token does not count, and (B, T + W) float32 for tokens: behind the tokens
        stand those words that were cut off. A post without that task's annotation holds zeros (`IGNORED` for tokens and
        masked); `Answers` for span.
    has[task]: (B,) bool, whether the post carries that task's annotation.
    posts: (B,) int64, where each post stands in the datamodule's pool.
    owner: (S,) int64, whose sequence each is, in order; None where every post is one.
    token_type_ids: (S, T) int64, 1 in a sequence's second segment; None where there is none, or the encoder knows none.
    prefix: (S, T, D), what the encoder's frozen lowest layers make of the posts, where that was computed beforehand.
    tokens: how many of the S times T places hold a token; a plain number, so that counting waits for no GPU.
    only: the one task that the batch is stepped for, where losses are stepped apart; None for all.
    parts: where several batches make an optimizer step, the share that is here of what each task's loss is a mean of.
    part: likewise, of the posts that the step has for this task, or for all.
    answerable: (S, T) bool, whether a token is of a second text, where a task reads answers off those; else None.
    unlabelled: (B,) bool, whether a post is there for regularisers alone; None where none is.
    counts[task]: (B, C) float32, of tasks with a lexicon, what it counts in each post.
    shares[task]: (B, C) float32, of tasks that learn from them, the share of annotators who gave each label.
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: dict[str, Any]
    has: dict[str, Tensor]
    posts: Tensor
    owner: Tensor | None = None
    token_type_ids: Tensor | None = None
    prefix: Tensor | None = None
    tokens: int = -1  # counted from the mask if not given
    only: str | None = None
    parts: Mapping[str, float] | None = None
    part: float = 1.0
    shares: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    answerable: Tensor | None = None
    unlabelled: Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens < 0:
            self.tokens = int(self.attention_mask.sum())

    def __len__(self) -> int:
        return self.posts.shape[0]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Gives the tensors that the encoder reads, by keyword."""
        ids = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return ids if self.token_type_ids is None else {**ids, "token_type_ids": self.token_type_ids}

    def learned(self, task: str) -> Tensor:
        """Gives what training reads of a task: its targets, or the shares of annotators in their place."""
        return self.shares.get(task, self.targets[task])

    def first(self, values: Tensor) -> Tensor:
        """Picks, of values a sequence, (S, ...), those of each post's first, (B, ...)."""
        return values if self.owner is None else values[self._starts(self.owner)[:-1]]

    def by_post(self, values: Tensor, choices: int) -> Tensor:
        """Lays values a sequence, (S,), out as one a choice of each post, (B, choices); -inf where the post has fewer."""
        owner = torch.arange(len(self), device=values.device) if self.owner is None else self.owner
        starts = self._starts(owner)
        places = starts[:-1, None] + torch.arange(choices, device=values.device)
        there = places < starts[1:, None]
        return values[places.clamp(max=len(values) - 1)].masked_fill(~there, -torch.inf)

    def some(self, begin: int, end: int) -> "Batch":
        """Gives the posts from `begin` up to `end`, with all their sequences."""
        rows = mine = slice(begin, end)
        if self.owner is not None:
            starts = self._starts(self.owner)
            mine = slice(int(starts[begin]), int(starts[min(end, len(self))]))
        return replace(
            self,
            **{name: value[mine] for name, value in vars(self).items() if name in SEQUENCES and value is not None},
            targets={task: values[rows] for task, values in self.targets.items()},
            has={task: there[rows] for task, there in self.has.items()},
            shares={task: values[rows] for task, values in self.shares.items()},
            counts={task: values[rows] for task, values in self.counts.items()},
            unlabelled=None if self.unlabelled is None else self.unlabelled[rows],
            posts=self.posts[rows],
            owner=None if self.owner is None else self.owner[mine] - begin,
            tokens=-1,
        )

    def labelled(self) -> "Batch":
        """Leaves out posts that are there for regularisers alone, which come last; all stay where there are no others."""
        there = len(self) if self.unlabelled is None else int((~self.unlabelled).sum())
        return replace(self.some(0, there), unlabelled=None) if 0 < there < len(self) else self

    def _starts(self, owner: Tensor) -> Tensor:
        """(B + 1,) where the sequences of each post start, and where the last ends; found without waiting for a GPU."""
        return torch.searchsorted(owner, torch.arange(len(self) + 1, device=owner.device))

    def to(self, device: torch.device | str) -> "Batch":
        """Moves the batch to another device; to a GPU without waiting for the copy."""
        non_blocking = torch.device(device).type == "cuda"
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Copies the batch to page-locked memory, for the DataLoader."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        def changed(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: changed(item) for key, item in value.items()}
            if isinstance(value, Answers):
                return value.each(change)
            return change(value) if isinstance(value, Tensor) else value

        return Batch(**{name: changed(value) for name, value in vars(self).items()})
