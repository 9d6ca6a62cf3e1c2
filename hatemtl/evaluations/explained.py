"""Holds what the judgements of explanations share: whose predictions are explained, by what, and over which tokens."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, get_args

import numpy as np

from hatemtl.corpora.base import Column
from hatemtl.errors import UserError
from hatemtl.evaluations import explainers, outside
from hatemtl.evaluations.base import Beforehand, Needs, Predicted, Reader, Row, Tokens
from hatemtl.labels import LabelSpace

Explainer = Literal["rationale", "attention", "gradient_input", "integrated_gradients", "outside"]
Protocol = Literal["official", "joined"]


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Explanations of the label that a task predicts: a score for every token of a post.

    truth: the column of tokens that says which words people marked; posts in which they marked some are judged.
    rationale_task: whose scores explain as `rationale`. layer, head: whose attention explains as `attention`. steps: of
    integrated gradients. outside: a file whose scores explain as `outside`. The others: see `explainers`.
    protocols: official is HateXplain's, where special tokens are tokens as others; joined lets none be chosen.
    top: how many tokens of a post are chosen, those of the highest scores.
    """

    task: str
    truth: str | None
    explainers: Sequence[Explainer]
    protocols: Sequence[Protocol]
    top: int
    rationale_task: str
    layer: int
    head: int | None
    steps: int
    outside: str | None
    scalar: ClassVar[None] = None
    called: ClassVar[str]

    def __post_init__(self) -> None:
        for name in ("top", "steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: expected a whole number from 1")
        for name, known in (("explainers", Explainer), ("protocols", Protocol)):
            given = getattr(self, name)
            if not given or len({*given}) < len(given):
                raise UserError(
                    f"{name}=[{','.join(given)}]: expected one or more of {', '.join(get_args(known))}, each once"
                )
        if ("outside" in self.explainers) != (self.outside is not None):
            raise UserError(
                f"outside={self.outside} and explainers=[{','.join(self.explainers)}]: expected both or neither; type "
                f"evaluations.{self.called}.explainers=[outside] evaluations.{self.called}.outside=scores.jsonl"
            )

    @property
    def needs(self) -> Needs:
        return Needs(columns={} if self.truth is None else {self.task: {self.truth: "tokens"}}, reader=True)

    def check(self, spaces: Mapping[str, LabelSpace], test: Beforehand | None = None) -> None:
        wanted = [(self.task, "multiclass", "task", "whose predictions are explained")]
        if "rationale" in self.explainers:
            wanted.append((self.rationale_task, "tokens", "rationale_task", "that explainers=[rationale] asks"))
        for task, kind, key, what in wanted:
            if task not in spaces or spaces[task].kind != kind:
                found = f"{task!r} is {spaces[task].kind}" if task in spaces else f"there is no {task!r}"
                raise UserError(
                    f"expected a {kind} task {what} among tasks=[{','.join(spaces)}], and {found}; add it to tasks=[...], "
                    f"or type evaluations.{self.called}.{key}=NAME of another, or other evaluations.{self.called}.explainers"
                )
        if self.outside is not None and test is None:
            outside.read(self.outside)
        if test is not None:
            self._try_out(test.posts[self.task], test.columns.get(self.task, {}), test.reader)

    def _try_out(self, posts: np.ndarray, columns: Mapping[str, Column], reader: Reader | None) -> None:
        """Reads what explains these posts from outside, and has the network explain one of them, whatever its label."""
        assert reader is not None  # it is in `needs`
        places = self._places(len(posts), columns)
        if reader.paired[posts[places]].any():
            raise UserError(
                f"task={self.task}: expected posts of one text each, and some are read with second texts, of whose tokens "
                f"no word is known; type evaluations.{self.called}.task=NAME of another, or evaluations=[]"
            )
        if self.outside is not None:
            self._outside(posts, places, reader)
        one = [reader.tokens(int(posts[places[0]]))]
        for explainer in self.explainers:
            if explainer != "outside":
                self._explained(explainer, one, np.zeros(1, np.int64), reader)

    def _places(self, posts: int, columns: Mapping[str, Column]) -> list[int]:
        """The places of those that are judged, of so many posts."""
        if self.truth is None:
            return [*range(posts)]
        marked = columns[self.truth]
        has = [place for place in np.flatnonzero(marked.has).tolist() if (marked.values[place] > 0).any()]
        if not has:
            raise UserError(f"no test post of task {self.task!r} has a marked word in the column {self.truth!r}")
        return has

    def judged(self, said: Predicted, columns: Mapping[str, Column], reader: Reader) -> list["Post"]:
        """The posts whose explanations are judged."""
        places = self._places(len(said.posts), columns)
        truth = {place: columns[self.truth].values[place] > 0 for place in places} if self.truth is not None else {}
        return [Post(place, reader.tokens(int(said.posts[place])), truth.get(place)) for place in places]

    def scores(
        self, explainer: Explainer, said: Predicted, posts: Sequence["Post"], reader: Reader
    ) -> tuple[list[np.ndarray], list[Row]]:
        """The scores (T,) of the tokens of each post, computed once for all who ask by the same keys, and their cost."""

        def compute() -> tuple[list[np.ndarray], float]:
            start, places = time.perf_counter(), [post.place for post in posts]
            if explainer == "outside":
                words = self._outside(said.posts, places, reader)
                found = [explainers.at_tokens(post.tokens, of) for post, of in zip(posts, words, strict=True)]
            else:
                labels = said.scores[places].argmax(axis=1)
                found = self._explained(explainer, [post.tokens for post in posts], labels, reader)
            return found, time.perf_counter() - start

        settings = {
            **{"rationale": (self.rationale_task,), "attention": (self.layer, self.head)},
            **{"integrated_gradients": (self.steps,), "outside": (self.outside,)},
        }
        asked = said.stage, self.task, tuple(said.posts[post.place] for post in posts)
        found, seconds = reader.once((explainer, settings.get(explainer), asked), compute)
        name = f"explaining_seconds_{explainer}_{self.called}"  # whatever the order of evaluations, each tells of its own
        cost = Row(said.stage, self.task, name, None, seconds)
        return found, [cost, replace(cost, value=float(len(posts)), behind="posts")]

    def _outside(self, posts: np.ndarray, places: Sequence[int], reader: Reader) -> list[np.ndarray]:
        """The scores of the words of the posts at these places. posts: where all that may be in the file stand."""
        assert self.outside is not None
        names = [reader.named(post) for post in posts.tolist()]
        return outside.of_posts(self.outside, dict(names), [names[place][0] for place in places])

    def _explained(
        self, explainer: Explainer, tokens: Sequence[Tokens], labels: np.ndarray, reader: Reader
    ) -> list[np.ndarray]:
        match explainer:
            case "rationale":
                return explainers.rationale(reader, self.rationale_task, tokens)
            case "attention":
                return explainers.attention(reader, self.task, tokens, layer=self.layer, head=self.head)
            case "gradient_input":
                return explainers.gradient_input(reader, self.task, tokens, labels)
        return explainers.integrated_gradients(reader, self.task, tokens, labels, steps=self.steps)


