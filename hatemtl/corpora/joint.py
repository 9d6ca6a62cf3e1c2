"""Joins several corpora under one label space for all: the baseline that a head for each task is to beat."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.errors import UserError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Joint(Corpus):
    """Corpora put end to end, with the column label: label 0 of one is label 0 of every other, whatever it means there.

    Beside it stands a column named after each corpus, with the same labels for its posts alone: a head that was trained on
    label is tested on one corpus with `tasks.joint.column=NAME`. Ids and splits are the corpora's, ids with NAME/ before.

    fraction and limit cut the whole; each corpus has its own as well.
    """

    corpora: Mapping[str, Corpus] = field(hash=False)  # equal ones are still told apart by being compared
    column: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.corpora:
            raise UserError("corpora={}: expected at least one; add corpus@tasks.joint.corpus.corpora.NAME=CORPUS")
        if "label" in self.corpora:
            raise UserError("corpora.label: this name is the joint column's; give the corpus another")

    def read(self) -> Posts:
        loaded = {name: corpus.load() for name, corpus in self.corpora.items()}
        columns = {name: self._labels(name, posts) for name, posts in loaded.items()}
        names = [str(i) for i in range(max(len(column.space) for column in columns.values()))]
        values, has = (np.concatenate(of) for of in zip(*((c.values, c.has) for c in columns.values()), strict=True))
        label = Column.of("multiclass", names, values, has)
        source = np.repeat(np.arange(len(loaded)), [len(posts) for posts in loaded.values()])
        own = {name: replace(label, has=label.has & (source == i)) for i, name in enumerate(loaded)}
        pairs = [pair for posts in loaded.values() for pair in posts.pairs or [()] * len(posts)]
        return Posts(
            [f"{name}/{post}" for name, posts in loaded.items() for post in posts.ids],
            [text for posts in loaded.values() for text in posts.texts],
            np.concatenate([posts.splits for posts in loaded.values()]),
            {"label": label, **own},
            pairs if any(pairs) else None,
        )

    def _labels(self, name: str, posts: Posts) -> Column:
        if self.column not in posts.columns:
            raise UserError(f"corpora.{name} has no column {self.column!r}: {did_you_mean(self.column, posts.columns)}")
        column = posts.columns[self.column]
        if column.space.kind != "multiclass":
            raise UserError(f"corpora.{name}: column {self.column!r} is {column.space.kind}, expected multiclass")
        return column
