"""Puts what heads said of posts in tables: for predictions.parquet, and for the user's own file."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from hatemtl.batches.tokenized_posts import Pool
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace
from hatemtl.network.module import MultitaskModule


def predictions(module: MultitaskModule, pool: Pool) -> pd.DataFrame:
    """Makes one row a post and task: post_id, task, gold and scores.

    gold: [label's position] for multiclass and ordinal, [the right choice's] for choice, [number] for score; 0 or 1 (or a
    share) a label for multilabel, a word for tokens. scores: probabilities, a label, level, choice or word, 0 for a choice
    that the post does not have; [number] for score, in the scale's units. Words beyond max_length are in neither. Masked
    tokens are no predictions of a post, and are left out.
    """
    rows = []
    for task, kept in module.predictions.items():
        kind = pool.spaces[task].kind
        for posts, scores, targets in zip(kept.posts, kept.scores, kept.targets, strict=True):
            for post, score, target in zip(posts.tolist(), scores.tolist(), targets.tolist(), strict=True):
                if kind == "tokens":
                    score, target = pool.at_words(post, score), pool.at_words(post, target)
                gold = target if isinstance(target, list) else [float(target)]
                rows.append((pool.ids[post], task, gold, score))
    return pd.DataFrame(rows, columns=["post_id", "task", "gold", "scores"])


def check_predictable(spaces: Mapping[str, LabelSpace]) -> None:
    """Raises UserError where a task says nothing of a single text."""
    for task, space in spaces.items():
        if space.kind in ("choice", "masked"):
            what = "second texts" if space.kind == "choice" else "masked tokens"
            raise UserError(f"action=predict scores posts, and task {task!r} is about {what}; leave it out of tasks=[...]")


def score_columns(
    module: MultitaskModule, pool: Pool, batches: Sequence[tuple[Tensor, Mapping[str, Tensor]]]
) -> dict[str, list[Any]]:
    """Makes columns over the pool's posts: pred_TASK with labels, words or number, pred_TASK_LABEL with each score.

    batches: pool positions (B,) and each task's scores, as `MultitaskModule.predict_step` gives them.
    """
    columns: dict[str, list[Any]] = {}
    for task in module.heads:
        head = module.head(task)
        by_post = {
            post: score
            for posts, scores in batches
            for post, score in zip(posts.tolist(), scores[task].tolist(), strict=True)
        }
        scores = [by_post[post] for post in range(len(pool))]
        if head.space.kind == "tokens":
            scores = [pool.at_words(post, score) for post, score in enumerate(scores)]
            columns[f"pred_{task}_scores"] = [" ".join(f"{score:.4f}" for score in row) for row in scores]
        else:
            for i, label in enumerate(head.space.names):
                columns[f"pred_{task}_{label}"] = [row[i] for row in scores]
        decoded = [head.decode(row, text.split(" ")) for row, text in zip(scores, pool.texts, strict=True)]
        columns = {f"pred_{task}": [" ".join(labels) for labels in decoded], **columns}
    return columns
