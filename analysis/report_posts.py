"""Finds the wrong posts that a report shows, their words as people marked them and as the network weighed them."""

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from outcomes import Outcome
from report_sections import Asked
from results import Results, ResultsError, read_predictions, sidecar
from systems import outcomes
from table import Cell, Table

from hatemtl.harmless import unguarded

ERRORS, WORDS = "errors.csv", "error_words.csv"  # what evaluations=[errors] leaves
SIDES = ("false_positive", "false_negative")
SHOWN = 250  # posts of a page: it is to stay small
MOST, LEVELS, LONG = 5, 4, 120  # posts of a label or group and side; shades of a word; words of a post
Marks = tuple[Sequence[float] | None, Sequence[float] | None]  # of a post's words: as people marked them, as they weigh


class Word(NamedTuple):
    """A word of a post. level: from -4, it speaks against the label, to 4. marked: by people."""

    text: str
    level: int = 0
    marked: bool = False


class Post(NamedTuple):
    """A wrong post of a label. words: none where its text is not known."""

    error: str
    score: str
    gold: str
    predicted: str
    groups: str
    post: str
    words: Sequence[Word]


class Wrong(NamedTuple):
    """The wrong posts of a system and task, and the words behind its errors."""

    title: str
    posts: Sequence[Post]
    words: Table | None

    @property
    def told(self) -> bool:
        """Whether any post's text is known."""
        return any(post.words for post in self.posts)

    @property
    def grouped(self) -> bool:
        """Whether it is known whom posts are about."""
        return any(post.groups for post in self.posts)

    @property
    def weighed(self) -> bool:
        """Whether any word is shaded or underlined."""
        return any(word.level or word.marked for post in self.posts for word in post.words)


