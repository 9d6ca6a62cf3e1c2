"""Finds leaks: posts for training that stand, word for word or nearly, among those for validation or test.

Texts are compared without case, punctuation and differences of space; links count as one another, and so do @names. Near
is a Jaccard similarity of at least `NEAR` between their sets of five successive characters. Candidates come from MinHash
with banding (Broder 1997; Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, chapter 3), which meets a pair of that
similarity with probability 1 - (1 - .8^4)^10 = .995 and one of .9 almost surely; each is then compared exactly.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from hatemtl.corpora.base import SPLITS, Corpus, Posts, Split
from hatemtl.corpora.splitting import reduced
from hatemtl.errors import UserError

Policy = Literal["warn", "drop", "refuse"]
NEAR = 0.8
SHINGLE = 5  # characters
BANDS, ROWS = 10, 4  # of a signature
NEIGHBOURS = 50  # in a band's order: where hundreds of posts are alike, each is compared with so many
CHUNK = 1_000_000  # characters whose shingles are held at a time


@dataclass(frozen=True)
class Leak:
    """Copies between two splits. exact, near: how many posts of the later one have an equal, or only a near, one before.

    copies: positions of the posts of the earlier split that have an equal or near one in the later, and are to go.
    examples: up to three pairs, equal ones first: the positions of the earlier and the later post, and whether equal.
    """

    earlier: Split
    later: Split
    exact: int
    near: int
    copies: np.ndarray
    examples: tuple[tuple[int, int, bool], ...]


def check(
    corpora: Mapping[Corpus, Posts], policy: Policy, names: Mapping[Corpus, str]
) -> tuple[list[str], dict[Corpus, np.ndarray]]:
    """Reports the leaks within and between the corpora of a run, and the posts of each that are to be left out.

    names: how each is called where there are several.
    Raises UserError where there are leaks and the policy is to refuse them.
    """
    parts = list(corpora.values())
    read = [pair for posts in parts for pair in zip(posts.texts, posts.pairs or [()] * len(posts), strict=True)]
    found = between([" ".join([text, *pair]) for text, pair in read], np.concatenate([posts.splits for posts in parts]))
    called = {corpus: f"{names[corpus]} " if len(parts) > 1 else "" for corpus in corpora}
    ids = [called[corpus] + post for corpus, posts in corpora.items() for post in posts.ids]
    lines, gone = [], np.zeros(len(ids), bool)
    for leak in found:
        pairs = ", ".join(f"{ids[x]} {'=' if equal else '~'} {ids[y]}" for x, y, equal in leak.examples)
        exact = f"of the {leak.later} posts, {leak.exact:,} stand in {leak.earlier} word for word"
        copies = f"{len(leak.copies):,} {leak.earlier} posts are {'left out' if policy == 'drop' else 'copies'}"
        lines.append(f"{exact}, {leak.near:,} nearly ({pairs}); {copies}")
        gone[leak.copies] = policy == "drop"
    if lines and policy == "refuse":
        raise UserError("; ".join(lines) + "; type data.leaks=drop to leave the copies out, or data.leaks=warn")
    if lines and policy == "warn":
        lines[-1] += "; data.leaks=drop leaves copies out"
    ends = np.cumsum([len(posts) for posts in parts])[:-1]
    left_out = dict(zip(corpora, map(np.flatnonzero, np.split(gone, ends)), strict=True))
    return lines, {corpus: rows for corpus, rows in left_out.items() if len(rows)}


def between(texts: Sequence[str], splits: np.ndarray) -> list[Leak]:
    """Finds the leaks from each split into a later one, of N texts in these splits (N,); pairs without any are left out."""
    keys, of = np.unique(np.array(reduced(texts, names=True), object), return_inverse=True)
    counts = [np.bincount(of[splits == split], minlength=len(keys)) for split in SPLITS]
    there = np.stack(counts, axis=1) > 0  # which texts each split has
    a, b = _near(keys.tolist(), there @ (1 << np.arange(len(SPLITS))))
    a, b = np.concatenate([a, b]), np.concatenate([b, a])
    leaks = []

    def post(key: int, split: Split) -> int:
        return int(np.argmax((of == key) & (splits == split)))

    for (i, earlier), (j, later) in combinations(enumerate(SPLITS), 2):
        equal = there[:, i] & there[:, j]
        linked = there[a, i] & there[b, j]
        near_earlier, near_later = (np.isin(np.arange(len(keys)), end[linked]) for end in (a, b))
        exact = int((equal[of] & (splits == later)).sum())
        near = int(((near_later & ~equal)[of] & (splits == later)).sum())
        copies = np.flatnonzero((equal | near_earlier)[of] & (splits == earlier))
        if len(copies):
            pairs = [*((k, k) for k in np.flatnonzero(equal)[:3]), *zip(a[linked][:3], b[linked][:3], strict=True)][:3]
            examples = tuple((post(x, earlier), post(y, later), bool(x == y)) for x, y in pairs)
            leaks.append(Leak(earlier, later, exact, near, copies, examples))
    return leaks


def _near(texts: Sequence[str], splits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of texts in different splits that are near: two arrays of one length. splits: (N,), a bit for each split."""
    padded = [text.ljust(SHINGLE) for text in texts]
    signatures = _signatures(padded)
    found = [np.zeros(0, np.int64)]
    for a, b in _candidates(signatures):
        differ = np.bitwise_count(splits[a] | splits[b]) > 1
        a, b = a[differ], b[differ]
        alike = (signatures[a] == signatures[b]).mean(axis=1) >= 0.5  # at similarity .8 that fails once in a million
        a, b = np.minimum(a, b)[alike], np.maximum(a, b)[alike]
        found.append(a * len(texts) + b)
    a, b = np.divmod(np.unique(np.concatenate(found)), max(len(texts), 1))
    of = {i: {padded[i][k : k + SHINGLE] for k in range(len(padded[i]) - SHINGLE + 1)} for i in {*a.tolist(), *b.tolist()}}
    alike = (len(of[x] & of[y]) / len(of[x] | of[y]) for x, y in zip(a.tolist(), b.tolist(), strict=True))
    kept = np.array([similarity >= NEAR for similarity in alike], bool)
    return a[kept], b[kept]


