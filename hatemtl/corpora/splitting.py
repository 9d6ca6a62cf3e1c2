"""Splits for corpora that have no official ones, and shares of a corpus that lie within one another."""

import hashlib
from collections.abc import Sequence

import numpy as np

from hatemtl.errors import UserError


def divide(keys: Sequence[str], fractions: Sequence[float], seed: int, strata: np.ndarray | None = None) -> np.ndarray:
    """(N,) of "train", "val" and "test" in these three shares. Equal keys stand in one split, so no text is in two.

    The order of a key is a function of key and seed alone. strata: (N,) integers whose values are spread alike over the
    splits, a key's being that of its first post.
    """
    if len(fractions) != 3 or any(share < 0 for share in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(f"fractions={list(fractions)}: expected the shares of train, val and test, summing to 1")
    unique, first, inverse = np.unique(np.asarray(keys, object).astype(str), return_index=True, return_inverse=True)
    groups = np.zeros(len(unique), np.int64) if strata is None else strata[first]
    sizes, place = np.bincount(inverse, minlength=len(unique)), np.empty(len(unique))
    draws = _draws(unique, seed)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        members = members[np.argsort(draws[members], kind="stable")]
        place[members] = (sizes[members].cumsum() - sizes[members] / 2) / sizes[members].sum()
    split = np.searchsorted(np.cumsum(fractions)[:2], place, side="right")
    return np.array(["train", "val", "test"])[split[inverse]]


def nested(keys: Sequence[str], strata: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Positions of a share of each stratum, at least one post of it, in order; a smaller share lies within a larger."""
    draws = _draws(keys, seed)
    kept = []
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        members = members[np.argsort(draws[members], kind="stable")]
        kept.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate([np.zeros(0, np.int64), *kept]))


def _draws(keys: Sequence[str] | np.ndarray, seed: int) -> np.ndarray:
    """(N,) numbers that order the keys at random, each a function of key and seed alone."""
    start = hashlib.blake2b(f"{seed}\x1f".encode(), digest_size=8)
    draws = []
    for key in keys:
        one = start.copy()
        one.update(str(key).encode(errors="surrogatepass"))
        draws.append(int.from_bytes(one.digest(), "big"))
    return np.array(draws, np.uint64)