def wrong(asked: Asked, texts: Mapping[str, str] | None) -> list[Wrong]:
    """What the first seed of each system got wrong, of tasks of labels.

    texts: by post; without them systems are left out whose test did not list errors.
    """
    found: list[tuple[str, list[dict[str, str]], Results, str]] = []
    for system in asked.systems:
        for task, kind in asked.tasks.items():
            if kind not in ("multiclass", "multilabel"):
                continue
            run = next(system.each())
            rows = [row for row in _read(run, ERRORS, "post_id", "score") if row["task"] == task]
            if not rows and texts is not None:
                rows = [*_errors(outcome := outcomes(system, task)[0])]
                if not any(post in texts for post in outcome.posts):
                    raise ResultsError(
                        f"--posts: holds no tested post; expected ids such as {', '.join(outcome.posts[:3])}; type "
                        "--id with the column of post ids"
                    )
            found.append((f"{system.name}, {task}" if len(asked.tasks) > 1 else system.name, rows, run, task))
    kinds = sum(len({kind for row in rows for kind in _kinds(row)}) for _, rows, *_ in found)
    each = max(1, min(MOST, SHOWN // max(1, kinds)))
    made = [_wrong(title, rows, run, task, texts or {}, each) for title, rows, run, task in found]
    return [of for of in made if of.posts or of.words]


def _kinds(row: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What a wrong post is one of: its label and side, and its groups and side."""
    yield row["label"], row["error"]
    for group in filter(None, row.get("groups", "").split("; ")):
        yield f"group {group}", row["error"]


def _wrong(
    title: str, rows: Sequence[Mapping[str, str]], run: Results, task: str, texts: Mapping[str, str], each: int
) -> Wrong:
    seen, marks, posts = defaultdict[tuple[str, str], int](int), _rationales(run) if rows else {}, []
    for row in rows:
        kinds = [*_kinds(row)]
        if any(seen[kind] < each for kind in kinds):
            for kind in kinds:
                seen[kind] += 1
            given = (_numbers(row.get("marked")), _numbers(row.get("explained")))
            own = marks.get(row["post_id"], (None, None))
            text = row.get("text") or texts.get(row["post_id"], "")
            words = shaded(text, given[0] or own[0], given[1] or own[1])
            told = f"{row['label']} {'given' if row['error'] == SIDES[0] else 'missed'}"
            score = f"{float(row['score']):.3f}"
            posts.append(Post(told, score, row["gold"], row["predicted"], row.get("groups", ""), row["post_id"], words))
    return Wrong(title, posts, _words(run, task))


def shaded(text: str, marked: Sequence[float] | None, weights: Sequence[float] | None) -> list[Word]:
    """The words of a text, shaded by their weight beside the largest of the text.

    >>> [(word.level, word.marked) for word in shaded("so it goes", [0, 0, 1], [0.1, -0.4, 0.2])]
    [(1, False), (-4, False), (2, True)]
    """
    words = text.split(" ") if text else []
    fits = [None if of is None or len(of) != len(words) else of for of in (marked, weights)]
    most = max((abs(weight) for weight in fits[1] or ()), default=0.0) or 1.0
    found = []
    for i, word in enumerate(words[:LONG]):
        level = 0 if fits[1] is None else round(LEVELS * fits[1][i] / most)
        found.append(Word(word, level, fits[0] is not None and fits[0][i] >= 0.5))
    return [*found, Word("…")] if len(words) > LONG else found


def _numbers(cell: str | None) -> list[float] | None:
    """A number a word."""
    try:
        numbers = [float(part) for part in cell.split(" ")] if cell else None
    except ValueError:
        return None
    return numbers if numbers and all(map(math.isfinite, numbers)) else None


def _rationales(run: Results) -> dict[str, Marks]:
    """What people marked in each post and how the run's task of words weighs them, where it has one."""
    tasks = [task for task, of in (sidecar(run, "labels.json") or {}).items() if of["kind"] == "tokens"]
    tested = [task for task in tasks if any(row.startswith(f"test_{task}_") for row in run.rows)]
    if not tested:
        return {}
    _, rows = read_predictions(run, tested[0])
    return {row["post_id"]: ([of or 0.0 for of in row["gold"]], [of or 0.0 for of in row["scores"]]) for row in rows}


def _errors(outcome: Outcome) -> Iterator[dict[str, str]]:
    """The rows of errors.csv, of what a run said of its posts."""
    several, scores, names = outcome.kind == "multilabel", outcome.scores, outcome.names
    given = scores >= outcome.thresholds if several else np.eye(len(names), dtype=bool)[scores.argmax(axis=1)]
    for j, label in enumerate(names):
        true = outcome.gold[:, j] >= 0.5 if several else outcome.gold[:, 0] == j
        for side, wrong, sign in ((SIDES[0], given[:, j] & ~true, -1), (SIDES[1], ~given[:, j] & true, 1)):
            for i in sorted(wrong.nonzero()[0].tolist(), key=lambda i: sign * scores[i, j]):
                carried = outcome.gold[i] >= 0.5 if several else [k == outcome.gold[i, 0] for k in range(len(names))]
                listed = ["; ".join(n for n, yes in zip(names, of, strict=True) if yes) for of in (carried, given[i])]
                row = {"label": label, "error": side, "post_id": outcome.posts[i], "score": str(float(scores[i, j]))}
                yield row | {"gold": listed[0], "predicted": listed[1]}


def _words(run: Results, task: str) -> Table | None:
    """The first words of each label and side, of error_words.csv."""
    seen, rows = defaultdict[tuple[str, str], int](int), dict[str, list[Cell]]()
    for row in _read(run, WORDS, "word", "log_odds", "z", "wrong", "right", "of_wrong", "of_right"):
        if row["task"] != task:
            continue
        kind = (row["label"], row["error"])
        seen[kind] += 1
        if seen[kind] <= 2 * MOST:
            told = f"{row['label']} {'given' if row['error'] == SIDES[0] else 'missed'}"
            shares = [f"{row[of]} of {row[f'of_{of}']}" for of in ("wrong", "right")]
            rows[str(len(rows) + 1)] = [told, row["word"], *shares, float(row["log_odds"]), float(row["z"])]
    columns = ["error", "word", "in wrong posts", "in right posts", "log-odds", "z"]
    return Table(columns, rows, corner="no.", counts=False) if rows else None


def _read(run: Results, name: str, *needed: str) -> list[dict[str, Any]]:
    """The rows of a file that evaluations=[errors] left beside the results, or none."""
    path: Path = run.path.parent / name
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [{column: unguarded(cell) for column, cell in row.items()} for row in csv.DictReader(file, strict=True)]
        for row in rows:
            for column in (of for of in needed if of in ("score", "log_odds", "z")):
                float(row[column])
            _ = [row[column] for column in ("task", "label", "error", *needed)]
        return rows
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error, UnicodeDecodeError) as error:
        raise ResultsError(
            f"{path} cannot be read ({error}); expected what evaluations=[errors] leaves; test the run with it once more, "
            "or take the file away"
        ) from None
