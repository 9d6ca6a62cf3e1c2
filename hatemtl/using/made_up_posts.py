"""Compares with a saved run's network what others say of made-up posts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hatemtl.batches.tokenized_posts import TokenizedPosts
from hatemtl.encoders import for_others
from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.using.predictor import Predictor

TEXTS = ["A post.", "Another post, which says a little more than the first one does.", "And a third"]
SECONDS = (["It has an answer, longer than itself.", "So has this.", "Why not?"], ["It has none.", "This has", "Indeed."])


@dataclass(frozen=True)
class Case:
    """The texts as posts, each alone ([None]) or with second texts of which all but choices know the first; their scores."""

    pool: TokenizedPosts
    seconds: Sequence[list[str] | None]
    said: dict[str, list[list[float]]]

    def off(self, task: str, found: Iterable[Iterable[float]]) -> float:
        """The largest difference of scores, beside the largest score where that is above 1; infinite where one is no number.

        Of each post those that both give are compared: words that are cut off and choices that are not there score 0.
        """
        rows = zip(found, self.said[task], strict=True)
        both = np.array([pair for mine, theirs in rows for pair in zip(mine, theirs, strict=False)])
        off = float(np.abs(both[:, 0] - both[:, 1]).max()) / max(1.0, float(np.abs(both[:, 1]).max()))
        return off if off == off else float("inf")

    def check(self, found: Mapping[str, Iterable[Iterable[float]]], tolerance: float, what: str, instead: str) -> None:
        """Raises UserError where the found scores of a task are off by more than the tolerance."""
        for task, rows in found.items():
            if (off := self.off(task, rows)) > tolerance:
                form = "onnx" if instead == "merged" else "merged"
                raise UserError(
                    f"export.format={form}: of task {task!r} {what} says something else than the network (off by {off:.2g} "
                    f"on a made-up post); type export.format={instead}"
                )


def cases(predictor: Predictor, model: Transformer, tasks: Iterable[str]) -> Iterator[Case]:
    """The texts alone and, where there is room and the encoder tells segments apart as its tokenizer does, in pairs."""
    encoder, tokenizer = predictor.network.encoder, predictor.tokenizer
    types = "token_type_ids" in tokenizer.model_input_names
    known = "token_type_ids" in for_others.tokenizer(encoder, model).model_input_names
    room = encoder.max_length >= tokenizer.num_special_tokens_to_add(pair=True) + 2
    yield Case(pool := predictor.pool(TEXTS), [None], predictor.scores(pool, tasks=tasks))
    if room and types == known:
        pool = predictor.pool(TEXTS, [*zip(*SECONDS, strict=True)])
        yield Case(pool, SECONDS, predictor.scores(pool, tasks=tasks))
