"""Computes what an answer costs in training: cross-entropy, and losses that look harder at rare labels or at errors."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hatemtl.errors import UserError
from hatemtl.labels import Kind


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Computes the costs of a post's labels from logits (B, C). kinds: the heads that it is for.

    A head of one label a post asks `costs`, one of yes and no `answers`; a class has those of its kinds. All compute in
    float32 or finer.
    """

    kinds: ClassVar[tuple[Kind, ...]]

    @property
    def of_shares(self) -> bool:
        """Tells whether training reads the shares of annotators in the place of the label."""
        return False

    def check(self, kind: Kind) -> None:
        """Raises UserError where it is not for a head of this kind."""
        if kind not in self.kinds:
            raise UserError(
                f"head loss: {type(self).__name__} is for heads of {', '.join(self.kinds)}, and this one is {kind}; type "
                f"tasks.TASK.head.loss=null, or another of them"
            )

    def costs(self, logits: Tensor) -> Tensor:
        """Computes what each label costs, were it the post's, (B, C)."""
        raise NotImplementedError

    def answers(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Computes what a yes and what a no costs, each shaped as the logits."""
        raise NotImplementedError

    def label_weights(self, counts: Tensor) -> Tensor:
        """Weighs labels, (C,), by how many training posts carry them, (C,)."""
        return torch.ones_like(counts)

    def smoothed(self, logits: Tensor, label_smoothing: float) -> Tensor:
        """Computes `costs`, a share of them spread over all labels (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""
        costs = self.costs(_exact(logits))
        return costs.lerp(costs.mean(dim=1, keepdim=True), label_smoothing) if label_smoothing else costs

    def of_label(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Computes what each post's label costs, (B,), targets being its place, (B,)."""
        return self.smoothed(logits, label_smoothing).gather(1, targets[:, None])[:, 0]

    def of_answers(self, logits: Tensor, targets: Tensor, positive_weights: Tensor, label_smoothing: float) -> Tensor:
        """Computes what each answer costs, shaped as the logits: y·w·yes + (1 - y)·no, targets y in [0, 1].

        Positives are weighed and smoothed as in `binary_losses`.
        """
        yes, no = self.answers(_exact(logits))
        losses = targets * positive_weights * yes + (1 - targets) * no
        if not label_smoothing:
            return losses
        return losses.lerp(targets * positive_weights * no + (1 - targets) * yes, label_smoothing / 2)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """-log p of what is true. targets: the majority's label, or the shares of annotators who gave each, in training.

    Of shares q it is -Σ q·log p for one label a post, and q·(-log p) + (1 - q)·(-log(1 - p)) for each of several: the
    soft loss of learning from disagreement (Uma et al. 2021, doi:10.1613/jair.1.12752).
    """

    kinds = ("multiclass", "multilabel", "tokens")
    targets: Literal["majority", "shares"] = "majority"

    @property
    def of_shares(self) -> bool:
        return self.targets == "shares"

    def costs(self, logits: Tensor) -> Tensor:
        return -logits.log_softmax(dim=1)

    def of_label(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        return F.cross_entropy(_exact(logits), targets, reduction="none", label_smoothing=label_smoothing)

    def of_answers(self, logits: Tensor, targets: Tensor, positive_weights: Tensor, label_smoothing: float) -> Tensor:
        return binary_losses(_exact(logits), targets, positive_weights, label_smoothing)


@dataclass(frozen=True, kw_only=True)
class Focal(Loss):
    """-(1 - p)^γ·log p of what is true: what is known by now counts less (Lin et al. 2017, arXiv:1708.02002, eq. 4 and 5).

    gamma: γ; 0 is cross-entropy. alpha: of yes and no, weighs a yes by α and a no by 1 - α; None both by 1.
    """

    kinds = ("multiclass", "multilabel", "tokens")
    gamma: float
    alpha: float | None

    def __post_init__(self) -> None:
        _check_gamma("gamma", self.gamma)
        if self.alpha is not None and not 0 < self.alpha < 1:
            raise UserError(
                f"alpha={self.alpha}: expected a share between 0 and 1, or null; type tasks.TASK.head.loss.alpha=0.25"
            )

    def check(self, kind: Kind) -> None:
        super().check(kind)
        if kind == "multiclass" and self.alpha is not None:
            raise UserError(
                f"head loss.alpha={self.alpha}: a task of one label a post has no yes and no to weigh; type "
                f"tasks.TASK.head.loss.alpha=null, and tasks.TASK.head.label_weights={{LABEL:2}} for what counts more"
            )

    def costs(self, logits: Tensor) -> Tensor:
        return _focal_costs(logits, self.gamma)

    def answers(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        yes, no = _focal_answers(logits, self.gamma, self.gamma)
        return (yes, no) if self.alpha is None else (self.alpha * yes, (1 - self.alpha) * no)


@dataclass(frozen=True, kw_only=True)
class ClassBalanced(Loss):
    """Focal loss, each label weighed by 1 / its effective number of posts (Cui et al. 2019, arXiv:1901.05555).

    beta: β of the number (1 - βⁿ) / (1 - β) of n training posts; 0 weighs labels alike, towards 1 by 1/n. The weights sum to
    the number of labels. Of several labels a post, a weight is of all answers on a label, yes or no (Huang et al. 2021,
    arXiv:2109.04712). gamma: as in `Focal`; 0 is cross-entropy.
    """

    kinds = ("multiclass", "multilabel")
    beta: float
    gamma: float

    def __post_init__(self) -> None:
        _check_gamma("gamma", self.gamma)
        if not 0 <= self.beta < 1:
            raise UserError(
                f"beta={self.beta}: expected a number from 0 (no weighting) to below 1 (nearly inverse frequency); type "
                f"tasks.TASK.head.loss.beta=0.999"
            )

    def costs(self, logits: Tensor) -> Tensor:
        return _focal_costs(logits, self.gamma)

    def answers(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return _focal_answers(logits, self.gamma, self.gamma)

    def label_weights(self, counts: Tensor) -> Tensor:
        if not self.beta:
            return torch.ones_like(counts)
        effective = -torch.expm1(counts.double().clamp(min=1) * math.log(self.beta)) / (1 - self.beta)
        weights = 1 / effective
        return (weights * len(counts) / weights.sum()).to(counts)


@dataclass(frozen=True, kw_only=True)
class Asymmetric(Loss):
    """(1 - p)^γ₊·(-log p) of a yes, q^γ₋·(-log(1 - q)) of a no, q = max(p - m, 0) (Ridnik et al. 2021, arXiv:2009.14119).

    So a no that is easy counts less than a yes, and one below the margin m nothing. gamma_positive: γ₊. gamma_negative: γ₋.
    margin: m. detach: takes the powers as weights that pass no gradient on, a switch of the authors' code.
    """

    kinds = ("multilabel", "tokens")
    gamma_positive: float
    gamma_negative: float
    margin: float
    detach: bool

    def __post_init__(self) -> None:
        _check_gamma("gamma_positive", self.gamma_positive)
        _check_gamma("gamma_negative", self.gamma_negative)
        if not 0 <= self.margin < 1:
            raise UserError(
                f"margin={self.margin}: expected a probability from 0 (none) to below 1; type "
                f"tasks.TASK.head.loss.margin=0.05"
            )

    def answers(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        if not self.margin:
            return _focal_answers(logits, self.gamma_positive, self.gamma_negative, detach=self.detach)
        yes, _ = _focal_answers(logits, self.gamma_positive, 0.0, detach=self.detach)
        tiny = torch.finfo(logits.dtype).tiny  # at 0 a root's slope is infinite
        shifted = (logits.sigmoid() - self.margin).clamp(min=tiny)
        power = shifted.pow(self.gamma_negative)
        return yes, -(power.detach() if self.detach else power) * ((-logits).sigmoid() + self.margin).clamp(max=1).log()


def binary_losses(logits: Tensor, targets: Tensor, positive_weights: Tensor, label_smoothing: float) -> Tensor:
    """Computes each answer's binary cross-entropy, targets y in [0, 1] smoothed to y·(1 - ε) + ε/2; shapes as the logits'.

    That is label smoothing over two classes, yes and no (Szegedy et al. 2016, arXiv:1512.00567, section 7). Positives are
    weighed by what they are, not by what is smoothed into them: of a weight of 99, ε/2 of every no would make a yes.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=positive_weights, reduction="none")
    if not label_smoothing:
        return losses
    # -logits are the log odds of the opposite answer, so this is what the same targets cost if they said the opposite
    opposite = F.binary_cross_entropy_with_logits(-logits, targets, pos_weight=positive_weights, reduction="none")
    return losses.lerp(opposite, label_smoothing / 2)


def _focal_costs(logits: Tensor, gamma: float) -> Tensor:
    """(1 - p)^γ·(-log p) of each label, p being the softmax of (B, C)."""
    log_p = logits.log_softmax(dim=1)
    return -(-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny).pow(gamma) * log_p


def _focal_answers(logits: Tensor, of_yes: float, of_no: float, *, detach: bool = False) -> tuple[Tensor, Tensor]:
    """(1 - p)^γ₊·(-log p) and p^γ₋·(-log(1 - p)), p = σ(logits); powers by logarithms, which never overflow."""
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    weights = (of_yes * log_q).exp(), (of_no * log_p).exp()
    yes, no = (weight.detach() for weight in weights) if detach else weights
    return -yes * log_p, -no * log_q


def _exact(logits: Tensor) -> Tensor:
    """The logits in float32, or in what is finer if they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check_gamma(name: str, gamma: float) -> None:
    if not 0 <= gamma < math.inf:
        raise UserError(f"{name}={gamma}: expected a number, 0 (no focus) or more; type tasks.TASK.head.loss.{name}=2")
