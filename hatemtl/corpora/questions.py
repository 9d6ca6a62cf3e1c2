"""Reads questions and where their answers stand in a text, in the layout of SQuAD 1.1 (Rajpurkar et al. 2016).

A file holds {"data": [{"title", "paragraphs": [{"context", "qas": [QUESTION, ...]}, ...]}, ...]}, of which a QUESTION is
{"id", "question", "answers": [{"text", "answer_start"}, ...]}. A table, as the hub's, has the columns id, title, context,
question and answers, whose cells are {"text": [...], "answer_start": [...]}. `answer_start` counts characters of the
context, from 0.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hatemtl.corpora.rows import Rows, as_post, shown
from hatemtl.errors import UserError


def laid_out(path: Path, content: Any, again: str) -> Rows:
    """Gives a row a question of what such a file holds. Raises UserError, with the place, where it is laid out otherwise.

    A question that says nothing of answers has None, one of SQuAD 2.0 that has none an empty list.
    """
    found = []
    for title, of_article in _items(content, "data", str(path), again):
        for paragraph, of_text in _items(of_article, "paragraphs", title, again):
            for _, question in _items(of_text, "qas", paragraph, again):
                shared = {"title": of_article.get("title"), "context": of_text.get("context")}
                found.append(shared | {key: question.get(key) for key in ("id", "question", "answers")})
    if not found:
        raise UserError(f"{path}: holds no questions; {again}")
    columns = {key: [row[key] for row in found] for key in ("id", "title", "context", "question", "answers")}
    return Rows(path, columns, range(1, len(found) + 1), again, "question")


def _items(of: Any, key: str, where: str, again: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Gives the objects of a list, each with its place."""
    items = of.get(key) if isinstance(of, dict) else None
    if not isinstance(items, list):
        raise UserError(f"{where}: expected an object with a list {key!r}, as SQuAD's files have it; {again}")
    for i, item in enumerate(items):
        place = f"{where}{', ' if key == 'data' else '.'}{key}[{i}]"
        if not isinstance(item, dict):
            raise UserError(f"{place}: {shown(item)}, expected an object; {again}")
        yield place, item


def places(cell: Any, context: str) -> list[tuple[int, int]]:
    """Finds the answers of a cell in the context as a post has it, its space collapsed: first character, one past the last.

    cell: {"text": [...], "answer_start": [...]}, [{"text", "answer_start"}, ...], or either as JSON.
    Raises ValueError, which says what was expected, where it is none of these, or holds an answer that is not there.
    """
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):  # a number or a nesting that is too long, too
            cell = None
    match cell:
        case {"text": [*texts], "answer_start": [*starts]} if len(texts) == len(starts):
            given = [*zip(texts, starts, strict=True)]
        case [*answers] if all(isinstance(answer, dict) for answer in answers):
            given = [(answer.get("text"), answer.get("answer_start")) for answer in answers]
        case _:
            raise ValueError('answers as SQuAD has them, {"text": [...], "answer_start": [...]}')
    if not given:
        raise ValueError("an answer at least: of questions without any, as SQuAD 2.0's, a span head says nothing")
    return [_place(text, start, context) for text, start in given]


def _place(text: Any, start: Any, context: str) -> tuple[int, int]:
    if not isinstance(text, str) or not text.strip():
        raise ValueError("answers with a word in them")
    there = context[start : start + len(text)] if isinstance(start, int) and start >= 0 else ""
    if there != text:
        stands = f", where {shown(there)} stands" if there else ""
        raise ValueError(f"answer_start={start} to be the character of the context where {shown(text)} begins{stands}")
    before = context[: start + len(text) - len(text.lstrip())]
    begin = len(as_post(f"{before}x")) - 1
    return begin, begin + len(as_post(text))


def padded(answers: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
    """Puts the answers of N posts in one array, (N, A, 2) int64, -1 where a post has fewer than the others."""
    found = np.full((len(answers), max(map(len, answers), default=0) or 1, 2), -1, np.int64)
    for row, of_post in zip(found, answers, strict=True):
        row[: len(of_post)] = np.array(of_post, np.int64).reshape(-1, 2)
    return found
