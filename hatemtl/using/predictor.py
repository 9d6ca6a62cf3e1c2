"""Scores texts with a saved run: what the command line, a script, a notebook and a server stand on."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
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
from hatemtl.using.int8 import quantize

# Tokens times squared hidden size that a thread is worth its while for: those of 227 tokens of MiniLM, some 4 ms a layer. Of
# less, a product takes a tenth of a millisecond, and where something else runs on the machine, to wait for another thread
# takes many times as long: of 20 tokens 150 ms in place of 4. On a machine that does nothing else, two would save a third.
WORK = 2**25


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
        self.network.module.requires_grad_(False).eval().to(request.trainer.device)
        if request.trainer.int8:
            quantize(self.network, request, saved)
        self.heads = {task: self.network.module.head(task) for task in self.spaces}
        self.lexicons = {task: lexicon for task, of in request.tasks.items() if (lexicon := of.lexicon) is not None}
        self.tokenizer = self.network.encoder.tokenizer()
        check_tokenizer(saved, vocabulary(self.tokenizer))

    @property
    def device(self) -> torch.device:
        return self.request.trainer.device

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
        Space in texts is collapsed before they are read, as in training; an answer and its start are told of the second text
        as it is given. Raises UserError where something is no text, or an empty one, or a task needs second texts and there
        are none.
        """
        check_predictable(self.spaces, pairs=seconds is not None)
        if isinstance(seconds, str | bytes):
            raise UserError(f"{shown(seconds)}: expected several second texts; give a list of them")
        if seconds is not None:
            texts = [*texts]
            if len(seconds) != len(texts):
                raise UserError(f"{len(seconds)} second texts for {len(texts)} texts; give one for each")
            for i, second in enumerate(seconds):
                if not isinstance(second, str) or not second.strip():
                    raise UserError(f"second text {i}: {shown(second)}, expected a text with a word in it")
        pool = self.pool(texts, None if seconds is None else [(as_post(second),) for second in seconds])
        said = self.named(pool, self.scores(pool, told))
        for task in (task for task, space in self.spaces.items() if space.about == "answers"):
            for second, of_post in zip(seconds or (), said, strict=True):
                of_post[task] = as_given(sound(second), of_post[task])
        return said

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
        located, on_gpu = any(space.about == "answers" for space in self.spaces.values()), self.device.type == "cuda"
        pool = TokenizedPosts(self.tokenizer, length, [whole], preprocess=preprocess, located=located, on_gpu=on_gpu)
        return pool.count(self.lexicons)

    def scores(
        self, pool: TokenizedPosts, told: Callable[[int], object] | None = None, tasks: Iterable[str] | None = None
    ) -> dict[str, list[list[float]]]:
        """The tasks' scores (all tasks' if not given) of the pool's posts, in their order: one a label, or one a word."""
        tasks = [*(self.spaces if tasks is None else tasks)]
        found: dict[str, list[list[float]]] = {task: [[]] * len(pool) for task in tasks}
        batches = self.request.batching.in_order(pool.lengths) if len(pool) else []
        apart = self.request.workers or self.device.type == "cuda"  # else a loader only takes time
        for batch in loader(pool, batches, self.request.workers) if apart else map(pool.__getitem__, batches):
            with self.reading(batch.tokens):
                self.keep(found, pool, batch, self.network.module.through(batch.to(self.device), tasks))
            if told is not None:
                told(len(batch))
        return found

    @contextmanager
    def reading(self, tokens: int) -> Iterator[None]:
        """Lets this thread compute as training's evaluations do, inside, a batch of so many tokens.

        LoRAs are merged at the first, and stay so: nothing is trained here. On a CPU as many threads compute as pay.
        """
        through, threads = self.network.module.through, torch.get_num_threads()
        pay = paying(tokens, through.encoder.config.hidden_size, most=threads) if self.device.type == "cpu" else threads
        with self.request.trainer.arithmetic():
            through.settle()
            torch.set_num_threads(pay)
            try:
                with through.inference():
                    yield
            finally:
                torch.set_num_threads(threads)

    def keep(
        self, found: Mapping[str, list[list[float]]], pool: TokenizedPosts, batch: Batch, logits: Mapping[str, Tensor]
    ) -> None:
        """Puts the scores of a batch of the pool's posts in their places: of each task a list a post."""
        for task, of_task in logits.items():
            for post, row in zip(batch.posts.tolist(), self.heads[task].scores(of_task).tolist(), strict=True):
                found[task][post] = pool.at_words(post, row) if self.spaces[task].about == "words" else row


def paying(tokens: int, hidden_size: int, *, most: int) -> int:
    """Gives how many threads are to compute so many tokens.

    >>> [paying(tokens, 384, most=4) for tokens in (20, 454, 456, 5000)], paying(20, 2048, most=4)
    ([1, 1, 2, 4], 2)
    """
    return max(1, min(most, tokens * hidden_size**2 // WORK))


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


def as_given(text: str, answer: Scored) -> Scored:
    """Finds an answer of a text, whose space was collapsed, in the text itself.

    >>> as_given(" the soup \\n is  of anna", Scored(["soup is"], {"start": 4, "score": 1.0}, []))
    Scored(labels=['soup \\n is'], scores={'start': 5, 'score': 1.0}, words=[])
    """
    words = [word.span() for word in re.finditer(r"\S+", text)]
    places = [place for begin, end in words for place in range(begin, end + 1)]  # and of the space behind each
    begin = int(answer.scores["start"])
    end = places[begin + len(answer.labels[0]) - 1] + 1 if answer.labels[0] else places[begin]
    return replace(answer, labels=[text[places[begin] : end]], scores={**answer.scores, "start": places[begin]})


def answered(pool: TokenizedPosts, post: int, scores: Sequence[float]) -> Scored:
    """Gives what a span head's scores of one post of the pool say: the answer between two of its tokens."""
    first, last, score = scores
    begin, end = pool.passage(post).between(int(first), int(last))
    return Scored([pool.seconds[post][begin:end]], {"start": begin, "score": score}, [])
