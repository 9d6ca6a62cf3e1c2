"""Explains what a task predicts of posts by a score for every token: of the network's own parts, or of its gradients."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hatemtl.evaluations.base import Reader, Tokens


def rationale(reader: Reader, task: str, posts: Sequence[Tokens]) -> list[np.ndarray]:
    """The scores of the head of this task of tokens: every piece of a word has its word's, special tokens 0."""
    head = reader.through.heads[task]
    found = _of_batches(reader, posts, lambda batch: head.scores(reader.through(batch, [task])[task]))
    each = []
    for tokens, scores in zip(posts, found, strict=True):
        begins = np.flatnonzero(np.diff(tokens.words, prepend=-2))
        pieces = np.diff(begins, append=len(tokens.words))
        each.append(np.where(tokens.words < 0, 0.0, np.repeat(scores[begins], pieces)))
    return each


def attention(reader: Reader, task: str, posts: Sequence[Tokens], *, layer: int, head: int | None) -> list[np.ndarray]:
    """The attention that the first token pays: the mean of a layer's heads, or one of them. No head of a task is asked."""
    return _of_batches(reader, posts, lambda batch: reader.through.attention(batch, task, layer=layer, head=head))


def at_tokens(tokens: Tokens, words: np.ndarray) -> np.ndarray:
    """(T,) the scores of words (W,) at all pieces of each; special tokens have 0."""
    return np.where(tokens.words < 0, 0.0, words[tokens.words])


def gradient_input(reader: Reader, task: str, posts: Sequence[Tokens], labels: np.ndarray) -> list[np.ndarray]:
    """Σ over the embedding's numbers of gradient × input, of the probability of each post's label (N,).

    Shrikumar et al. 2016, Not just a black box, arXiv:1605.01713. Signed: a token that speaks against the label is below 0.
    """

    def scores(embeddings: Tensor, chances: Callable[..., Tensor], *more: Tensor) -> Tensor:
        embeddings.requires_grad_()
        (gradient,) = torch.autograd.grad(chances(embeddings, *more).sum(), embeddings)
        return gradient * embeddings.detach()

    return _of_gradients(reader, task, posts, labels, scores)


def integrated_gradients(
    reader: Reader, task: str, posts: Sequence[Tokens], labels: np.ndarray, *, steps: int
) -> list[np.ndarray]:
    """Integrated gradients of the probability of each post's label (N,), in so many steps, summed over the embedding.

    Sundararajan et al. 2017, Axiomatic attribution for deep networks, arXiv:1703.01365, as Captum computes it. They start
    from a post of padding tokens between its own special ones; the scores of a post sum to what the label's probability
    gains from there.
    """
    from captum.attr import IntegratedGradients  # slow to import

    # the same batches as of the posts, since their lengths are the same
    blank = [np.where(tokens.words < 0, tokens.ids, reader.pad) for tokens in posts]
    baselines = (reader.through.embed(batch).detach().float() for _, batch in reader.batches(blank))

    def scores(embeddings: Tensor, chances: Callable[..., Tensor], *more: Tensor) -> Tensor:
        way: dict[str, Any] = {"n_steps": steps, "internal_batch_size": len(embeddings)}
        made = IntegratedGradients(chances).attribute(embeddings, next(baselines), additional_forward_args=more, **way)
        return made.detach()

    return _of_gradients(reader, task, posts, labels, scores)


def _of_batches(reader: Reader, posts: Sequence[Tokens], scores: Callable[[Any], Tensor]) -> list[np.ndarray]:
    """Computes scores of batches (B, T), and gives each post's, (T,)."""
    with reader.inference():
        return _apart(posts, ((places, scores(batch)) for places, batch in reader.batches([of.ids for of in posts])))


def _of_gradients(
    reader: Reader, task: str, posts: Sequence[Tokens], labels: np.ndarray, scores: Callable[..., Tensor]
) -> list[np.ndarray]:
    """Computes scores of batches' embeddings (B, T, E), and gives each post's summed over E, (T,).

    scores: it gets them in float32, a function of them and what that needs beside them: the probability (B,) of the labels.
    """

    def of_batches() -> Iterator[tuple[np.ndarray, Tensor]]:
        for places, batch in reader.batches([of.ids for of in posts]):
            embeddings = reader.through.embed(batch).detach()
            wanted = torch.from_numpy(labels[places]).to(embeddings.device)
            chances = partial(_chances, reader.through, task, batch, embeddings.dtype)
            made = scores(embeddings.float(), chances, batch.input_ids, batch.attention_mask, wanted)
            yield places, made.sum(dim=-1)

    with reader.gradients():
        return _apart(posts, of_batches())


def _chances(
    through: Any, task: str, batch: Any, dtype: torch.dtype, embeddings: Tensor, ids: Tensor, mask: Tensor, labels: Tensor
) -> Tensor:
    """The probability (B,) of the labels of a batch like this, of these embeddings."""
    here = replace(batch, input_ids=ids, attention_mask=mask, posts=labels, tokens=-1)
    scores = through.heads[task].scores(through.logits(here, task, embeddings.to(dtype)))
    return scores.gather(1, labels[:, None])[:, 0]


def _apart(posts: Sequence[Tokens], batches: Iterator[tuple[np.ndarray, Tensor]]) -> list[np.ndarray]:
    found: list[Any] = [None] * len(posts)
    for places, scores in batches:
        for place, row in zip(places, scores.float().cpu().numpy(), strict=True):
            found[place] = row[: len(posts[place].ids)].astype(np.float64)
    return found
