"""Predicts the right one of a post's second texts: multiple choice."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from hatemtl.heads.base import Head, carried, drawn_loss, grouped, masked_mean
from hatemtl.heads.figures import Figure
from hatemtl.heads.layers import Pool, Pooling, feed_forward
from hatemtl.labels import LabelSpace


class ChoiceHead(Head):
    """A score for each sequence of a text with one of its choices, softmax over those of a post, trained by cross-entropy.

    label_smoothing: share of the target spread over a post's choices, however many it has (Szegedy et al. 2016,
    arXiv:1512.00567, section 7).
    """

    kind = "choice"

    def __init__(
        self,
        *,
        hidden_size: int,
        space: LabelSpace,
        pooling: Pooling,
        layers: int,
        dropout: float,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(space, "accuracy", label_smoothing=label_smoothing)
        self.pool = Pool(pooling, hidden_size)
        self.layers = feed_forward(hidden_size, 1, layers=layers, dropout=dropout)

    def forward(self, hidden: Tensor, attention_mask: Tensor, counts: Tensor | None = None) -> Tensor:
        """Computes a score a sequence, (S,); `Batch.by_post` puts those of a post side by side for all that follows."""
        return super().forward(hidden, attention_mask).squeeze(1)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Computes what each post costs, (B,), annotated or not."""
        losses = F.cross_entropy(logits, targets, reduction="none")
        if self.label_smoothing:
            there = logits != -torch.inf  # torch's own smoothing would ask for choices that are not, at an infinite loss
            each = -logits.log_softmax(dim=1).where(there, 0)
            losses = losses.lerp(each.sum(dim=1) / there.sum(dim=1), self.label_smoothing)
        return losses

    def loss(self, logits: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        return masked_mean(self.losses(logits, targets), has.to(logits.dtype))

    def losses_by_label(self, logits: Tensor, targets: Tensor, has: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the losses of posts by the place of their right choice."""
        places = carried(targets, len(self.space)) & has[:, None]
        return grouped(self.losses(logits, targets)[:, None], places.to(logits.dtype))

    def rows(self, computed: Tensor) -> list[Figure]:
        return [Figure("accuracy", None, float(computed.trace() / torch.clamp(computed.sum(), min=1)))]

    def surprise(self, logits: Tensor, draw: Generator) -> Tensor:
        return drawn_loss(logits, draw)
