"""Judges a test by evaluations, each handed the predictions and columns that it needs, and puts predictions in a table."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from hatemtl.batches.datamodule import DataModule
from hatemtl.batches.tokenized_posts import TokenizedPosts
from hatemtl.corpora.base import Column
from hatemtl.corpora.cells import as_column
from hatemtl.corpora.folds import Folds
from hatemtl.errors import UserError, did_you_mean
from hatemtl.evaluations.base import UNJUDGED, Beforehand, Evaluation, Listing, Predicted, Reader, Row
from hatemtl.heads.figures import COUNTS
from hatemtl.labels import Kind
from hatemtl.network.module import MultitaskModule
from hatemtl.network.predictions import Predictions


def check_evaluations(evaluations: Mapping[str, Evaluation], data: DataModule) -> None:
    """Raises UserError where one is not for these tasks, or their corpora lack what it needs."""
    for name, evaluation in evaluations.items():
        with _naming(name, evaluation):
            evaluation.check(data.spaces)
            _columns(evaluation, data)


def check_test(evaluations: Mapping[str, Evaluation], data: DataModule, reader: Reader) -> None:
    """Raises UserError where one would refuse the test posts, which are tokenized, or the network that the reader asks."""
    if not evaluations:
        return
    test = data.rows("test")
    posts = {task: test[data.pool.has[task][test]] for task in data.tasks}
    val = data.pool.splits[: data.pool.labelled] == "val"
    validation = {task: int(data.pool.has[task][: len(val)][val].sum()) for task in data.tasks}
    for name, evaluation in evaluations.items():
        with _naming(name, evaluation):
            columns = _columns(evaluation, data, posts)
            asked = reader if evaluation.needs.reader else None
            evaluation.check(data.spaces, Beforehand(posts, columns, validation, asked))


@contextmanager
def _naming(name: str, evaluation: Evaluation) -> Iterator[None]:
    """Inside, what an evaluation refuses is told with its name, or the whole key where it begins with one of its own."""
    try:
        yield
    except UserError as error:
        own = str(error).partition("=")[0] in vars(evaluation)
        raise UserError(f"evaluations.{name}.{error}" if own else f"evaluations=[{name}]: {error}") from error


def judged(
    evaluations: Mapping[str, Evaluation], module: MultitaskModule, data: DataModule, reader: Reader | None = None
) -> list[Row]:
    """The rows of all evaluations, of what the module kept of a test. reader: of its network, for those that ask it."""
    if not evaluations:
        return []
    said, found = _said(module, data), dict[str, Row]()
    for name, evaluation in evaluations.items():
        posts = _columns(evaluation, data, {task: of_task.posts for task, of_task in said.items()})
        for row in evaluation.rows(said, posts, reader if evaluation.needs.reader else None):
            if found.setdefault(row.metric, row) is not row:
                raise UserError(f"evaluations=[{name}] gives a row {row.metric}, as another does; leave one of them out")
    return [*found.values()]


def listed(
    evaluations: Mapping[str, Evaluation], module: MultitaskModule, data: DataModule, reader: Reader
) -> dict[str, list[dict[str, object]]]:
    """The tables of the evaluations that leave some, by the name of their file."""
    said, found = _said(module, data), dict[str, list[dict[str, object]]]()
    for evaluation in evaluations.values():
        if isinstance(evaluation, Listing):
            posts = _columns(evaluation, data, {task: of_task.posts for task, of_task in said.items()})
            for name, rows in evaluation.tables(said, posts, reader).items():
                found.setdefault(name, []).extend(rows)
    return found


def _said(module: MultitaskModule, data: DataModule) -> dict[str, Predicted]:
    """Gathers what the module kept of a test, by task that evaluations may judge."""
    kept = [(task, of) for task, of in module.predictions.items() if data.spaces[task].about not in UNJUDGED]
    return {task: of_task.whole("test", module.head(task), data.pool.at_words) for task, of_task in kept}


def over_folds(folds: Folds, module: MultitaskModule, data: DataModule) -> list[Row]:
    """Mean and standard deviation (n - 1) over folds of the test posts of each head's rows, but for counts, of a test.

    Raises UserError where a fold has no post with a task's annotation.
    """
    rows: list[Row] = []
    corpora = dict.fromkeys(task.corpus for task in data.tasks.values())
    dealt = {corpus: folds.dealt(data.corpora[corpus], "test") for corpus in corpora}
    for task, kept in module.predictions.items():
        head, found = module.head(task), defaultdict[tuple[str, str | None], list[float]](list)
        for fold in range(1, folds.number + 1):
            metric, seen = head.metric(), 0
            for posts, scores, targets in zip(kept.posts, kept.scores, kept.targets, strict=True):
                has = torch.from_numpy(dealt[data.tasks[task].corpus][posts.numpy() - data.first(task)] == fold)
                metric.update(scores, targets, has)
                seen += int(has.sum())
            if not seen:
                raise UserError(
                    f"folds={folds.number}: fold {fold} has no test post of task {task!r}; type a smaller number"
                )
            for figure in head.rows(metric.compute()):
                found[figure.name, figure.label].append(figure.value)
        for (name, label), values in found.items():
            if name not in COUNTS and not name.endswith("_cut"):
                rows.append(Row("test", task, f"{name}_fold_mean", label, fmean(values)))
                rows.append(Row("test", task, f"{name}_fold_sd", label, stdev(values)))
    return rows


def _columns(
    evaluation: Evaluation, data: DataModule, posts: Mapping[str, np.ndarray] | None = None
) -> dict[str, dict[str, Column]]:
    """The columns that it needs, by task and name: whole, or of the posts of each task that stand there in the pool."""
    needs = evaluation.needs.columns.items()
    found = {task: {name: _column(data, task, name, kind) for name, kind in columns.items()} for task, columns in needs}
    if posts is None:
        return found
    rows = {task: posts[task] - data.first(task) for task in found}
    return {task: {name: column.at(rows[task]) for name, column in columns.items()} for task, columns in found.items()}


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


def predictions(module: MultitaskModule, pool: TokenizedPosts) -> Any:
    """Makes a DataFrame of one row a post and task: post_id, task, gold and scores.

    gold: [label's position] for multiclass and ordinal, [the right choice's] for choice, [number] for score; 0 or 1 (or a
    share) a label for multilabel, a word for tokens. scores: probabilities, a label, level, choice or word, 0 for a choice
    that the post does not have; [number] for score, in the scale's units. Words are those of the post's `text.split(" ")`;
    one beyond max_length, which no one read, scores 0, and one that makes no token has NaN in both. Masked tokens are no
    predictions of a post, and are left out. Where a task answers questions, there are two more columns, answer and
    right_answers, of its rows alone; gold is then [first character, one past the last, ...] of the right ones, and scores
    [first character, one past the last, probability].
    """
    import pandas as pd  # which training does without

    rows: list[tuple[Any, ...]] = []
    names = ["post_id", "task", "gold", "scores"]
    for task, kept in module.predictions.items():
        if pool.spaces[task].about == "answers":
            rows += _answered(task, kept, pool)
            names = [*names[:4], "answer", "right_answers"]
            continue
        of_words = pool.spaces[task].about == "words"
        for posts, scores, targets in zip(kept.posts, kept.scores, kept.targets, strict=True):
            for post, score, target in zip(posts.tolist(), scores.tolist(), targets.tolist(), strict=True):
                if of_words:
                    width = len(score)
                    score, target = pool.at_words(post, score), pool.at_words(post, target[:width], target[width:])
                rows.append((pool.ids[post], task, target if isinstance(target, list) else [float(target)], score))
    return pd.DataFrame([row + (None,) * (len(names) - len(row)) for row in rows], columns=names)


def _answered(task: str, kept: Predictions, pool: TokenizedPosts) -> Iterator[tuple[Any, ...]]:
    for posts, scores, targets in zip(kept.posts, kept.scores, kept.targets, strict=True):
        for post, (first, last, score), passage in zip(posts.tolist(), scores.tolist(), targets.passages, strict=True):
            begin, end = passage.between(int(first), int(last))
            gold = [float(place) for place in passage.right.ravel()]
            answer = passage.text[begin:end]
            yield pool.ids[post], task, gold, [float(begin), float(end), score], answer, passage.answers
