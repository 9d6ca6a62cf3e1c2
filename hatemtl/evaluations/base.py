"""Gives what judges a network beside its heads' own metrics: predictions and columns of posts in, rows of results out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import numpy as np

from hatemtl.corpora.base import Column
from hatemtl.labels import Kind, LabelSpace

Stage = Literal["val", "test"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class Row:
    """One value of results.csv. label: the one label, or group, that it is of; None where it is of all."""

    stage: Stage
    task: str
    name: str
    label: str | None
    value: float

    @property
    def metric(self) -> str:
        """Its name in results.csv.

        >>> Row("test", "target", "f1", "women", 0.5).metric, Row("val", "label", "accuracy", None, 0.5).metric
        ('test_target_f1_women', 'val_label_accuracy')
        """
        return "_".join((self.stage, self.task, self.name, *(() if self.label is None else (self.label,))))


@dataclass(frozen=True)
class Predicted:
    """Gives what the head of one task said of the N posts of a stage that carry its annotation.

    posts: (N,) int64, where each stands among all posts of the run; tasks of one corpus share them.
    scores: (N, C) float32 as `Head.scores` gives them; for tokens (N,) of objects, each with one value a word.
    gold: as `Column.values`. threshold: the score from which a label or word is predicted, of the heads that have one.
    """

    stage: Stage
    space: LabelSpace
    posts: np.ndarray
    scores: np.ndarray
    gold: np.ndarray
    threshold: float = 0.5


@dataclass(frozen=True)
class Needs:
    """Gives what an evaluation reads beside predictions: by task, columns of its corpus and the kind that each must be of.

    gradients: whether of its scores by the embeddings of tokens.
    """

    columns: Mapping[str, Mapping[str, Kind]] = field(default_factory=dict)
    gradients: bool = False


class Evaluation(Protocol):
    """Judges predictions: a frozen dataclass with its settings.

    scalar: the name of the row of which less is better, that a search for a merge's weights may make small; None for none.
    """

    @property
    def needs(self) -> Needs: ...

    @property
    def scalar(self) -> str | None: ...

    def check(self, spaces: Mapping[str, LabelSpace]) -> None:
        """Raises UserError where the tasks, whose labels are given, have nothing to be judged, or not the one it is for."""
        ...

    def rows(self, predictions: Mapping[str, Predicted], posts: Mapping[str, Mapping[str, Column]]) -> list[Row]:
        """The rows of this stage. posts: by task and name the columns in `needs`, of the predicted posts, in their order."""
        ...
