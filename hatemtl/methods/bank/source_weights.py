"""Tells which source of a LoRA bank answers for which label: the gates' weights, averaged over the posts that carry it."""

import csv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
from hatemtl.saved_runs.writing import write_rows

COLUMNS = ("task", "label", "layer", "source", "weight", "posts")
EVERY = "*"  # in place of a label: all posts that carry the task's annotation


class Answers:
    """Sums, by task, of the gates' weights over posts, means over tokens: (labels + 1, layers, N), all posts first."""

    def __init__(self, module: nn.Module) -> None:
        self.banks = banks(module.get_submodule("encoder"))
        self.heads: Any = module.get_submodule("heads")
        self.sums: dict[str, Tensor] = {}
        self.posts: dict[str, Tensor] = {}
        self.seen: dict[str, Tensor] = {}  # of one forward, by layer, what its gate said

    def gated(self, gate: nn.Module, arguments: tuple[Tensor, Tensor], weights: Tensor, *, layer: str) -> None:
        self.seen.setdefault(layer, weights.detach())  # DeBERTa's layers read the posts first, then positions

    def end(self, module: nn.Module, arguments: tuple[Batch], logits: Any) -> None:
        if len(self.seen) < len(self.banks):
            return
        batch, means = arguments[0], []
        for layer in self.banks:
            mask = batch.attention_mask[..., None].to(self.seen[layer].dtype)
            # no product of matrices: autocast would round it
            means.append(batch.first((mask * self.seen[layer]).sum(dim=1) / mask.sum(dim=1)))
        weights = torch.stack(means, dim=1).double()  # (B, layers, N)
        for task, head in self.heads.items():
            member = _members(batch.targets[task], batch.has[task], head.space)
            self.sums[task] = self.sums.get(task, 0) + torch.einsum("bc,bln->cln", member, weights)
            self.posts[task] = self.posts.get(task, 0) + member.sum(dim=0)

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
    with ExitStack() as hooks:
        for layer, bank in answers.banks.items():
            hooks.enter_context(bank.gate.register_forward_hook(partial(answers.gated, layer=layer)))
        if answers.banks:
            hooks.enter_context(module.register_forward_pre_hook(lambda *_: answers.seen.clear()))
            hooks.enter_context(module.register_forward_hook(answers.end))
        yield answers
