"""Puts what heads said of posts in tables: for predictions.parquet, and for the user's own file."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from hatemtl.batches.tokenized_posts import TokenizedPosts
from hatemtl.labels import LabelSpace
from hatemtl.network.module import MultitaskModule
from hatemtl.using.predictor import Scored


def predictions(module: MultitaskModule, pool: TokenizedPosts) -> pd.DataFrame:
    """Makes one row a post and task: post_id, task, gold and scores.

    gold: [label's position] for multiclass and ordinal, [the right choice's] for choice, [number] for score; 0 or 1 (or a
    share) a label for multilabel, a word for tokens. scores: probabilities, a label, level, choice or word, 0 for a choice
    that the post does not have; [number] for score, in the scale's units. Words are those of the post's `text.split(" ")`;
    one beyond max_length, which no one read, scores 0, and one that makes no token has NaN in both. Masked tokens are no
    predictions of a post, and are left out.
    """
    rows = []
    for task, kept in module.predictions.items():
        of_words = pool.spaces[task].about == "words"
        for posts, scores, targets in zip(kept.posts, kept.scores, kept.targets, strict=True):
            for post, score, target in zip(posts.tolist(), scores.tolist(), targets.tolist(), strict=True):
                if of_words:
                    width = len(score)
                    score, target = pool.at_words(post, score), pool.at_words(post, target[:width], target[width:])
                gold = target if isinstance(target, list) else [float(target)]
                rows.append((pool.ids[post], task, gold, score))
    return pd.DataFrame(rows, columns=["post_id", "task", "gold", "scores"])


def score_columns(spaces: Mapping[str, LabelSpace], said: Sequence[Mapping[str, Scored]]) -> dict[str, list[Any]]:
    """Columns over texts: pred_TASK with the predicted labels, words or number, pred_TASK_LABEL with each score.

    said: what the tasks of these labels say of each text, as `Predictor` gives it.
    """
    columns: dict[str, list[Any]] = {}
    for task, space in spaces.items():
        of_task = [of_text[task] for of_text in said]
        columns[f"pred_{task}"] = [" ".join(one.labels) for one in of_task]
        if space.about == "words":
            columns[f"pred_{task}_scores"] = [" ".join(f"{score:.4f}" for _, score in one.words) for one in of_task]
        else:
            columns |= {f"pred_{task}_{label}": [one.scores[label] for one in of_task] for label in space.names}
    return columns