class Post(NamedTuple):
    """Holds a post whose explanation is judged. place: among the posts of `Predicted`. truth: (words,) bool, if given."""

    place: int
    tokens: Tokens
    truth: np.ndarray | None


class Places(NamedTuple):
    """Holds the places of a post's tokens as a protocol counts them, P of them.

    token: (P,), which token of `Tokens.ids` stands there, -1 of one that was cut off. words: (P,), as `Tokens.words`.
    """

    token: np.ndarray
    words: np.ndarray

    @staticmethod
    def of(tokens: Tokens, protocol: Protocol) -> "Places":
        """All tokens, those that were cut off after the last that was not; in `joined` without the special ones."""
        words, cut = tokens.words, tokens.cut
        token = np.arange(len(words))
        if len(cut):
            end = int(np.flatnonzero(words >= 0)[-1]) + 1
            token, words = np.insert(token, end, [-1] * len(cut)), np.insert(words, end, cut)
        return Places(token, words) if protocol == "official" else Places(token[words >= 0], words[words >= 0])

    def scores(self, of_tokens: np.ndarray) -> np.ndarray:
        """(P,) the scores of tokens (T,), 0 for what was cut off."""
        return np.where(self.token < 0, 0.0, of_tokens[self.token])

    def marked(self, of_words: np.ndarray) -> np.ndarray:
        """(P,) bool, whether each is a piece of a marked word."""
        return (self.words >= 0) & of_words[self.words]
