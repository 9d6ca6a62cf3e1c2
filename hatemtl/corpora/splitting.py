"""Splits corpora that have no official splits, and takes shares of a corpus that lie within one another."""

import hashlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

LINK, NAME, MARK = re.compile(r"https?://\S+|www\.\S+"), re.compile(r"@\w+"), re.compile(r"[^\w\s]+")


def text_key(text: str) -> str:
    """Reduces a text to what texts that differ in case and space alone have in common.

    >>> text_key("Snorfs  must\\tGO ")
    'snorfs must go'
    """
    return " ".join(text.casefold().split())


def reduced(texts: Sequence[str], *, names: bool = False) -> list[str]:
    """Reduces texts to what their copies have in common: without case, marks and differences of space.

    names: whether links count as one another as well, and so do @names. A text of marks alone keeps them.

    >>> reduced(["@Anna: see https://a.b/c NOW!", "!?"]), reduced(["@bob  See www.d.e, now"], names=True)
    (['anna see httpsabc now', '!?'], ['user see url now'])
    """
    lines = [text_key(text) for text in texts]
    joined = "\n".join(lines)  # all at once, which takes a third of the time
    joined = NAME.sub("user", LINK.sub("url", joined)) if names else joined
    words = (" ".join(line.split()) for line in MARK.sub("", joined).split("\n"))
    return [bare or line for bare, line in zip(words, lines, strict=False)]  # "".split gives one


def divide(keys: Sequence[str], fractions: Sequence[float], seed: int, strata: np.ndarray | None = None) -> np.ndarray:
    """Deals posts, (N,), to "train", "val", "test" in these shares, as `deal` does."""
    return np.array(["train", "val", "test"])[deal(keys, fractions, seed, strata)]


def deal(keys: Sequence[str], shares: Sequence[float], seed: int, strata: np.ndarray | None = None) -> np.ndarray:
    """Deals posts, (N,), to piles of these shares, counted from 0. Equal keys are in one pile: no text is in two.

    The order of a key is a function of key and seed alone. strata: (N,) integers whose values are spread alike over the
    piles, a key's being that of its first post.
    """
    places: dict[str, int] = {}  # not np.unique, whose array of strings is as wide as the longest text
    inverse = np.array([places.setdefault(str(key), len(places)) for key in keys], np.int64)
    unique, first = list(places), np.unique(inverse, return_index=True)[1]
    groups = np.zeros(len(unique), np.int64) if strata is None else strata[first]
    sizes, place = np.bincount(inverse, minlength=len(unique)), np.empty(len(unique))
    for members in _shuffled(unique, groups, seed):
        place[members] = (sizes[members].cumsum() - sizes[members] / 2) / sizes[members].sum()
    return np.searchsorted(np.cumsum(shares)[:-1], place, side="right")[inverse]


def keys(texts: Sequence[str], pairs: Sequence[Sequence[str]] | None = None) -> list[str]:
    """Gives one key a post for `divide`, equal where posts share a text, whatever its case, marks and spaces.

    pairs: further texts of each post. Posts that share any of theirs, directly or by way of others, have one key.

    >>> keys(["A  cat.", "a cat", "a dog"]), keys(["a", "b", "d"], [["b"], ["c"], ["e"]])
    (['a cat', 'a cat', 'a dog'], ['a', 'a', 'd'])
    """
    above: dict[str, str] = {}

    def first(text: str) -> str:
        while (up := above.setdefault(text, text)) != text:
            above[text] = above[up]
            text = up
        return text

    found = reduced(texts)
    for text, others in zip(found, pairs if pairs is not None else (), strict=pairs is not None):
        for other in reduced(others):
            a, b = sorted((first(text), first(other)))
            above[b] = a  # the first in the alphabet stands for all, so that keys do not depend on the order of posts
    return [first(text) for text in found]


def nested(keys: Sequence[str], strata: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Picks positions of a share of each stratum, at least one post of it; a smaller share lies within a larger."""
    kept = [members[: max(1, round(fraction * len(members)))] for members in _shuffled(keys, strata, seed)]
    return np.sort(np.concatenate([np.zeros(0, np.int64), *kept]))


def proportional(keys: Sequence[str], strata: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draws so many positions, of each stratum in proportion; a smaller number's lie within a larger's. keys: distinct."""
    if len(keys) <= count:
        return np.arange(len(keys))
    at, offsets = np.zeros(len(keys)), draws([f"stratum {stratum}" for stratum in np.unique(strata)], seed) / 2.0**64
    for members, offset in zip(_shuffled(keys, strata, seed), offsets, strict=True):
        # spread evenly from 0 to 1; were all strata to begin at one place, those of one size would all be in, or all out
        at[members] = (np.arange(len(members)) + offset) / len(members)
    return np.sort(np.argsort(at, kind="stable")[:count])


def draws(keys: Sequence[str], seed: int) -> np.ndarray:
    """A random number for each key, (N,) uint64, a function of key and seed alone."""
    named = (f"{seed}\x1f{key}".encode(errors="surrogatepass") for key in keys)
    return np.array([int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") for name in named], np.uint64)


def _shuffled(keys: Sequence[str], strata: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Positions of each stratum, ordered at random, a key's place being a function of key and seed alone."""
    drawn = draws(keys, seed)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        yield members[np.argsort(drawn[members], kind="stable")]
