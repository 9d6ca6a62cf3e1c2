"""Lists where a task is wrong: its most confident errors by label and group, and the words that stand behind errors."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from hatemtl.corpora.base import Column
from hatemtl.errors import UserError
from hatemtl.evaluations import explainers
from hatemtl.evaluations.base import Beforehand, Needs, Predicted, Reader, Row
from hatemtl.labels import LabelSpace

Explainer = Literal["attention", "gradient_input", "integrated_gradients"]
POSTS, WORDS = "errors.csv", "error_words.csv"
SIDES = ("false_positive", "false_negative")
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
STEPS = 20  # of integrated gradients


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Lists a task's most confident wrong posts, and the words that wrong posts hold more often than right ones.

    errors.csv: of each label the posts that got it wrongly (false_positive), the highest score of the label first, and those
    that should have got it (false_negative), the lowest first: `posts` of them, and as many of each group.
    error_words.csv: `words` words of each label and side. False positives are compared with the other posts that do not
    carry the label, false negatives with the others that do, so that words tell of errors and not of labels. y is how many
    of the wrong (or right) posts hold a word, n the sum of y over words, and log_odds

        log((y + α) / (n + α₀ - y - α)) of the wrong - the same of the right,

    α being α₀ times the word's share of all y, and z is log_odds over its standard deviation, √(1/(y + α) of the wrong +
    1/(y + α) of the right): the log-odds-ratio with an informative Dirichlet prior of Monroe, Colaresi and Quinn 2008,
    Fightin' words, doi:10.1093/pan/mpn018. Sorted by z, which rare words do not top; only words of `least` wrong posts.

    groups: the multilabel column of the same corpus that says whom a post is about. marked: its column of tokens, the words
    that people marked. explainer: what scores a post's words for its label; as many numbers as the text has words.
    texts: whether errors.csv holds what posts say; else it has their ids alone, as predictions.parquet.
    """

    task: str
    groups: str | None
    posts: int
    words: int
    least: int
    prior: float
    texts: bool
    marked: str | None
    explainer: Explainer | None
    scalar: ClassVar[None] = None

    def __post_init__(self) -> None:
        for name in ("posts", "words", "least"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: expected a whole number from 1")
        if not 0 < self.prior < float("inf"):
            raise UserError(f"prior={self.prior}: expected a number above 0; type 100")
        if self.explainer not in (None, *get_args(Explainer)):
            raise UserError(f"explainer={self.explainer}: expected null or one of {', '.join(get_args(Explainer))}")

    @property
    def needs(self) -> Needs:
        columns = {name: kind for name, kind in ((self.groups, "multilabel"), (self.marked, "tokens")) if name}
        return Needs(columns={self.task: columns} if columns else {}, reader=True)  # type: ignore[dict-item]

    def check(self, spaces: Mapping[str, LabelSpace], test: Beforehand | None = None) -> None:
        kind = spaces[self.task].kind if self.task in spaces else None
        if kind not in ("multiclass", "multilabel"):
            found = f"there is no {self.task!r}" if kind is None else f"{self.task!r} is {kind}"
            raise UserError(
                f"expected a multiclass or multilabel task among tasks=[{','.join(spaces)}], and {found}; type "
                "evaluations.errors.task=NAME of another, or evaluations=[]"
            )
        if test is not None and self.explainer is not None:
            assert test.reader is not None  # it is in `needs`
            posts = test.posts[self.task]
            if test.reader.paired[posts].any():
                raise UserError(
                    f"explainer={self.explainer}: expected posts of one text each, and some are read with second texts; "
                    "type evaluations.errors.explainer=null"
                )
            self._explained([(int(posts[0]), 0)], test.reader)

    def rows(
        self, predictions: Mapping[str, Predicted], posts: Mapping[str, Mapping[str, Column]], reader: Reader | None = None
    ) -> list[Row]:
        return []

    def tables(
        self, predictions: Mapping[str, Predicted], posts: Mapping[str, Mapping[str, Column]], reader: Reader | None = None
    ) -> dict[str, list[dict[str, object]]]:
        assert reader is not None
        said, columns = predictions[self.task], posts.get(self.task, {})
        sides = [*_sides(said)]
        held = [{*WORD.findall(reader.text(post).casefold())} for post in said.posts.tolist()]
        words = [row for of in sides for row in self._words(of, held)]
        return {POSTS: self._posts(sides, said, columns, reader), WORDS: words}

    def _posts(
        self, sides: Sequence["Side"], said: Predicted, columns: Mapping[str, Column], reader: Reader
    ) -> list[dict[str, object]]:
        names, several = said.space.names, said.space.carries == "any"
        groups = columns[self.groups] if self.groups else None
        given = said.scores >= said.threshold if several else np.eye(len(names), dtype=bool)[said.scores.argmax(axis=1)]
        true = said.gold >= 0.5 if several else np.eye(len(names), dtype=bool)[said.gold]
        chosen = [(of, place) for of in sides for place in self._chosen(of, groups)]
        asked = [(int(said.posts[place]), of.place) for of, place in chosen]
        scores = self._explained(asked, reader) if self.explainer else [None] * len(asked)
        rows = []
        for (of, place), (post, _), of_words in zip(chosen, asked, scores, strict=True):
            row: dict[str, object] = {"task": self.task, "label": of.label, "error": of.error}
            row |= {"post_id": reader.named(post)[0], "score": float(of.scores[place])}
            row |= {"gold": _listed(names, true[place]), "predicted": _listed(names, given[place])}
            if groups is not None:
                row["groups"] = _listed(groups.space.names, groups.values[place] >= 0.5) if groups.has[place] else ""
            if self.marked:
                column = columns[self.marked]
                row["marked"] = _numbers(column.values[place] > 0) if column.has[place] else ""
            if of_words is not None:
                row["explained"] = _numbers(of_words)
            if self.texts:
                row["text"] = reader.text(post)
            rows.append(row)
        return rows

    def _chosen(self, of: "Side", groups: Column | None) -> list[int]:
        """The places of a side's most confident errors, and of those of each group, most confident first."""
        wrong = np.flatnonzero(of.wrong)
        order = wrong[np.argsort(of.scores[wrong] * (-1 if of.error == SIDES[0] else 1), kind="stable")]
        kept = {*order[: self.posts].tolist()}
        if groups is not None:
            named = (groups.values >= 0.5) & groups.has[:, None]
            kept |= {int(place) for mine in named.T for place in order[mine[order]][: self.posts]}
        return [place for place in order.tolist() if place in kept]

    def _words(self, of: "Side", held: Sequence[set[str]]) -> Iterator[dict[str, object]]:
        wrong, right = (
            Counter(word for place in np.flatnonzero(side).tolist() for word in held[place]) for side in (of.wrong, of.right)
        )
        if not right:  # nothing to compare with: all odds are those of rounding
            return
        found = []
        for word, (odds, z) in log_odds(wrong, right, self.prior).items():
            if wrong[word] >= self.least and z > 0:
                found.append((z, odds, word))
        for z, odds, word in sorted(found, key=lambda one: (-one[0], one[2]))[: self.words]:
            row: dict[str, object] = {"task": self.task, "label": of.label, "error": of.error, "word": word}
            counts = {"wrong": wrong[word], "of_wrong": int(of.wrong.sum()), "right": right[word]}
            yield row | counts | {"of_right": int(of.right.sum()), "log_odds": odds, "z": z}

    def _explained(self, asked: Sequence[tuple[int, int]], reader: Reader) -> list[np.ndarray]:
        """Scores of the words (W,) of these posts for these labels: the sum over each word's pieces, 0 where cut off."""
        tokens, labels = [reader.tokens(post) for post, _ in asked], np.array([label for _, label in asked], np.int64)
        match self.explainer:
            case "attention":
                scores = explainers.attention(reader, self.task, tokens, layer=-1, head=None)
            case "gradient_input":
                scores = explainers.gradient_input(reader, self.task, tokens, labels)
            case _:
                scores = explainers.integrated_gradients(reader, self.task, tokens, labels, steps=STEPS)
        found = []
        for (post, _), of, each in zip(asked, tokens, scores, strict=True):
            words = np.zeros(reader.named(post)[1])
            np.add.at(words, of.words[of.words >= 0], each[of.words >= 0])
            found.append(words)
        return found


@dataclass(frozen=True)
class Side:
    """Holds one kind of error of one label: over N posts, which are wrong, which of the same truth are right, (N,) bool.

    place: the label's. scores: (N,), of this label.
    """

    label: str
    place: int
    error: str
    wrong: np.ndarray
    right: np.ndarray
    scores: np.ndarray


def _sides(said: Predicted) -> Iterator[Side]:
    several, likeliest = said.space.carries == "any", said.scores.argmax(axis=1)
    limits = np.broadcast_to(said.threshold, len(said.space))
    for place, label in enumerate(said.space.names):
        scores = said.scores[:, place]
        given = scores >= limits[place] if several else likeliest == place
        true = said.gold[:, place] >= 0.5 if several else said.gold == place
        yield Side(label, place, SIDES[0], given & ~true, ~given & ~true, scores)
        yield Side(label, place, SIDES[1], ~given & true, given & true, scores)


def log_odds(wrong: Mapping[str, int], right: Mapping[str, int], prior: float) -> dict[str, tuple[float, float]]:
    """Computes log-odds and z of each word of two counts (`Errors`); prior: α₀, how many words it weighs as much as.

    >>> found = log_odds({"a": 3, "b": 1}, {"a": 1, "b": 3}, 8)
    >>> [round(of, 3) for of in found["a"]], found["a"][0] == -found["b"][0]
    ([0.673, 1.149], True)
    """
    n, m = sum(wrong.values()), sum(right.values())
    found = {}
    for word in {**wrong, **right}:
        y, x = wrong.get(word, 0), right.get(word, 0)
        alpha = prior * (y + x) / (n + m)
        if alpha < prior:  # there are other words
            odds = np.log((y + alpha) / (n + prior - y - alpha)) - np.log((x + alpha) / (m + prior - x - alpha))
            found[word] = float(odds), float(odds / np.sqrt(1 / (y + alpha) + 1 / (x + alpha)))
    return found


def _listed(names: Sequence[str], which: np.ndarray) -> str:
    return "; ".join(name for name, yes in zip(names, which, strict=True) if yes)


def _numbers(values: np.ndarray) -> str:
    """A number a word, as errors.csv keeps them."""
    return " ".join(f"{value:.3g}" for value in np.asarray(values, float))
