"""Tells which source of a LoRA bank answers for which label: the gates' weights, averaged over the posts that carry it."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.batches.batch import Batch
from hatemtl.harmless import unguarded
from hatemtl.labels import LabelSpace
from hatemtl.methods.bank.lora_bank import banks
from hatemtl.saved_runs.saved_run import write_rows

COLUMNS = ("task", "label", "layer", "source", "weight", "posts")
EVERY = "*"  # in place of a label: all posts that carry the task's annotation


class Answers:
    """Sums, by task, of the gates' weights over posts: (labels + 1, layers, N) with all posts first, and how many they are.

    A post's weights are the mean over its tokens. `begin` and `end` are hooks on the network, `gated` is one on every gate.
    """

    def __init__(self, module: nn.Module) -> None:
        self.banks = banks(module.get_submodule("encoder"))
        self.heads: Any = module.get_submodule("heads")
        self.sums: dict[str, Tensor] = {}
        self.posts: dict[str, Tensor] = {}
        self.batch: Batch | None = None
        self.seen: dict[str, Tensor] = {}

    def begin(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.batch, self.seen = arguments[0], {}

    def gated(self, gate: nn.Module, arguments: tuple[Tensor, Tensor], weights: Tensor, *, layer: str) -> None:
        if self.batch is None or layer in self.seen:  # DeBERTa's layers read the posts first, then positions
            return
        mask = self.batch.attention_mask[..., None].to(weights.dtype)
        mean = (mask * weights.detach()).sum(dim=1) / mask.sum(dim=1)  # no product of matrices: autocast would round it
        self.seen[layer] = self.batch.first(mean)

    def end(self, module: nn.Module, arguments: tuple[Any, ...], logits: Any) -> None:
        if self.batch is None or len(self.seen) < len(self.banks):
            return
        weights = torch.stack([self.seen[layer] for layer in self.banks], dim=1).double()  # (B, layers, N)
        for task, head in self.heads.items():
            member = _members(self.batch.targets[task], self.batch.has[task], head.space)
            self.sums[task] = self.sums.get(task, 0) + torch.einsum("bc,bln->cln", member, weights)
            self.posts[task] = self.posts.get(task, 0) + member.sum(dim=0)
        self.batch = None

    def rows(self) -> list[dict[str, Any]]:
        """Gives a row a task, label, layer and source; labels that no post carries have none."""
        rows = []
        for task, sums in self.sums.items():
            labels = [EVERY, *self.heads[task].space.names]
            for i, (label, posts) in enumerate(zip(labels, self.posts[task].tolist(), strict=False)):
                for j, layer in enumerate(self.banks if posts else ()):
                    means = (sums[i, j] / posts).tolist()
                    for source, mean in zip(self.banks[layer].sources, means, strict=True):
                        rows.append(dict(zip(COLUMNS, (task, label, layer, source, repr(mean), int(posts)), strict=True)))
        return rows

    def write(self, path: Path) -> None:
        """Writes the rows as CSV; those of other tasks that the file holds stay. Nothing where there is no bank."""
        rows = self.rows()
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                before = [{key: unguarded(cell) for key, cell in row.items()} for row in csv.DictReader(file)]
            rows = [row for row in before if row["task"] not in self.sums] + rows
        write_rows(path, rows)


def _members(targets: Tensor, has: Tensor, space: LabelSpace) -> Tensor:
    """(B, 1 + C) 1 where the post counts: for all posts of the task, and for each label; C = 0 where no post has labels."""
    every = has[:, None].double()
    if space.carries == "any":
        return torch.cat([every, every * (targets > 0.5)], dim=1)
    if space.carries == "one":
        return torch.cat([every, every * F.one_hot(targets.long(), len(space))], dim=1)
    return every


@contextmanager
def watched(module: nn.Module) -> Iterator[Answers]:
    """Sums up the gates' weights, inside, for every batch that the network is called with, if it has a LoRA bank."""
    answers = Answers(module)
    hooks = [bank.gate.register_forward_hook(partial(answers.gated, layer=layer)) for layer, bank in answers.banks.items()]
    if answers.banks:
        hooks += [module.register_forward_pre_hook(answers.begin), module.register_forward_hook(answers.end)]
    try:
        yield answers
    finally:
        for hook in hooks:
            hook.remove()
