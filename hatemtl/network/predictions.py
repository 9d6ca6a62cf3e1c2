"""Keeps what heads said of posts, batch by batch, for whatever judges it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hatemtl.evaluations.base import Predicted, Stage
from hatemtl.heads.base import Head


@dataclass
class Predictions:
    """A head's answers to the posts that its task annotates: places in the pool, scores and targets, a tensor a batch.

    Targets of a span head are `Answers`, of which `whole` makes nothing.
    """

    posts: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)

    def add(self, posts: Tensor, scores: Tensor, targets: Any, has: Tensor) -> None:
        """Keeps what was said of a batch's posts that have the annotation, on the CPU."""
        self.posts.append(posts[has].cpu())
        self.scores.append(scores[has].float().cpu())
        self.targets.append(targets[has].cpu())

    def whole(
        self, stage: Stage, head: Head, at_words: Callable[[int, list[float]], list[float]] | None = None
    ) -> Predicted:
        """The same as one array each, for evaluations. at_words: `TokenizedPosts.at_words`, for a head of tokens."""
        posts = torch.cat(self.posts).numpy()

        def joined(batches: list[Tensor]) -> np.ndarray:
            if head.space.about != "words":
                return torch.cat(batches).numpy()
            assert at_words is not None
            each = zip(posts.tolist(), (row.tolist() for batch in batches for row in batch), strict=True)
            return np.fromiter((np.array(at_words(post, row), np.float32) for post, row in each), object, len(posts))

        scores, gold = joined(self.scores), joined(self.targets)
        threshold = 0.5 if head.threshold is None else head.threshold.cpu().numpy()
        return Predicted(stage, head.space, posts, scores, gold, threshold)
