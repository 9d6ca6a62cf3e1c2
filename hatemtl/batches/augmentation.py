"""Changes training posts anew in every epoch: words are dropped, swapped, masked, and their annotations go with them.

What is drawn is a function of seed, epoch, post and word alone, so a resumed run reads what an uninterrupted one does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from hatemtl.batches.masking import ordinary, uniform
from hatemtl.corpora.splitting import draws
from hatemtl.encoders.pretrained import Tokenizer
from hatemtl.errors import UserError
from hatemtl.seeds import derive


@dataclass(frozen=True)
class Words:
    """At most W words of each of S posts, as they are to be read.

    there: (S, W) bool. slots: (S, W), in the place of which of the post's words each stands, a permutation of each row.
    masked: (S, W) bool, whether each is read as the mask token.
    """

    there: np.ndarray
    slots: np.ndarray
    masked: np.ndarray


class Augmentation(Protocol):
    """Changes words; `draw(i)` gives (S, W) numbers in [0, 1), the i-th that were drawn for them. masks: whether any is."""

    masks: ClassVar[bool] = False

    def __call__(self, words: Words, draw: Callable[[int], np.ndarray]) -> Words: ...


@dataclass(frozen=True, kw_only=True)
class _Chance(Augmentation):
    """Has a probability for each word."""

    probability: float

    def __post_init__(self) -> None:
        if not 0 <= self.probability < 1:
            given = f"augmentation.{type(self).__name__.lower()}.probability={self.probability}"
            raise UserError(f"{given}: expected a probability from 0 to below 1, such as 0.1")


class Drop(_Chance):
    """Leaves each word out with a probability; where none would be left, the one that was the last to go stays."""

    def __call__(self, words: Words, draw: Callable[[int], np.ndarray]) -> Words:
        drawn = np.where(words.there, draw(0), -1.0)
        last = np.arange(drawn.shape[1]) == drawn.argmax(axis=1)[:, None]
        return replace(words, there=words.there & ((drawn >= self.probability) | last))


class Swap(_Chance):
    """Lets words that are drawn with a probability change places among themselves, in an order that is drawn as well."""

    def __call__(self, words: Words, draw: Callable[[int], np.ndarray]) -> Words:
        chosen = words.there & (draw(0) < self.probability)
        before = np.argsort(~chosen, axis=1, kind="stable")  # the chosen first, as they stand
        after = np.argsort(np.where(chosen, draw(1), 2.0), axis=1, kind="stable")  # and as they are drawn
        slots = words.slots.copy()
        np.put_along_axis(slots, before, np.take_along_axis(words.slots, after, axis=1), axis=1)
        return replace(words, slots=slots)


class Mask(_Chance):
    """Lets each word be read as the mask token, all of its pieces, with a probability."""

    masks = True

    def __call__(self, words: Words, draw: Callable[[int], np.ndarray]) -> Words:
        return replace(words, masked=words.masked | (words.there & (draw(0) < self.probability)))


class Read(NamedTuple):
    """Token ids as they are read, (S, T), which of the T tokens each was before, and whether there is one: (S, T) all."""

    ids: np.ndarray
    order: np.ndarray
    inside: np.ndarray


class Augmenter:
    """Applies augmentations, one after another, to the words of posts' first texts; all other tokens stay as they are.

    ids: the names of all posts, which are drawn by. Raises UserError where the tokenizer cannot mask and is to.
    """

    def __init__(self, augmentations: Mapping[str, Augmentation], tokenizer: Tokenizer, ids: list[str]) -> None:
        self.augmentations, self.ordinary, self.posts = augmentations, ordinary(tokenizer), draws(ids, 0)
        self.mask: int | None = tokenizer.mask_token_id
        if name := next((name for name, one in augmentations.items() if one.masks and self.mask is None), None):
            raise UserError(f"augmentation=[{name}]: this encoder's tokenizer has no mask token; leave {name} out")

    def drawn(self, seed: int, epoch: int) -> dict[str, int]:
        """Draws a number for each augmentation in a training epoch."""
        return {name: derive(seed, "augmentation", name, epoch) for name in self.augmentations}

    def __call__(
        self, posts: np.ndarray, ids: np.ndarray, begins: np.ndarray, inside: np.ndarray, numbers: Mapping[str, int]
    ) -> Read:
        """Changes S sequences of T token ids. posts: (S,) whose each is. begins: (S, T), as in `token_cache.Tokens`.

        numbers: of `drawn`. A word is its first token and those that follow up to the next word or special token.
        """
        columns, width = np.arange(ids.shape[1]), ids.shape[1]
        known = inside & self.ordinary[ids]
        first, closed = known & (begins >= 0), (inside & ~known).cumsum(axis=1)
        text = closed == np.take_along_axis(closed, first.argmax(axis=1)[:, None], axis=1)  # up to its own end
        first &= text
        word = first.cumsum(axis=1) - 1
        mine, counts = known & text & (word >= 0), first.sum(axis=1)
        most = int(counts.max(initial=0))
        if not most:
            return Read(ids, np.broadcast_to(columns, ids.shape), inside)
        slots = np.broadcast_to(np.arange(most), (len(ids), most))
        words = Words(slots < counts[:, None], slots, np.zeros(slots.shape, bool))
        places = self.posts[posts][:, None] + np.arange(most, dtype=np.uint64)
        for name, number in numbers.items():
            words = self.augmentations[name](words, partial(uniform, places, number))
        starts = np.zeros(slots.shape, np.int64)
        rows, at = np.nonzero(first)
        starts[rows, word[rows, at]] = at
        of = np.maximum(word, 0)
        stands = np.take_along_axis(np.take_along_axis(starts, words.slots, axis=1), of, axis=1)
        kept = inside & ~(mine & ~np.take_along_axis(words.there, of, axis=1))
        order = np.argsort(np.where(kept, np.where(mine, stands, columns), width), axis=1, kind="stable")
        read = np.where(mine & np.take_along_axis(words.masked, of, axis=1), self.mask or 0, ids)
        return Read(np.take_along_axis(read, order, axis=1), order, columns < kept.sum(axis=1)[:, None])
