"""Reads explanations that another program made: a line a post, {"post_id": ..., "scores": [a number a word]}."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hatemtl.errors import UserError, did_you_mean, unreadable

FORM = 'expected {"post_id": "...", "scores": [a number for each word]}'


def read(path: str) -> dict[str, tuple[int, list[float]]]:
    """Reads the file: by post its line and scores. Raises UserError with file and line where a line is none of this."""
    found: dict[str, tuple[int, list[float]]] = {}
    try:
        with Path(path).expanduser().open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    post, scores = _parsed(line, f"outside={path}, line {number}")
                    if post in found:
                        raise UserError(
                            f"outside={path}, line {number}: post {post!r} stands in line {found[post][0]} already"
                        )
                    found[post] = number, scores
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(f"outside={path}", error, f"give a file of scores, {FORM} in each line") from error
    return found


def of_posts(path: str, words: Mapping[str, int], asked: Sequence[str]) -> list[np.ndarray]:
    """Gives the scores of the posts that are asked for, one a word. words: how many each post has that may be in the file.

    Raises UserError where one is missing, is none of these, or has another number of words.
    """
    found = read(path)
    for post, (line, scores) in found.items():
        if post not in words:
            some = did_you_mean(post, [*words][:3])  # of thousands
            more = ", ..." if len(words) > 3 else ""
            raise UserError(f"outside={path}, line {line}: there is no test post {post!r}; {some}{more}")
        if len(scores) != words[post]:
            raise UserError(
                f"outside={path}, line {line}: {len(scores)} scores for the {words[post]} words of post {post!r}"
            )
    if missing := [post for post in asked if post not in found]:
        raise UserError(
            f"outside={path}: has no line for post {missing[0]!r} ({len(missing)} of {len(asked)} posts are missing)"
        )
    return [np.array(found[post][1]) for post in asked]


def _parsed(line: str, where: str) -> tuple[str, list[float]]:
    try:
        content: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); {FORM}") from error
    match content:
        case {"post_id": str() | int() as post, "scores": [*scores]}:
            pass
        case _:
            raise UserError(f"{where}: {FORM}")
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise UserError(f"{where}: {str(score)[:40]!r} is no number; {FORM}")
    return str(post), [float(score) for score in scores]
