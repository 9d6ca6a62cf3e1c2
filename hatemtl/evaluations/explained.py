"""Holds what the judgements of explanations share: whose predictions are explained, by what, and over which tokens."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import numpy as np

from hatemtl.corpora.base import Column
from hatemtl.errors import UserError
from hatemtl.evaluations import explainers, outside
from hatemtl.evaluations.base import Needs, Predicted, Reader, Row, Tokens
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

    def check(self, spaces: Mapping[str, LabelSpace]) -> None:
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
        if self.outside is not None:
            outside.read(self.outside)

    def judged(self, said: Predicted, columns: Mapping[str, Column], reader: Reader) -> list["Post"]:
        """The posts whose explanations are judged."""
        if self.truth is None:
            return [Post(place, reader.tokens(post), None) for place, post in enumerate(said.posts.tolist())]
        marked = columns[self.truth]
        has = [place for place in np.flatnonzero(marked.has).tolist() if (marked.values[place] > 0).any()]
        if not has:
            raise UserError(f"no {said.stage} post of task {self.task!r} has a marked word in the column {self.truth!r}")
        return [Post(place, reader.tokens(said.posts[place]), marked.values[place] > 0) for place in has]

    def scores(
        self, explainer: Explainer, said: Predicted, posts: Sequence["Post"], reader: Reader
    ) -> tuple[list[np.ndarray], list[Row]]:
        """The scores (T,) of the tokens of each post; and rows of what they cost, for who is the first to ask for them."""
        rows: list[Row] = []

        def compute() -> list[np.ndarray]:
            start = time.perf_counter()
            found = self._explained(explainer, said, posts, reader)
            seconds = time.perf_counter() - start
            rows.append(Row(said.stage, self.task, f"explaining_seconds_{explainer}", None, seconds))
            rows.append(Row(said.stage, self.task, f"explaining_seconds_{explainer}", None, float(len(posts)), "posts"))
            return found

        settings = {
            **{"rationale": (self.rationale_task,), "attention": (self.layer, self.head)},
            **{"integrated_gradients": (self.steps,), "outside": (self.outside,)},
        }
        asked = said.stage, self.task, tuple(said.posts[post.place] for post in posts)
        return reader.once((explainer, settings.get(explainer), asked), compute), rows

    def _explained(self, explainer: Explainer, said: Predicted, posts: Sequence["Post"], reader: Reader) -> list[np.ndarray]:
        tokens = [post.tokens for post in posts]
        match explainer:
            case "rationale":
                return explainers.rationale(reader, self.rationale_task, tokens)
            case "attention":
                return explainers.attention(reader, self.task, tokens, layer=self.layer, head=self.head)
            case "outside":
                assert self.outside is not None
                names = [reader.named(post) for post in said.posts.tolist()]
                words = outside.of_posts(self.outside, dict(names), [names[post.place][0] for post in posts])
                return [explainers.at_tokens(of, words) for of, words in zip(tokens, words, strict=True)]
        labels = said.scores[[post.place for post in posts]].argmax(axis=1)
        if explainer == "gradient_input":
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
