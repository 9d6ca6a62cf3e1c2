"""Gives what judges a network beside its heads' own metrics: predictions and columns of posts in, rows of results out."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np

from hatemtl.corpora.base import Column, Posts
from hatemtl.errors import UserError
from hatemtl.labels import About, Kind, LabelSpace

Stage = Literal["val", "test"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Behind = Literal["low", "high", "posts", "communities"]
BEHIND: tuple[Behind, ...] = get_args(Behind)
UNJUDGED: tuple[About, ...] = ("masked tokens", "answers")  # tasks about these are judged by their heads alone


@dataclass(frozen=True)
class Row:
    """One value of results.csv. label: the one label, or group, that it is of; None where it is of all.

    behind: of what stands behind the figure of this name, its interval's end or how many it is of; None of a figure.
    """

    stage: Stage
    task: str
    name: str
    label: str | None
    value: float
    behind: Behind | None = None

    @property
    def metric(self) -> str:
        """Its name in results.csv.

        >>> Row("test", "target", "f1", "women", 0.5).metric, Row("val", "label", "accuracy", None, 0.5, "low").metric
        ('test_target_f1_women', 'val_label_accuracy__low')
        """
        figure = "_".join((self.stage, self.task, self.name, *(() if self.label is None else (self.label,))))
        return figure if self.behind is None else f"{figure}__{self.behind}"


@dataclass(frozen=True)
class Predicted:
    """Gives what the head of one task said of the N posts of a stage that carry its annotation.

    posts: (N,) int64, where each stands among all posts of the run; tasks of one corpus share them.
    scores: (N, C) float32 as `Head.scores` gives them; for tokens (N,) of objects, each with one value a word.
    gold: as `Column.values`. threshold: the score from which a label or word is predicted, of the heads that have one; one
        for all, or (C,) float32, of words (1,).
    """

    stage: Stage
    space: LabelSpace
    posts: np.ndarray
    scores: np.ndarray
    gold: np.ndarray
    threshold: float | np.ndarray = 0.5


@dataclass(frozen=True)
class Needs:
    """Gives what an evaluation reads beside predictions: by task, columns of its corpus and the kind that each must be of.

    reader: whether it asks the network itself as well, which a search for a merge's weights does not hand out.
    """

    columns: Mapping[str, Mapping[str, Kind]] = field(default_factory=dict)
    reader: bool = False


class Tokens(NamedTuple):
    """Holds the tokens of one post as the encoder reads them. words: (T,), the word that each is of, -1 of special ones.

    cut: the word of each token that max_length cuts off, in their order.
    """

    ids: np.ndarray
    words: np.ndarray
    cut: np.ndarray


class Reader(Protocol):
    """Asks the network that is judged, beside its predictions: of other posts, of some tokens of a post alone, or why.

    through: `network.forward.Forward`, the way from a batch to hidden states and logits. pad: the id of the padding token.
    """

    @property
    def through(self) -> Any: ...

    @property
    def pad(self) -> int: ...

    def predicted(self, stage: Stage) -> Mapping[str, Predicted]:
        """Gives what each task's head says of the posts of a stage, as of the test; computed when it is first asked for."""
        ...

    def scores(self, task: str, posts: Posts) -> np.ndarray:
        """Gives what a task's head says of other posts, (N, C)."""
        ...

    def tokens(self, post: int) -> Tokens:
        """The tokens of a post of the run, by its place in `Predicted.posts`. Raises UserError of one with second texts."""
        ...

    @property
    def paired(self) -> np.ndarray:
        """(posts of the run,) bool, whether each is read with second texts."""
        ...

    def named(self, post: int) -> tuple[str, int]:
        """The id of a post of the run, and how many words it has."""
        ...

    def text(self, post: int) -> str:
        """Gives what a post of the run says, without second texts."""
        ...

    def batches(self, ids: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, Any]]:
        """Batches of like length of sequences of token ids, each (T,), with the places of theirs in `ids`, (B,)."""
        ...

    def inference(self) -> AbstractContextManager[None]:
        """Inside, batches pass the network as in a test: LoRAs merged, no gradients, in the run's number format."""
        ...

    def gradients(self) -> AbstractContextManager[None]:
        """Inside, `through.logits` of embeddings gives gradients of these, and of nothing else: `Forward.gradients`."""
        ...

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Gives what was computed under this key, or is now: several evaluations share it."""
        ...


class Beforehand(NamedTuple):
    """Holds what is known of a test before anything is trained, or else before anything is tested.

    posts: by task, where each post that will be tested stands among all posts of the run, as `Predicted.posts`. columns: by
    task and name those in `Needs`, of these posts, in their order. validation: by task, how many posts of the val split
    carry its annotation. reader: of the network as it is now; None where `Needs` does not name it.
    """

    posts: Mapping[str, np.ndarray]
    columns: Mapping[str, Mapping[str, Column]]
    validation: Mapping[str, int]
    reader: Reader | None = None


def check_one_label(spaces: Mapping[str, LabelSpace], task: str, evaluation: str) -> None:
    """Raises UserError where the task that an evaluation's key `task` names is not there, or has not one label a post."""
    key = f"evaluations.{evaluation}.task=NAME"
    if task not in spaces:
        raise UserError(f"no task {task!r} among tasks=[{','.join(spaces)}]; type {key}, or evaluations=[]")
    if (kind := spaces[task].kind) != "multiclass":
        raise UserError(
            f"expected a task with one label a post (multiclass), and {task!r} is {kind}; type {key} of another, or "
            f"evaluations=[]"
        )


def check_some(spaces: Mapping[str, LabelSpace], carries: Sequence[str], expected: str) -> None:
    """Raises UserError, which says what is expected, where no task's posts carry so many labels: "one", "any"."""
    if not any(space.carries in carries for space in spaces.values()):
        kinds = ", ".join(f"{task!r} is {space.kind}" for task, space in spaces.items())
        raise UserError(f"expected {expected}, and {kinds}; put one into tasks=[...]")


class Evaluation(Protocol):
    """Judges predictions: a frozen dataclass with its settings.

    scalar: the name of the row of which less is better, that a search for a merge's weights may make small; None for none.
    """

    @property
    def needs(self) -> Needs: ...

    @property
    def scalar(self) -> str | None: ...

    def check(self, spaces: Mapping[str, LabelSpace], test: Beforehand | None = None) -> None:
        """Raises UserError where the tasks, whose labels are given, have nothing to be judged, or not the one it is for.

        test: None of a call before the network stands. With it, where `rows` would refuse what is tested, so that no
        training is lost. A message that begins with one of its settings, as `layer=9: ...`, is told with the whole key.
        """
        ...

    def rows(
        self, predictions: Mapping[str, Predicted], posts: Mapping[str, Mapping[str, Column]], reader: Reader | None = None
    ) -> list[Row]:
        """The rows of this stage. posts: by task and name the columns in `needs`, of the predicted posts, in their order.

        reader: None where `needs` does not name it.
        """
        ...


@runtime_checkable
class Listing(Protocol):
    """An evaluation that leaves tables beside the rows of the test: CSV files of the folder, which it names itself."""

    def tables(
        self, predictions: Mapping[str, Predicted], posts: Mapping[str, Mapping[str, Column]], reader: Reader | None = None
    ) -> Mapping[str, list[dict[str, object]]]:
        """Rows by column, by the name of their file, the same columns in each row of it; one of them is `task`.

        Given: as of `Evaluation.rows`.
        """
        ...
