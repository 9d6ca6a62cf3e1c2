"""A task: what is to be predicted, from which corpus, and by what kind of head."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.errors import UserError, did_you_mean
from hatemtl.heads.base import Head
from hatemtl.labels import Part


@dataclass(frozen=True, kw_only=True)
class Task:
    """A column of a corpus and the head that predicts it.

    head: makes the head, given hidden_size and space. mask_pattern: "i n" keeps part i of n of a multilabel column.
    weight: the task's weight in the loss.
    """

    corpus: Corpus
    column: str
    head: Callable[..., Head]
    mask_pattern: str | None
    weight: float

    def __post_init__(self) -> None:
        if self.mask_pattern is not None:
            Part.parse(self.mask_pattern)
        if self.weight < 0:
            raise UserError(f"task weight={self.weight}: expected 0 or more")

    @property
    def head_settings(self) -> dict[str, Any]:
        """What the head is made with, by keyword."""
        return dict(self.head.keywords) if isinstance(self.head, partial) else {}

    def annotations(self, posts: Posts) -> Column:
        """This task's column of the corpus, cut to its part."""
        if self.column not in posts.columns:
            raise UserError(f"column={self.column!r} is not in the corpus: {did_you_mean(self.column, posts.columns)}")
        column = posts.columns[self.column]
        if self.mask_pattern is None:
            return column
        part = Part.parse(self.mask_pattern)
        space = column.space.part(part)
        return replace(column, space=space, values=np.ascontiguousarray(column.values[:, part.indices(len(column.space))]))
