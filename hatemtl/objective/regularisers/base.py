"""Defines a regulariser: terms beside the losses, of which no weighting of tasks knows, or another say in training."""

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from hatemtl.errors import UserError
from hatemtl.heads.base import masked_mean
from hatemtl.saved_runs.saved_run import SavedRun


class Passes(Protocol):
    """A way through the network: `network.forward.Forward`, as a regulariser sees it."""

    encoder: Any
    heads: Any
    weights: Mapping[str, float]
    learns: bool
    progress: float
    by_task: bool
    watched: Collection[int]

    def __call__(
        self, batch: Any, tasks: Iterable[str] | None = None, embeddings: Tensor | None = None
    ) -> dict[str, Tensor]: ...
    def encode(self, batch: Any, embeddings: Tensor | None = None) -> Tensor: ...
    def attention_by_head(self, batch: Any, *, layer: int) -> Tensor: ...
    def embed(self, batch: Any) -> Tensor: ...
    def read(self, hidden: Tensor, batch: Any, tasks: Iterable[str]) -> dict[str, Tensor]: ...
    def without_dropout(self) -> AbstractContextManager[None]: ...
    def gradients(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """Tells a regulariser of the run whose training it has a say in.

    corpora: the corpus of each task, by a number from 0 on. teacher: gives the network of one of the `saved_runs`, in which
    nothing is trained; raises UserError where it reads other tokens than this run's. paired: the tasks whose posts are read
    with second texts.
    """

    seed: int
    corpora: Mapping[str, int]
    teacher: Callable[[SavedRun], Passes]
    paired: Collection[str] = ()


class Regulariser(Protocol):
    """Has a say in training beside the losses. A class of it needs no verb but those that it says something by.

    weight: of what it adds; of a weight of 0 neither `terms` nor `mixed` is asked for. of_any_post: whether they say
    something of posts that no task annotates, so that unlabelled ones can join the batches. by_passes: whether they ask the
    network for whole passes alone, so that its weights can be split over processes.
    """

    weight: float
    of_any_post: ClassVar[bool] = False
    by_passes: ClassVar[bool] = False

    def saved_runs(self) -> list[SavedRun]:
        """Lists the saved runs that it asks. Raises UserError where there is none."""
        return []

    def check(self, forward: Passes) -> None:
        """Raises UserError where on this network the terms would say nothing."""
        return

    def begin(self, forward: Passes, run: Run) -> "Regulariser":
        """Gives who works in this run: itself, or, where something is learned or kept, a module with that as its `state`."""
        return self

    @property
    def state(self) -> nn.Module:
        """Holds what is learned, at the heads' rate, or kept: it stands in the checkpoint, not in the saved run."""
        return nn.Module()

    def terms(self, forward: Passes, batch: Any, hidden: Tensor | None, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gives scalars by name: means, which of an optimizer step's several batches count by their posts.

        hidden: (S, T, D), None where each task has its own. logits: by task, as in training.
        """
        return {}

    def mixed(self, forward: Passes, batch: Any, logits: Mapping[str, Tensor]) -> dict[str, tuple[float, Tensor]]:
        """Gives, by task, the share of its loss that stays and a scalar: weighed as its loss is share·loss + scalar."""
        return {}

    def after_update(self, forward: Passes) -> None:
        """Is told that an optimizer step has moved the weights."""
        return

    def evaluating(self, forward: Passes) -> AbstractContextManager[None]:
        """Lets the network be, inside, as it is to be evaluated and kept while it is trained."""
        return nullcontext()


def expect(fits: bool, key: str, value: object, expected: str) -> None:
    """Raises UserError unless a key's value fits; key: NAME.KEY, as typed behind `regulariser.`."""
    if not fits:
        raise UserError(f"regulariser.{key}={value}: expected {expected}")


def over_posts(values: Mapping[str, Tensor], batch: Any, weights: Mapping[str, float]) -> Tensor:
    """Sums over tasks, by their weights, the mean of values (B,) over a task's annotated posts and over unlabelled ones."""
    more = False if batch.unlabelled is None else batch.unlabelled
    means = {task: masked_mean(each, (batch.has[task] | more).float()) for task, each in values.items()}
    return torch.stack([weights[task] * mean for task, mean in means.items()]).sum()


def drops(forward: Passes) -> bool:
    """Tells whether the encoder, its adapters among it, has dropout in training."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in forward.encoder.modules())


def check_no_guessing(forward: Passes, name: str) -> None:
    """Raises UserError where a task guesses masked tokens, of whose predictions nothing is said."""
    for task, head in forward.heads.items():
        if head.space.about == "masked tokens":
            raise UserError(f"regulariser=[{name}]: task {task!r} guesses tokens; leave it out of tasks=[...]")
