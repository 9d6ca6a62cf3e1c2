"""Judges a test by evaluations: hands each the predictions and the columns of posts that it needs."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hatemtl.batches.datamodule import DataModule
from hatemtl.corpora.base import Column
from hatemtl.corpora.cells import as_column
from hatemtl.errors import UserError, did_you_mean
from hatemtl.evaluations.base import Evaluation, Row
from hatemtl.labels import Kind
from hatemtl.network.module import MultitaskModule


def check_evaluations(evaluations: Mapping[str, Evaluation], data: DataModule) -> None:
    """Raises UserError where one is not for these tasks, or their corpora lack what it needs."""
    for name, evaluation in evaluations.items():
        try:
            evaluation.check(data.spaces)
            _columns(evaluation, data)
        except UserError as error:
            raise UserError(f"evaluations=[{name}]: {error}") from error
        if evaluation.needs.gradients:
            raise UserError(f"evaluations=[{name}] needs gradients, and a test computes none; leave it out")


def judged(evaluations: Mapping[str, Evaluation], module: MultitaskModule, data: DataModule) -> list[Row]:
    """The rows of all evaluations, of what the module kept of a test."""
    if not evaluations:
        return []
    predictions = {
        task: kept.whole("test", module.head(task), data.pool.at_words) for task, kept in module.predictions.items()
    }
    rows: dict[str, Row] = {}
    for name, evaluation in evaluations.items():
        posts = {
            task: {of: _at(column, predictions[task].posts - data.first(task)) for of, column in columns.items()}
            for task, columns in _columns(evaluation, data).items()
        }
        for row in evaluation.rows(predictions, posts):
            if rows.setdefault(row.metric, row) is not row:
                raise UserError(f"evaluations=[{name}] gives a row {row.metric}, as another does; leave one of them out")
    return [*rows.values()]


def _columns(evaluation: Evaluation, data: DataModule) -> dict[str, dict[str, Column]]:
    """Gives what an evaluation needs of each task's corpus, over all its posts."""
    needs = evaluation.needs.columns.items()
    return {task: {name: _column(data, task, name, kind) for name, kind in columns.items()} for task, columns in needs}


def _column(data: DataModule, task: str, name: str, kind: Kind) -> Column:
    posts = data.corpora[data.tasks[task].corpus]
    if posts.raw is not None:
        return as_column(posts, name, kind)
    if name not in posts.columns:
        raise UserError(
            f"the corpus of task {task!r} has no column {name!r}, but it is needed; {did_you_mean(name, posts.columns)}"
        )
    column = posts.columns[name]
    if column.space.kind != kind:
        raise UserError(f"column {name!r} of the corpus of task {task!r} is {column.space.kind}, expected a {kind} one")
    return column


def _at(column: Column, rows: np.ndarray) -> Column:
    return replace(column, values=column.values[rows], has=column.has[rows])
