"""Packs the posts of a padded batch one behind the other, in groups of like length: next to no padding is computed."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

# Places of padding that cost as much as one more group. With fewer, groups would have several times as many shapes, for each
# of which oneDNN makes code; with 48, padding is still next to nothing.
PADDING = 48
# Posts times squared length of a group at most, unless of one post: what attention computes of it shall stay in the cache.
AREA = 2**17
# oneDNN makes code for each number of rows, and keeps it, and computes blocks of them. So it is a multiple of 4, and has
# some five digits of two: one of sixteen numbers between two powers of two, for a sixteenth more rows at most.
ROWS, FINEST = 4, 32


def waits(device: torch.device) -> bool:
    """Tells whether whoever looks at what is on this device has to wait for it."""
    return device.type != "cpu"


@dataclass(frozen=True)
class Group:
    """Rows begin:end hold n posts of T places. mask: (n or 1, 1, 1 or T, T) float32, 0 for a token, as attention adds it."""

    begin: int
    end: int
    mask: Tensor

    @property
    def length(self) -> int:
        return self.mask.shape[-1]

    @cached_property
    def factor(self) -> Tensor | None:
        """Gives the factor of an exponential where the mask would be added to its exponent; None where it is 1."""
        return self.mask.exp() if self.mask.any() else None


@dataclass(frozen=True)
class Posts:
    """The places of a padded batch's posts (B, T) when they stand one behind the other, in M rows: see `ROWS`.

    groups: of like length, each as long as its longest. packing: which place each row holds (M,), the rows that hold no
    token, which row holds each place (B·T,), any at padding, and where that is; None where the batch stays as it is.
    """

    shape: tuple[int, ...]
    groups: list[Group]
    packing: tuple[Tensor, ...] | None = None

    @staticmethod
    def of(hidden: Tensor, mask: Tensor | None) -> "Posts":
        """Finds those of a batch's hidden states (B, T, D).

        mask: (B, 1, 1, T), or the same for every place that reads, (B, 1, T, T), 0 for a token, or True. With another, or on
        a GPU, which would be waited for, the batch stays as it is.
        """
        posts, length, _ = hidden.shape
        if mask is not None and mask.dtype is torch.bool:  # as transformers 5 gives it to sdpa
            mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, torch.finfo(torch.float32).min)
        mask = hidden.new_zeros(1, 1, 1, length, dtype=torch.float32) if mask is None else mask.float()
        if mask.shape[2] > 1 and not waits(hidden.device) and bool((mask == mask[:, :, :1]).all()):
            mask = mask[:, :, :1]  # transformers 5 gives the wide one
        if waits(hidden.device) or mask.shape != (posts, 1, 1, length):
            return Posts((posts, length), [Group(0, posts * length, mask)])
        real = (mask.view(posts, length) == 0).numpy()
        if posts == 1 and real.all():  # to move it would take longer than it saves
            return Posts((posts, length), [Group(0, length, mask)])
        lengths = np.where(real, np.arange(1, length + 1), 1).max(axis=1)
        order = np.argsort(lengths, kind="stable")
        groups: list[Group] = []
        places = []
        for group in np.split(order, _cuts(lengths[order])):
            longest, begin = int(lengths[group[-1]]), groups[-1].end if groups else 0
            groups.append(Group(begin, begin + len(group) * longest, mask[group, ..., :longest]))
            places.append((group[:, None] * length + np.arange(longest)).reshape(-1))
        rows = np.concatenate(places)
        sources, tokens = np.zeros(posts * length, dtype=np.int64), real.reshape(-1)
        sources[rows] = np.arange(len(rows))
        rest = -len(rows) % max(ROWS, 2 ** len(rows).bit_length() // FINEST)
        nothing = np.append(np.flatnonzero(~tokens[rows]), np.arange(len(rows), len(rows) + rest))
        found = np.append(rows, np.zeros(rest, dtype=np.int64)), nothing, sources, np.flatnonzero(~tokens)
        return Posts((posts, length), groups, tuple(map(torch.from_numpy, found)))

    def pack(self, hidden: Tensor) -> Tensor:
        """Packs (B, T, D) to (M, D), zero where no token is."""
        hidden = hidden.reshape(-1, hidden.shape[-1])
        if self.packing is None:
            return hidden
        places, nothing, *_ = self.packing
        return hidden.index_select(0, places).index_fill_(0, nothing, 0.0)

    def unpack(self, x: Tensor) -> Tensor:
        """Unpacks (M, D) to (B, T, D), zero at padding."""
        if self.packing is not None:
            *_, sources, padding = self.packing
            x = x.index_select(0, sources).index_fill_(0, padding, 0.0)
        return x.view(*self.shape, x.shape[-1])


def _cuts(lengths: np.ndarray) -> list[int]:
    """Gives where groups but the first begin, among lengths (N,) from short to long: least padding, `PADDING` a group."""
    longest, counts = (found.tolist() for found in np.unique(lengths, return_counts=True))
    ends = [0, *accumulate(counts)]
    best: list[tuple[float, list[int]]] = [(0, [])]  # for the posts of so many lengths: its cost, and where its groups end
    for j, length in enumerate(longest, 1):
        least, found, padding, most = math.inf, [], 0, max(1, AREA // length**2)
        for i in range(j - 1, -1, -1):  # a group of the lengths from i on
            padding += counts[i] * (length - longest[i])
            if padding + PADDING >= least:
                break
            posts = ends[j] - ends[i]
            parts = -(-posts // most)
            cost = best[i][0] + padding + PADDING * parts
            if cost < least:
                least, found = cost, best[i][1] + [ends[i] + posts * part // parts for part in range(1, parts + 1)]
        best.append((least, found))
    return best[-1][1][:-1]