def _candidates(signatures: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of rows that agree in a band, as two arrays of positions."""
    bands = signatures.reshape(len(signatures), BANDS, ROWS).astype(np.uint64)
    hashed = bands[..., 0]
    for row in range(1, ROWS):
        hashed = hashed * np.uint64(0x9E3779B97F4A7C15) + bands[..., row]
    for band in range(BANDS):
        mine, next_one = hashed[:, band], hashed[:, (band + 1) % BANDS]
        order = np.lexsort((next_one, mine))  # in a crowded band the likest stand beside one another
        for distance in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            same = np.flatnonzero(mine[order[distance:]] == mine[order[:-distance]])
            if not len(same):
                break
            yield order[same], order[same + distance]


def _signatures(texts: Sequence[str]) -> np.ndarray:
    """(N, BANDS · ROWS) uint32: for each of so many hash functions, the least hash of any of a text's shingles."""
    draw = np.random.default_rng(0)
    factors = draw.integers(0, 1 << 31, BANDS * ROWS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    signatures = np.zeros((len(texts), BANDS * ROWS), np.uint32)
    chunks = np.flatnonzero(np.diff(sizes.cumsum() // CHUNK, prepend=-1)).tolist()
    for begin, end in zip(chunks, [*chunks[1:], len(texts)], strict=False):
        lengths = sizes[begin:end]
        characters = np.frombuffer("".join(texts[begin:end]).encode("utf-32-le", "surrogatepass"), np.uint32)
        places, ends = len(characters) - SHINGLE + 1, lengths.cumsum()
        rolled = np.zeros(places, np.uint64)
        for shift in range(SHINGLE):
            rolled = rolled * np.uint64(0x100000001B3) + characters[shift : places + shift]
        inside = np.ones(len(characters), bool)
        inside[(ends[:, None] - np.arange(1, SHINGLE)).ravel()] = False  # a shingle that reaches into the next text
        rolled = rolled[inside[:places]]
        rolled ^= rolled >> np.uint64(33)
        hashes = ((rolled * np.uint64(0xFF51AFD7ED558CCD)) >> np.uint64(32)).astype(np.uint32)
        starts = (lengths - SHINGLE + 1).cumsum() - (lengths - SHINGLE + 1)
        for k, factor in enumerate(factors):
            mixed = hashes * factor
            mixed ^= mixed >> np.uint32(15)
            signatures[begin:end, k] = np.minimum.reduceat(mixed * factor, starts)
    return signatures
