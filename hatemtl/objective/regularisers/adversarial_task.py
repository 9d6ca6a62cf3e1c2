"""Lets the encoder forget where a post comes from: a discriminator guesses it, and its gradient is reversed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.errors import UserError, did_you_mean
from hatemtl.heads.base import masked_mean
from hatemtl.heads.layers import Pool, feed_forward
from hatemtl.objective.regularisers.base import Passes, Regulariser, Run, expect
from hatemtl.seeds import seeded


@dataclass(frozen=True, kw_only=True)
class AdversarialTask(Regulariser):
    """Domain-adversarial training by gradient reversal (Ganin & Lempitsky 2015, arXiv:1409.7495).

    A discriminator reads the mean of a post's hidden states and is trained to guess which corpus the post is of, by
    cross-entropy over the posts of known corpus; the encoder gets the gradient of that times -λ. of: corpus, or a task of
    one label a post, whose labels are guessed in place of corpora: give it tasks.NAME.weight=0, or its own head teaches the
    encoder what is to be forgotten. coefficient: λ. schedule: ganin lets it rise from 0 as 2 / (1 + exp(-10·p)) - 1 does, p
    being how far training is. layers: of the discriminator.
    """

    by_passes = True
    weight: float
    of: str
    coefficient: float
    schedule: Literal["ganin", "constant"]
    layers: int

    def __post_init__(self) -> None:
        for key in ("weight", "coefficient"):
            value = getattr(self, key)
            expect(0 <= value < math.inf, f"adversarial_task.{key}", value, "a number, 0 or more")
        expect(self.layers >= 1, "adversarial_task.layers", self.layers, "at least 1 layer")

    def check(self, forward: Passes) -> None:
        if forward.by_task:
            raise UserError(
                "regulariser=[adversarial_task]: what this method makes of a post depends on the task that reads it, so "
                "there are no hidden states of all to guess from; type method=peft_lora16, or leave it out"
            )
        if self.of == "corpus":
            return
        if self.of not in forward.heads:
            raise UserError(
                f"regulariser.adversarial_task.of={self.of}: {did_you_mean(self.of, ['corpus', *forward.heads])}"
            )
        if (space := forward.heads[self.of].space).carries != "one":
            raise UserError(
                f"regulariser.adversarial_task.of={self.of}: expected a task of one label a post, not {space.kind}; "
                f"type regulariser.adversarial_task.of=corpus"
            )

    def begin(self, forward: Passes, run: Run) -> "Adversary":
        corpora = [
            [task for task in forward.heads if run.corpora[task] == number] for number in sorted({*run.corpora.values()})
        ]
        if self.of == "corpus" and len(corpora) < 2:
            raise UserError(
                "regulariser.adversarial_task.of=corpus: all tasks read one corpus, so there is nothing to guess; give "
                "tasks of two, or the name of a task whose labels are to be guessed"
            )
        labels = len(corpora) if self.of == "corpus" else len(forward.heads[self.of].space)
        width = forward.encoder.config.hidden_size
        with seeded(run.seed, "regulariser", "adversarial_task"):
            layers = feed_forward(width, labels, layers=self.layers, dropout=0.0)
        return Adversary(self, corpora, layers, Pool("mean", width))


class Adversary(nn.Module, Regulariser):
    """The discriminator. corpora: the tasks that read each."""

    def __init__(self, settings: AdversarialTask, corpora: list[list[str]], layers: nn.Module, pool: Pool) -> None:
        super().__init__()
        self.settings, self.corpora, self.layers, self.pool = settings, corpora, layers, pool
        self.weight = settings.weight

    @property
    def state(self) -> nn.Module:
        return self

    def terms(self, forward: Passes, batch: Any, hidden: Tensor | None, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert hidden is not None  # of a method whose tasks have their own, `check` has said no
        with torch.autocast(hidden.device.type, enabled=False):
            pooled = self.pool(batch.first(hidden).float(), batch.first(batch.attention_mask))
            guesses = self.layers(reversed_gradient(pooled, self.coefficient(forward.progress)))
        truth, known = self.truth(batch)
        return {"loss": masked_mean(F.cross_entropy(guesses, truth, reduction="none"), known.float())}

    def coefficient(self, progress: float) -> float:
        """Gives λ at this share of training."""
        rise = 1.0 if self.settings.schedule == "constant" else 2 / (1 + math.exp(-10 * progress)) - 1
        return self.settings.coefficient * rise

    def truth(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Gives each post's right guess, (B,) int64, and whether there is one: a post is of a corpus that annotates it."""
        if self.settings.of != "corpus":
            return batch.targets[self.settings.of], batch.has[self.settings.of]
        of_corpus = torch.stack([torch.stack([batch.has[task] for task in tasks]).any(dim=0) for tasks in self.corpora])
        return of_corpus.int().argmax(dim=0), of_corpus.any(dim=0)


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, coefficient: float) -> Tensor:
        ctx.coefficient = coefficient
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.coefficient * grads[0], None


def reversed_gradient(x: Tensor, coefficient: float) -> Tensor:
    """Gives x itself, whose gradient is that of what follows times -coefficient."""
    return _Reversed.apply(x, coefficient)
