"""Adds up losses over an epoch: of each task, of the labels of multilabel ones, and of regularisers' terms."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hatemtl.heads.base import Head
from hatemtl.machine.crew import Crew

Sum = tuple[Tensor, Tensor | float]
LEAST = 1e-30  # answers: what is divided by where there are none


class EpochLosses:
    """Holds, by name, the sum of losses so far, (), or (C,) of labels, and of how many answers; no sum waits for a GPU.

    head: gives a task's head. Names begin with their stage, train or val.
    """

    def __init__(self, head: Callable[[str], Head]) -> None:
        self.head = head
        self.sums: dict[str, Sum] = {}

    def forget(self, stage: str) -> None:
        """Begins the sums of a stage anew."""
        self.sums = {name: some for name, some in self.sums.items() if not name.startswith(f"{stage}_")}

    def add(self, name: str, value: Tensor, posts: Tensor | int) -> None:
        """Adds a mean loss over so many posts, or answers in them."""
        total, count = self.sums.get(name, (0.0, 0))
        self.sums[name] = total + value.detach() * posts, count + posts

    @torch.no_grad()
    def add_tasks(
        self,
        stage: str,
        losses: Mapping[str, Tensor],
        logits: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        has: Mapping[str, Tensor],
    ) -> None:
        """Adds the loss of each task in a batch, and those of the labels of a multilabel one."""
        for task, value in losses.items():
            head, given = self.head(task), (logits[task], targets[task], has[task])
            self.add(f"{stage}_{task}_loss", value, head.answers(*given))
            if head.space.carries == "any":
                self.add(f"{stage}_{task}_losses", head.losses_by_label(*given)[0], has[task].sum())

    def means(self, stage: str, crew: Crew) -> dict[str, Tensor]:
        """Gives the means of a stage so far, over the posts of all processes, by name."""
        means: dict[str, Tensor] = {}
        for name, (total, posts) in self._of_all(stage, crew).items():
            mean = total / (posts.clamp(min=LEAST) if isinstance(posts, Tensor) else posts)
            if mean.ndim:
                labels = self.head(name.removeprefix(f"{stage}_").removesuffix("_losses")).space.names
                means |= {f"{name.removesuffix('es')}_{label}": value for label, value in zip(labels, mean, strict=True)}
            else:
                means[name] = mean
        return means

    def _of_all(self, stage: str, crew: Crew) -> dict[str, Sum]:
        mine = {name: some for name, some in self.sums.items() if name.startswith(f"{stage}_")}
        if crew.world == 1:
            return mine
        whole: dict[str, Sum] = {}
        for said in crew.gather([(name, total.cpu(), float(posts)) for name, (total, posts) in mine.items()]):
            for name, total, posts in said:
                before, count = whole.get(name, (0.0, 0))
                whole[name] = before + total, max(count + posts, LEAST)
        return whole
