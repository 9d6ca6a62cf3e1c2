"""Defines a head: logits, loss, figures and decoding of one task."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from hatemtl.errors import UserError, did_you_mean
from hatemtl.heads.figures import Figure, confusion, likeliest
from hatemtl.heads.layers import Counts, Pool
from hatemtl.heads.losses import CrossEntropy, Loss
from hatemtl.labels import Kind, LabelSpace, name_of

Threshold = float | Literal["tuned"]
LabelWeights = Mapping[str | int | float | bool, float]  # by name, as a YAML reads it
Problem = Literal["single_label_classification", "multi_label_classification", "regression"]


class Head(nn.Module):
    """The head of one task on the encoder, with its loss, its metrics and its decoding; a class of it is a kind of label.

    Where a class does not say otherwise, its logits are those of C labels, one of them a post's.
    problem: as what transformers' classifiers know such a head, if they do. has_entropy: whether `entropy` is one of it.
    primary: the figure that tells which of two epochs is better; higher is better. primaries: those that it may be, none
    where there is no choice. threshold: (C,), the score from which each label or a word is predicted, None where nothing is.
    tunes: whether it is found on the validation posts when training ends; until then it is 1/2.
    loss_of: what its labels cost; None is cross-entropy. label_weights: how much the labels that it names count in the
    loss, others count 1; those that this head lacks, for it is of a part, are left out. Kept as (C,), of mean 1.
    counts: what a lexicon says of a post, which the layers read beside the pooled vector; None without one.
    Raises UserError where a setting is out of its range.
    """

    kind: ClassVar[Kind]
    problem: ClassVar[Problem | None] = None
    has_entropy: ClassVar[bool] = False
    pool: Pool | None
    counts: Counts | None
    threshold: Tensor | None
    layers: nn.Sequential
    weights: Tensor  # (C,) of labels, or of their positives, by how often they come
    label_weights: Tensor

    def __init__(
        self,
        space: LabelSpace,
        primary: str,
        primaries: Sequence[str] = (),
        *,
        balance: float = 0.0,
        label_smoothing: float = 0.0,
        threshold: Threshold | None = None,
        loss: Loss | None = None,
        label_weights: LabelWeights | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= balance <= 1:
            raise UserError(
                f"head balance={balance}: expected 0 (no weighting) to 1 (fully balanced); type tasks.TASK.head.balance=0.5"
            )
        if not 0 <= label_smoothing < 1:
            raise UserError(
                f"head label_smoothing={label_smoothing}: expected a share from 0 to below 1; type "
                f"tasks.TASK.head.label_smoothing=0.1"
            )
        if isinstance(threshold, float | int) and not 0 < threshold < 1:
            raise UserError(f"head threshold={threshold}: expected a probability between 0 and 1, or tuned")
        if primaries and primary not in primaries:
            raise UserError(
                f"head primary={primary!r}: expected one of this head's rows of which higher is better; "
                f"{did_you_mean(primary, primaries)}"
            )
        self.space, self.primary, self.pool, self.tunes = space, primary, None, threshold == "tuned"
        self.counts = None
        self.balance, self.label_smoothing = balance, label_smoothing
        self.loss_of = CrossEntropy() if loss is None else loss
        if loss is not None:
            loss.check(self.kind)
        self.register_buffer("weights", torch.ones(len(space)), persistent=False)
        self.asked = _asked(label_weights or {}, space)
        self.register_buffer("label_weights", self.asked / self.asked.mean(), persistent=False)
        cut = None if threshold is None else torch.full((len(space),), 0.5 if threshold == "tuned" else threshold)
        self.register_buffer("threshold", cut, persistent=False)  # not a weight: labels.json holds it

    def forward(self, hidden: Tensor, attention_mask: Tensor, counts: Tensor | None = None) -> Tensor:
        """Computes logits from hidden states (B, T, D) and, with a lexicon, counts (B, C).

        (B, C); (B, C - 1) for ordinal; (B, 1) for score; (B, T) for tokens; (B, T, 2) for span; for choice (S,), one a
        sequence, of which the loss takes those of a post, (B, C), with -inf where it has fewer; for masked the hidden states
        themselves.
        """
        read = hidden if self.pool is None else self.pool(hidden, attention_mask)
        return self.layers(read if self.counts is None else self.counts(read, counts))

    def observe(self, values: Tensor) -> None:
        """Takes in the training posts' annotations: (N,) or (N, C) as in `Column.values`, for tokens (words,) values."""

    def weigh(self, counts: Tensor) -> None:
        """Sets how much each label counts, by what was asked for and by how many training posts carry it, (C,)."""
        weights = self.asked * self.loss_of.label_weights(counts.float())
        self.label_weights.copy_(weights / weights.mean())

    def loss(self, logits: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        """Computes the mean loss over the annotated posts; zero, but connected to the graph, where there is none."""
        raise NotImplementedError

    def worth(self, targets: Tensor) -> Tensor | None:
        """Gives how much each post counts in the mean that `loss` is, (B,); None where posts count alike."""
        return None

    def answers(self, logits: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        """Counts what `loss` is a mean of, (): annotated posts by their worth, or of their tokens those that count."""
        worth = self.worth(targets)
        return has.sum() if worth is None else (worth * has).sum()

    def losses_by_label(self, logits: Tensor, targets: Tensor, has: Tensor) -> tuple[Tensor, Tensor]:
        """Computes each label's mean loss over the annotated posts, (C,), and its share of `loss`, (C,): Σ share·loss.

        Of one label a post, its mean is over the posts that carry it. The shares sum to 1, or are all 0 where no post is
        annotated; a head whose answers are all of one thing, as a number, has one loss. Connected to the graph as `loss` is.
        """
        return self.loss(logits, targets, has)[None], has.any().to(torch.float32)[None]

    def scores(self, logits: Tensor) -> Tensor:
        """Gives each post's answers: probabilities (B, C), or (B, T) for tokens; for score (B, 1), in the scale's units.

        For span (B, 3): the first and the last token of the answer, and its probability.
        """
        return logits.softmax(dim=1)

    def metric(self) -> Metric:
        """Makes a fresh accumulator: `update(scores, targets, has)` for every batch, then `compute()`."""
        return confusion(len(self.space), likeliest)

    def rows(self, computed: Tensor) -> list[Figure]:
        """Gives what it is judged by, in order, from what `metric().compute()` gave."""
        raise NotImplementedError

    def decode(self, scores: Sequence[float], words: Sequence[str]) -> list[str]:
        """Names the labels that one post's scores say, or the words that they mark."""
        return [self.space.names[max(range(len(scores)), key=scores.__getitem__)]]

    def written_thresholds(self) -> list[float] | None:
        """Gives the thresholds, if there are some, as the shortest decimals that float32 reads back as they are."""
        return None if self.threshold is None else [float(str(cut)) for cut in self.threshold.cpu().numpy()]

    def surprise(self, logits: Tensor, draw: Generator) -> Tensor | None:
        """Computes -log p(y | post), summed over posts, for labels y drawn from the prediction; None: none are."""
        return None

    def entropy(self, logits: Tensor) -> Tensor:
        """Computes the mean entropy of the predictions, in nats."""
        return -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()

    def kl(self, first: Tensor, second: Tensor, attention_mask: Tensor) -> Tensor:
        """Computes KL(p‖q), in nats, p of the first logits and q of the second, (B,); a choice at -inf says nothing."""
        p, q = first.log_softmax(dim=1), second.log_softmax(dim=1)
        there = torch.isfinite(p) & torch.isfinite(q)
        return torch.where(there, p.exp() * (p - q).masked_fill(~there, 0.0), 0.0).sum(dim=1)

    def divergence(self, first: Tensor, second: Tensor, attention_mask: Tensor) -> Tensor:
        """Computes ½·KL(p‖q) + ½·KL(q‖p), (B,)."""
        return (self.kl(first, second, attention_mask) + self.kl(second, first, attention_mask)) / 2


def primary(head: Head, figures: Iterable[Figure]) -> float:
    """The value of the figure that tells which of two epochs is better."""
    return next(figure.value for figure in figures if figure.key == head.primary)


def masked_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Computes Σ values·weights / Σ weights; zero, but connected to the graph, where no weight is left."""
    return (values * weights).sum() / _or_one(weights.sum())


def _or_one(total: Tensor) -> Tensor:
    """Gives what a sum of weights divides: 1 for 0, since a gradient over a number next to 0 is infinite, and by 0 none."""
    return torch.where(total > 0, total, 1.0)


def carried(targets: Tensor, labels: int) -> Tensor:
    """Tells which label each post carries, (B,) → (B, C) bool; unlike torch's one_hot it never looks at values first."""
    return targets[:, None] == torch.arange(labels, device=targets.device)


def grouped(losses: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Computes what `Head.losses_by_label` gives from losses (B, C) and weights (B, C), whose `masked_mean` is the loss."""
    each = weights.sum(dim=0)
    return (losses * weights).sum(dim=0) / _or_one(each), each / _or_one(each.sum())


def _asked(label_weights: LabelWeights, space: LabelSpace) -> Tensor:
    """The weight of each label, (C,), 1 where none is given. Raises UserError where one is none, or all are 0."""
    given = {name_of(name): weight for name, weight in label_weights.items()}
    for name, weight in given.items():
        if not 0 <= weight < math.inf:
            raise UserError(
                f"head label_weights.{name}={weight}: expected a number, 0 or more; type "
                f"'tasks.TASK.head.label_weights={{{name}:2}}'"
            )
    weights = torch.tensor([float(given.get(name, 1)) for name in space.names])
    if not weights.any():
        raise UserError(
            f"head label_weights={given}: no label of {', '.join(space.names)} would count; give one a weight above 0"
        )
    return weights


def drawn_loss(logits: Tensor, draw: Generator) -> Tensor:
    """Computes -log p(y | post), summed over posts, for a label y of each that is drawn from the softmax of (B, C)."""
    drawn = torch.multinomial(logits.softmax(dim=1).detach(), 1, generator=draw)
    return F.cross_entropy(logits, drawn[:, 0], reduction="sum")


def label_weights(values: Tensor, labels: int, balance: float) -> Tensor:
    """Weighs labels in the loss, (C,), by how often `values` (N,) show them: (1 / (C · frequency)) ** balance."""
    positives = torch.bincount(values, minlength=labels).float()
    return (max(len(values), 1) / (labels * positives.clamp(min=1))) ** balance
