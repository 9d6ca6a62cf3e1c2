"""Draws attention to the words that annotators marked: supervised attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hatemtl.errors import UserError, did_you_mean
from hatemtl.heads.base import masked_mean
from hatemtl.objective.regularisers.base import Passes, Regulariser, Run, expect

Kind = Literal["as_documented", "as_shipped", "mse"]


@dataclass(frozen=True, kw_only=True)
class RationaleAttention(Regulariser):
    """The difference of attention a from what a rationale asks for, over posts in which a word is marked; λ is `weight`.

    Attention is the encoder's, from the first token to all, of each of these heads of these layers (null: all heads), or the
    weights by which the head of a task, `of`, pools. m is what `rationale_task` says of a token: 1 or an annotators' share
    at all pieces of a marked word, 0 at others and at the first and last token of a sequence.

    as_documented: -Σ t·log a, t = softmax(m / temperature), the mean over heads (Mathew et al. 2021, arXiv:2012.10289).
    as_shipped: as its code has it: -Σ t·log softmax(a), t = softmax(m), for the factor that was to sharpen t has no effect
    there, and a, which is a softmax already, goes through another; the sum over heads. mse: the mean over tokens of
    (a - m / Σ m)², the mean over heads (as arXiv:2511.07065 does for one; that m is divided by its sum, as a sums to 1, is
    ours). HateXplain also draws posts without a rationale to even attention, and a word's share there is of three
    annotators, whether each marked some or not.
    """

    weight: float
    kind: Kind
    of: str
    layers: Sequence[int]
    heads: Sequence[int] | None
    rationale_task: str
    temperature: float

    def __post_init__(self) -> None:
        expect(0 <= self.weight < float("inf"), "rationale_attention.weight", self.weight, "λ, a number, 0 or more")
        expect(
            0 < self.temperature < float("inf"),
            "rationale_attention.temperature",
            self.temperature,
            "a number above 0, such as 0.2",
        )
        for key in ("layers", "heads"):
            given = getattr(self, key)
            expect(
                given is None or 0 < len({*given}) == len(given),
                f"rationale_attention.{key}",
                given,
                "one or more numbers, each once, counted from 0",
            )

    def check(self, forward: Passes) -> None:
        known, name = forward.heads, "regulariser=[rationale_attention]"
        if self.rationale_task not in known or known[self.rationale_task].space.about != "words":
            said = "is none of words" if self.rationale_task in known else "is none of this run"
            raise UserError(
                f"regulariser.rationale_attention.rationale_task={self.rationale_task} {said} ({', '.join(known)}); add "
                f"rationale to tasks=[...] (with tasks.rationale.weight=0 its head shapes nothing), or name another"
            )
        if forward.by_task:
            raise UserError(f"{name}: with this method each task has an attention of its own; type method=peft_lora16")
        if self.of != "encoder":
            self._check_pooling(forward)
            return
        config = forward.encoder.config
        for key, given, least, most in (
            ("layers", self.layers, -config.num_hidden_layers, config.num_hidden_layers - 1),
            ("heads", self.heads or (), 0, config.num_attention_heads - 1),
        ):
            for number in given:
                also = ", or -1 for the last" if least else ", or null for all"
                expect(least <= number <= most, f"rationale_attention.{key}", list(given), f"numbers from 0 to {most}{also}")
        ids = torch.tensor([[3, 4, 5, 6]], device=next(forward.encoder.parameters()).device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for layer in self.layers:
            with forward.without_dropout(), torch.enable_grad():
                weights = forward.attention_by_head(SimpleNamespace(inputs=inputs), layer=layer)
            if not weights.requires_grad:
                raise UserError(
                    f"regulariser.rationale_attention.layers={list(self.layers)}: nothing that is trained moves the "
                    f"attention of layer {layer}; give layers above, or leave fewer out (method.leave_out=[])"
                )

    def _check_pooling(self, forward: Passes) -> None:
        if self.of not in forward.heads:
            raise UserError(
                f"regulariser.rationale_attention.of={self.of}: expected encoder, or a task of this run; "
                f"{did_you_mean(self.of, ['encoder', *forward.heads])}"
            )
        pool = forward.heads[self.of].pool
        if pool is None or pool.query is None:
            raise UserError(
                f"regulariser.rationale_attention.of={self.of}: the head of that task does not pool by attention; type "
                f"tasks.{self.of}.head.pooling=attention, or regulariser.rationale_attention.of=encoder"
            )

    def begin(self, forward: Passes, run: Run) -> Regulariser:
        if self.rationale_task in run.paired:
            raise UserError(
                f"regulariser.rationale_attention.rationale_task={self.rationale_task}: its posts are read with second "
                f"texts, of whose words no rationale tells; name a task of posts of one text, or leave the regulariser out"
            )
        if self.of == "encoder" and self.weight:
            forward.watched = [*dict.fromkeys([*forward.watched, *self.layers])]
        return self

    def terms(self, forward: Passes, batch: Any, hidden: Tensor | None, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.rationale_task not in logits or (self.of == "encoder" and not forward.learns):
            return {}
        inside = batch.first(batch.attention_mask).bool()
        marks = spread(batch.targets[self.rationale_task][:, : inside.shape[1]], inside)
        found = difference(self.kind, self._attention(forward, batch, hidden), marks, inside, self.temperature)
        counted = batch.has[self.rationale_task] & (marks > 0).any(dim=1)
        return {"difference": masked_mean(found, counted.float())}

    def _attention(self, forward: Passes, batch: Any, hidden: Tensor | None) -> Tensor:
        """(B, H, T) float32, of all heads of all layers that were asked for."""
        if self.of != "encoder":
            assert hidden is not None  # of a method whose tasks have their own, `check` has said no
            with torch.autocast(hidden.device.type, enabled=False):
                mask = batch.first(batch.attention_mask)
                return forward.heads[self.of].pool.weights(batch.first(hidden).float(), mask)[:, None]
        each = [batch.first(forward.attention_by_head(batch, layer=layer)) for layer in self.layers]
        return torch.cat([of if self.heads is None else of[:, list(self.heads)] for of in each], dim=1)


def spread(targets: Tensor, inside: Tensor) -> Tensor:
    """Gives each piece of a word what its first one has, (B, T); 0 at the first and last token of a post and at padding.

    targets: (B, T), below 0 where no word begins. inside: (B, T) bool, whether a token is there.
    """
    places = torch.arange(targets.shape[1], device=targets.device)
    begun = torch.where(targets >= 0, places, 0).cummax(dim=1).values  # where its word began; 0 before the first
    ends = inside.sum(dim=1, keepdim=True) - 1
    return torch.where(inside & (places < ends), targets.gather(1, begun).clamp(min=0), 0.0)


def difference(kind: Kind, attention: Tensor, marks: Tensor, inside: Tensor, temperature: float) -> Tensor:
    """Computes how far attention (B, H, T) is from what marks (B, T) ask for, (B,), as `RationaleAttention` says."""
    outside = ~inside
    with torch.autocast(attention.device.type, enabled=False):
        if kind == "mse":
            due = marks / marks.sum(dim=1, keepdim=True).clamp(min=torch.finfo(marks.dtype).tiny)
            squares = (attention - due[:, None]).square().sum(dim=2) / inside.sum(dim=1, keepdim=True)
            return squares.mean(dim=1)
        sharp = marks / temperature if kind == "as_documented" else marks
        due = sharp.masked_fill(outside, -torch.inf).softmax(dim=1)
        if kind == "as_documented":
            logs = attention.clamp(min=torch.finfo(attention.dtype).tiny).log()
        else:
            logs = F.log_softmax(attention.masked_fill(outside[:, None], -torch.inf), dim=2)
        each = -(due[:, None] * logs.masked_fill(outside[:, None], 0.0)).sum(dim=2)  # (B, H)
        return each.mean(dim=1) if kind == "as_documented" else each.sum(dim=1)
