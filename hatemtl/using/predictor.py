"""Scores texts with a saved run: what the command line, a script, a notebook and a server stand on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from hatemtl.batches.batch import Batch
from hatemtl.batches.tokenized_posts import TokenizedPosts, loader
from hatemtl.command.request import Request
from hatemtl.corpora.base import Posts
from hatemtl.corpora.rows import LONGEST, as_post, shown, sound
from hatemtl.encoders.pretrained import vocabulary
from hatemtl.errors import UserError
from hatemtl.heads.base import Head
from hatemtl.labels import LabelSpace
from hatemtl.machine.startup import quiet
from hatemtl.network.assembly import check_tokenizer
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.seeds import kept
from hatemtl.using.reader import through


@dataclass(frozen=True)
class Scored:
    """Holds what one task says of one text.

    labels: the names of its labels, or of its level; the words that are marked; a scale's number, as text; an answer.
    scores: of each label, in the labels' order: a probability, or a scale's number. Empty for words. Of an answer, `start`,
        its first character in the second text, and `score`, the product of the probabilities of its start and its end.
    words: each word with its score, 0 beyond max_length, NaN where the tokenizer makes nothing of it. Empty but for words.
    """

    labels: list[str]
    scores: dict[str, float]
    words: list[tuple[str, float]]


class Predictor:
    """Reads texts with a saved run's encoder and says what each of its tasks' heads makes of them.

    >>> predictor = Predictor.load("adapters/run")  # doctest: +SKIP
    >>> predictor(["some text"])[0]["label"].scores  # doctest: +SKIP
    {'hatespeech': 0.03, 'normal': 0.9, 'offensive': 0.07}
    """

    def __init__(self, request: Request, saved: SavedRun) -> None:
        """request: how `saved`, its `used_run`, is loaded."""
        self.request, self.saved, self.spaces = request, saved, {task: saved.labels[task] for task in request.tasks}
        self.network = request.network(request.tasks, self.spaces, name=saved.folder.name)
        self.network.module.requires_grad_(False).to(request.trainer.device)
        self.heads = {task: self.network.module.head(task) for task in self.spaces}
        self.lexicons = {task: lexicon for task, of in request.tasks.items() if (lexicon := of.lexicon) is not None}
        self.tokenizer = self.network.encoder.tokenizer()
        check_tokenizer(saved, vocabulary(self.tokenizer))

    @classmethod
    def load(cls, folder: str | Path, *typed: str, config_dir: str | Path | None = None) -> "Predictor":
        """The saved run in `folder`, with what would be typed on the command line, as `"trainer.accelerator=cpu"`.

        config_dir: as --config-dir there, where options of your own lie; Python must find their classes.
        Random generators and Hydra are left as they were found. Raises UserError where the run cannot be loaded so.
        """
        from hatemtl.command.configuration import requested  # and Hydra, which others do without
        from hatemtl.command.used_run import using_alone

        quiet()
        request = requested(using_alone(folder, typed, config_dir))
        with request.naming(), kept():
            predictor = cls(request, request.used_run("predict"))
        check_predictable(predictor.spaces, pairs=True)
        return predictor

    def __call__(
        self,
        texts: Iterable[str],
        told: Callable[[int], object] | None = None,
        *,
        seconds: Sequence[str] | None = None,
    ) -> list[dict[str, Scored]]:
        """Gives what each task says of each text. told: called with the number of texts of every batch that is done.

        seconds: the second text that each is read with, as the one in which a question's answer stands.
        Space in a text is collapsed, as in training, but in no second one. Raises UserError where something is no text, or
        an empty one, or a task needs second texts and there are none.
        """
        check_predictable(self.spaces, pairs=seconds is not None)
        if seconds is not None:
            texts = [*texts]
            if len(seconds) != len(texts):
                raise UserError(f"{len(seconds)} second texts for {len(texts)} texts; give one for each")
            for i, second in enumerate(seconds):
                if not isinstance(second, str) or not second.strip():
                    raise UserError(f"second text {i}: {shown(second)}, expected a text with a word in it")
        pool = self.pool(texts, None if seconds is None else [(sound(second),) for second in seconds])
        return self.named(pool, self.scores(pool, told))

    def named(self, pool: TokenizedPosts, scores: Mapping[str, Sequence[list[float]]]) -> list[dict[str, Scored]]:
        """Gives what scores of all tasks say of each text of the pool."""
        return [
            {
                task: answered(pool, row, scores[task][row])
                if self.spaces[task].about == "answers"
                else scored(self.heads[task], scores[task][row], text.split(" "))
                for task in self.spaces
            }
            for row, text in enumerate(pool.texts)
        ]

    def pool(self, texts: Iterable[str], pairs: list[tuple[str, ...]] | None = None) -> TokenizedPosts:
        """The texts as token ids. pairs: the second texts that each is read with. Raises UserError as a call does."""
        if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
            raise UserError(f"{shown(texts)}: expected several texts; give a list of them, [text] for one")
        posts = []
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"text {i}: {shown(text)}, expected a text with a word in it; leave it out")
            posts.append(as_post(text))
            if len(posts[i]) > LONGEST:
                raise UserError(f"text {i}: {len(posts[i]):,} characters, expected {LONGEST:,} at most; leave it out")
        whole = Posts([*map(str, range(len(posts)))], posts, np.full(len(posts), "test"), {}, pairs)
        length, preprocess = self.network.encoder.max_length, self.request.preprocess
        located = any(space.about == "answers" for space in self.spaces.values())
        pool = TokenizedPosts(self.tokenizer, length, [whole], preprocess=preprocess, located=located)
        return pool.count(self.lexicons)

    def scores(
        self, pool: TokenizedPosts, told: Callable[[int], object] | None = None, tasks: Iterable[str] | None = None
    ) -> dict[str, list[list[float]]]:
        """The tasks' scores (all tasks' if not given) of the pool's posts, in their order: one a label, or one a word."""
        tasks = [*(self.spaces if tasks is None else tasks)]
        found: dict[str, list[list[float]]] = {task: [[]] * len(pool) for task in tasks}
        batches = self.request.batching.in_order(pool.lengths) if len(pool) else []
        passed = through(self.network.module, self.request.trainer, loader(pool, batches, self.request.workers), tasks)
        for batch, logits in passed:
            self.keep(found, pool, batch, logits)
            if told is not None:
                told(len(batch))
        return found

    def keep(
        self, found: Mapping[str, list[list[float]]], pool: TokenizedPosts, batch: Batch, logits: Mapping[str, Tensor]
    ) -> None:
        """Puts the scores of a batch of the pool's posts in their places: of each task a list a post."""
        for task, of_task in logits.items():
            for post, row in zip(batch.posts.tolist(), self.heads[task].scores(of_task).tolist(), strict=True):
                found[task][post] = pool.at_words(post, row) if self.spaces[task].about == "words" else row


def check_predictable(spaces: Mapping[str, LabelSpace], *, pairs: bool = False) -> None:
    """Raises UserError where a task says nothing of a single text, or of one with a second where there are `pairs`."""
    for task, space in spaces.items():
        if space.about not in ("posts", "words", *(["answers"] if pairs else [])):
            raise UserError(
                f"task {task!r} is about {space.about} and says nothing of a single text; leave it out of tasks=[...]"
            )


def scored(head: Head, scores: list[float], words: Sequence[str]) -> Scored:
    """Gives what a head's scores of one text, one a label or one a word, say of it."""
    labels = head.decode(scores, words)
    if head.space.about == "words":
        return Scored(labels, {}, list(zip(words, scores, strict=True)))
    return Scored(labels, dict(zip(head.space.names, scores, strict=True)), [])


def answered(pool: TokenizedPosts, post: int, scores: Sequence[float]) -> Scored:
    """Gives what a span head's scores of one post of the pool say: the answer between two of its tokens."""
    first, last, score = scores
    begin, end = pool.passage(post).between(int(first), int(last))
    return Scored([pool.seconds[post][begin:end]], {"start": begin, "score": score}, [])
