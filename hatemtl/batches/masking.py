"""Masks tokens of a text for a masked language model to guess, and draws others in their place."""

from dataclasses import dataclass

import numpy as np

from hatemtl.encoders.pretrained import Tokenizer
from hatemtl.errors import UserError
from hatemtl.labels import IGNORED

MASKED, SWAPPED = 0.8, 0.1  # of the tokens to be guessed; the rest is read as it is (Devlin et al. 2019, arXiv:1810.04805)


@dataclass(frozen=True)
class Masking:
    """A share of a text's tokens, drawn by a number and by where each token stands: the same in whatever batch.

    mask: the id that is read for most. ordinary: (V,) bool, the ids that stand for text; special ones are not guessed.
    """

    share: float
    mask: int
    ordinary: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer, share: float) -> "Masking":
        """Raises UserError where the tokenizer has no token to read in place of a masked one."""
        if tokenizer.mask_token_id is None:
            raise UserError("this encoder's tokenizer has no mask token, so it cannot be trained to guess masked ones; type "
                            "encoder=minilm or another encoder that was pretrained so")  # fmt: skip
        return cls(share, tokenizer.mask_token_id, ordinary(tokenizer))

    def __call__(self, ids: np.ndarray, places: np.ndarray, inside: np.ndarray, draw: int) -> tuple[np.ndarray, np.ndarray]:
        """Gives the ids that are read, and those that are to be guessed, `IGNORED` elsewhere: (B, T) int64 both.

        ids: (B, T). places: (B, T), where each token stands among all. inside: (B, T) bool, False where there is none.
        A text without an ordinary token has nothing to guess; any other one token at least.
        """
        open_ = inside & self.ordinary[ids]
        count = open_.sum(axis=1, keepdims=True)
        number = np.minimum(np.maximum(np.rint(self.share * count), 1), count)
        order = np.argsort(np.where(open_, uniform(places, draw, 0), 2.0), axis=1, kind="stable")
        chosen = np.zeros_like(inside)
        np.put_along_axis(chosen, order, np.arange(ids.shape[1]) < number, axis=1)
        how, words = uniform(places, draw, 1), np.flatnonzero(self.ordinary)
        other = words[(uniform(places, draw, 2) * len(words)).astype(np.int64)]
        read = np.where(how < MASKED, self.mask, np.where(how < MASKED + SWAPPED, other, ids))
        return np.where(chosen, read, ids).astype(np.int64), np.where(chosen, ids, int(IGNORED)).astype(np.int64)


def ordinary(tokenizer: Tokenizer) -> np.ndarray:
    """Tells which ids stand for text, (V,) bool: all but the special ones."""
    known = np.ones(len(tokenizer), bool)
    known[tokenizer.all_special_ids] = False
    return known


def uniform(places: np.ndarray, draw: int, which: int) -> np.ndarray:
    """Draws numbers in [0, 1), each a function of its place, the draw and which of it this is.

    A place's value in the stream of SplitMix64 (Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195), of 53 bits.
    """
    u = np.uint64
    with np.errstate(over="ignore"):
        z = (places.astype(u) * u(3) + u(which + 1)) * u(0x9E3779B97F4A7C15) + u(draw)
        z = (z ^ (z >> u(30))) * u(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> u(27))) * u(0x94D049BB133111EB)
    return ((z ^ (z >> u(31))) >> u(11)) * 2.0**-53
