"""Binds a column of a corpus to the head that predicts it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from hatemtl.corpora.base import Column, Corpus, Posts, Split
from hatemtl.corpora.cells import as_column
from hatemtl.corpora.lexicon import Lexicon
from hatemtl.corpora.table import Table
from hatemtl.errors import UserError, did_you_mean
from hatemtl.heads.base import Head
from hatemtl.heads.losses import Loss
from hatemtl.labels import Kind, LabelSpace, Part, name_of


@dataclass(frozen=True, kw_only=True)
class Task:
    """A column of a corpus and the head that predicts it.

    column: its name; of a user's table also several names, each a label of a multilabel task; None for a masked head.
    head: makes the head, given hidden_size and space. weight: the task's weight in the loss.
    by_label: whether the weighting sees a loss a label, of a multilabel task, in place of their mean.
    names: the labels of a table's column, in their order; None finds them in the table.
    labels: rewrites a column of labels as {new name: [old names]}, of which the column may lack some, in this order. Of
        several labels a post, a new one holds the largest of its old ones, and those that nobody names are left out; of
        one label a post, a post whose label nobody names is not annotated. None leaves all as they are. Shares of annotators
        go the same way; of one label a post they are summed, and what is left makes 1 again.
    mask_pattern: "i n" keeps part i of n of a multilabel column, after it was rewritten.
    """

    corpus: Corpus
    column: str | Sequence[str] | None
    head: Callable[..., Head]
    names: Sequence[str | float | bool] | None = None
    labels: Mapping[str, Sequence[str]] | None = None
    mask_pattern: str | None = None
    weight: float = 1.0
    by_label: bool = False

    def __post_init__(self) -> None:
        guesses = LabelSpace(self.kind, ("",)).about == "masked tokens"
        if guesses and self.column is not None:
            raise UserError(f"column={self.column!r}: a masked head guesses tokens of the text; type tasks.TASK.column=null")
        if not guesses and not self.column:
            raise UserError("column=null: expected the column to be predicted; type tasks.TASK.column=NAME")
        if self.mask_pattern is not None:
            Part.parse(self.mask_pattern)
        if not 0 <= self.weight < float("inf"):
            raise UserError(f"weight={self.weight}: expected a number, 0 or more; type tasks.TASK.weight=1")
        if self.by_label and LabelSpace(self.kind, ("",)).carries != "any":
            raise UserError(
                f"by_label=true is for a multilabel head, and this is {self.kind}; type tasks.TASK.by_label=false"
            )
        if self.labels is not None and not (self.labels and all(self.labels.values())):
            raise UserError(f"labels={dict(self.labels)}: expected {{new name: [old names]}}")

    @property
    def head_settings(self) -> dict[str, Any]:
        return dict(self.head.keywords) if isinstance(self.head, partial) else {}

    @property
    def lexicon(self) -> Lexicon | None:
        """Reads the word list whose counts the head reads, if it has one. Raises UserError where it is none."""
        path = self.head_settings.get("lexicon")
        return None if path is None else Lexicon.read(path)

    def made_head(self, hidden_size: int, space: LabelSpace, **more: Any) -> Head:
        """Makes the head for these labels."""
        lexicon = self.lexicon
        counts = {} if lexicon is None else {"counts": len(lexicon.categories)}
        return self.head(hidden_size=hidden_size, space=space, **counts, **more)

    @property
    def kind(self) -> Kind:
        head: Any = self.head.func if isinstance(self.head, partial) else self.head
        return head.kind

    @property
    def reads_shares(self) -> bool:
        """Tells whether the head learns from the shares of annotators who gave each label."""
        loss = self.head_settings.get("loss")
        return isinstance(loss, Loss) and loss.of_shares

    def knowing(self, space: LabelSpace) -> "Task":
        """Gives the task with the labels of a saved run instead of those that a table shows, which may lack some.

        Those of a part or of rewritten labels stay inferred, since a saved run does not hold the table's own names.
        """
        inferred = isinstance(self.corpus, Table) and isinstance(self.column, str) and self.names is None
        whole = self.labels is None and self.mask_pattern is None
        return replace(self, names=space.names) if inferred and whole else self

    def annotations(self, posts: Posts) -> Column:
        """Gives this task's column of the corpus, its labels rewritten and cut to its part."""
        column = self._column(posts)
        if not self.reads_shares:
            column = replace(column, shares=None)
        elif column.shares is None:
            told = [name for name, of in posts.columns.items() if of.shares is not None and of.space.kind == self.kind]
            raise UserError(
                f"column={self.column!r}: soft targets need the share of annotators for each label, and this corpus "
                f"tells {'those of ' + ', '.join(told) if told else 'none'}; type tasks.TASK.head.loss=null"
            )
        column = column if self.labels is None else _rewritten(column, self.labels)
        for name in map(name_of, self.head_settings.get("label_weights") or ()):
            if name not in column.space.names:  # those of another part are there, so that one command serves all parts
                raise UserError(
                    f"head label_weights.{name}: no label has this name; {did_you_mean(name, column.space.names)}"
                )
        if self.mask_pattern is None:
            return column
        part = Part.parse(self.mask_pattern)
        space, kept = column.space.part(part), list(part.indices(len(column.space)))
        shares = None if column.shares is None else np.ascontiguousarray(column.shares[:, kept])
        return replace(column, space=space, values=np.ascontiguousarray(column.values[:, kept]), shares=shares)

    def _column(self, posts: Posts) -> Column:
        if self.column is None:
            return Column.of(self.kind, ["tokens"], np.zeros(len(posts)))
        if posts.raw is not None:
            return as_column(posts, self.column, self.kind, self.names)
        if not isinstance(self.column, str) or self.column not in posts.columns:
            raise UserError(f"column={self.column!r} is not in the corpus: {did_you_mean(str(self.column), posts.columns)}")
        if self.names is not None:
            given = f"names={list(self.names)}"
            raise UserError(f"{given}: the corpus names the labels of {self.column!r} itself; type names=null")
        return replace(posts.columns[self.column], truth=None)  # where it judges, it stands among the values


