"""Joins posts that no task annotates to the batches of training, for the regularisers that have a say on any post."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hatemtl.batches.sampling import Use, taken
from hatemtl.corpora.base import Corpus, Posts
from hatemtl.errors import UserError
from hatemtl.seeds import derive


@dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """The training posts of a corpus whose annotations are not read. posts: how many join each batch."""

    corpus: Corpus
    posts: int

    def __post_init__(self) -> None:
        if self.posts < 1:
            raise UserError(f"unlabelled.posts={self.posts}: expected at least 1 post to join each batch")

    def load(self) -> Posts:
        """Loads them; those for validation and tests are left out. Raises UserError where none is left."""
        posts = self.corpus.load()
        train = np.flatnonzero(posts.splits == "train")
        if not len(train):
            raise UserError("unlabelled.corpus has no training posts; give another corpus@unlabelled.corpus, or its splits")
        return posts.at(train)

    def joined(self, uses: Sequence[Use], rows: np.ndarray, lengths: np.ndarray, seed: int, epoch: int) -> list[Use]:
        """Joins the batches of an epoch by posts of `rows` that are about as long: a function of seed and epoch alone.

        lengths: of the whole pool, in tokens. Posts are drawn without putting back, until all were there.
        """
        drawn = rows[taken(np.ones(len(rows)), 0, len(uses) * self.posts, derive(seed, "unlabelled", epoch))]
        drawn = drawn[np.argsort(lengths[drawn], kind="stable")].reshape(len(uses), self.posts)
        longest = np.array([lengths[use.rows].max() for use in uses])
        place = np.argsort(np.argsort(longest, kind="stable"), kind="stable")  # of each batch, from short to long
        return [use._replace(rows=np.concatenate([use.rows, drawn[i]])) for use, i in zip(uses, place, strict=True)]