def _rewritten(column: Column, labels: Mapping[str, Sequence[str]]) -> Column:
    one, space = column.space.carries == "one", LabelSpace(column.space.kind, tuple(labels))
    if column.space.carries is None:
        given = f"labels={dict(labels)}"
        raise UserError(f"{given} rewrites a column of labels, and this one is {space.kind}; leave it null")
    position = {name: place for place, name in enumerate(column.space.names)}
    places = {new: [position[name] for name in old if name in position] for new, old in labels.items()}
    for new, old in labels.items():
        if not places[new]:
            near = did_you_mean(str(old[0]), position)
            raise UserError(f"labels.{new}: the column has none of {', '.join(map(str, old))}: {near}")
    if not one:

        def largest(of: np.ndarray) -> np.ndarray:
            return np.stack([of[:, p].max(axis=1) for p in places.values()], axis=1)

        shares = None if column.shares is None else largest(column.shares)
        return replace(column, space=space, values=largest(column.values), shares=shares)
    if twice := [column.space.names[p] for p, n in Counter(p for of in places.values() for p in of).items() if n > 1]:
        raise UserError(f"labels: {twice[0]!r} would become several; a post of this column carries one label")
    renamed = np.full(len(position), -1)
    for place, of in enumerate(places.values()):
        renamed[of] = place
    values = renamed[column.values]
    shares = None
    if column.shares is not None:
        joined = np.stack([column.shares[:, of].sum(axis=1) for of in places.values()], axis=1)
        shares = joined / np.maximum(joined.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)  # of those left
    return replace(column, space=space, values=np.maximum(values, 0), has=column.has & (values >= 0), shares=shares)


def check_annotated(name: str, task: Task, column: Column, splits: np.ndarray, split: Split) -> None:
    """Raises UserError where a split says nothing of a task, or the training posts all the same of a task of labels."""
    here = splits == split
    values = column.values[here & column.has]
    if not len(values):
        none = f"is annotated in column {task.column!r}" if here.any() else "is in its corpus"
        do_without = "; action=train and action=predict do without" if split == "test" else ""
        raise UserError(
            f"task {name!r}: no post of the {split} split {none}, so its figures would say nothing; give other splits, "
            f"another tasks.{name}.column or corpus@tasks.{name}.corpus, or leave {name} out of tasks=[...]{do_without}"
        )
    if split == "train" and column.space.carries == "one" and (values == values[0]).all():
        limit, key = task.corpus.limit, f"tasks.{name}.corpus"
        few = f"; {key}.limit={limit} may be too few for a second one: type a larger number"
        raise UserError(
            f"task {name!r}: all posts of the train split carry {column.space.names[values[0]]!r}, so there is nothing to "
            f"learn; the labels are {', '.join(column.space.names)}{'' if limit is None else few}"
        )
