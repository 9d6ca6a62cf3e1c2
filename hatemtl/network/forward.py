"""Runs posts through the shared encoder and reads task heads off its hidden states: written once, used by all."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hatemtl.batches.batch import Batch
from hatemtl.encoders.attention import by_head, of_first_token, watching
from hatemtl.encoders.fast import merge, merged, unmerge
from hatemtl.errors import UserError
from hatemtl.heads.base import Head
from hatemtl.methods.mtl_lora import reading, reads_by_task
from hatemtl.network.frozen_prefix import Prefix


class Forward:
    """Encodes a batch's S sequences of T tokens, (S, T, D), and reads every task's head off them.

    dtype: of the encoder's arithmetic. compiled: the encoder as training calls it, None for itself. prefix: the layers whose
    hidden states come with a batch. learns: whether the encoder side gets gradients; heads do in any case. progress: how far
    training is, from 0 to 1. weights: of the tasks, in training. settled: whether LoRAs are merged for good (`settle`).
    int8: whether into weights of 8 bits, in hatemtl's own layers. watched: layers; every pass that records gradients keeps
    what enters them, until the next one.
    """

    def __init__(self, encoder: Any, heads: Any, *, dtype: torch.dtype = torch.float32) -> None:
        self.encoder, self.heads, self.dtype = encoder, heads, dtype
        self.compiled: Callable[..., Any] | None = None
        self.prefix: Prefix | None = None
        self.learns, self.progress, self.by_task = True, 0.0, reads_by_task(encoder)
        self.weights: Mapping[str, float] = {}
        self.settled, self.int8 = False, False
        self.watched: Collection[int] = ()
        self.entered: tuple[Batch, dict[int, Tensor]] | None = None

    def __call__(
        self, batch: Batch, tasks: Iterable[str] | None = None, embeddings: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Computes the logits of these tasks, or of all that the batch is stepped for, as losses take them: see `Head`.

        embeddings: (S, T, E), where given, in place of the tokens' own.
        """
        return self.states_and_logits(batch, tasks, embeddings)[1]

    def states_and_logits(
        self, batch: Batch, tasks: Iterable[str] | None = None, embeddings: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Computes the hidden states that all these tasks read, (S, T, D), None where each has its own, and their logits."""
        if tasks is None:
            tasks = [*self.heads] if batch.only is None else [batch.only]  # what is not computed gets no gradient at all
        if not self.by_task:
            hidden = self.encode(batch, embeddings)
            return hidden, self.read(hidden, batch, tasks)
        return None, {task: self.logits(batch, task, embeddings) for task in tasks}

    def logits(self, batch: Batch, task: str, embeddings: Tensor | None = None) -> Tensor:
        """Computes one task's logits; of embeddings (S, T, E), where given, in place of the tokens' own."""
        with self._reading(task):
            return self.read(self.encode(batch, embeddings), batch, [task])[task]

    def attention(self, batch: Batch, task: str, *, layer: int, head: int | None) -> Tensor:
        """Gives what the first token attends to when this task reads, (S, T): `encoders.attention.of_first_token`."""
        with self._reading(task):
            return of_first_token(self.encoder, batch.inputs, layer=layer, head=head)

    def attention_by_head(self, batch: Batch, *, layer: int) -> Tensor:
        """Gives what the first token attends to, (S, H, T), with gradients: `encoders.attention.by_head`.

        Of what entered the layer in the last pass over this batch, where that was kept; else by a pass up to there.
        """
        kept = self.entered[1] if self.entered is not None and self.entered[0] is batch else {}
        return by_head(self.encoder, batch.inputs, layer=layer, entered=kept.get(layer))

    def _reading(self, task: str) -> AbstractContextManager[None]:
        return reading(self.encoder, task) if self.by_task else nullcontext()

    def encode(self, batch: Batch, embeddings: Tensor | None = None) -> Tensor:
        """Computes hidden states (S, T, D); of embeddings (S, T, E), where given, in place of the tokens' own."""
        if self.prefix is not None:
            self.prefix.current = None if embeddings is not None else batch.prefix  # which is of the tokens' own
        training = torch.is_grad_enabled()
        encoder = self.compiled if training and self.compiled is not None else self.encoder
        inputs = batch.inputs
        if embeddings is not None:
            inputs = {"inputs_embeds": embeddings, **{k: v for k, v in inputs.items() if k != "input_ids"}}
        # a hook would have code compiled anew, and moved embeddings are another post's
        keeps = training and self.learns and encoder is self.encoder and embeddings is None
        with (
            torch.set_grad_enabled(training and self.learns),
            watching(self.encoder, self.watched if keeps else ()) as entered,
        ):
            hidden: Tensor = encoder(**inputs).last_hidden_state
        if entered:
            self.entered = batch, entered
        return hidden

    def embed(self, batch: Batch) -> Tensor:
        """Looks up the embeddings of the batch's tokens, (S, T, E)."""
        return self.encoder.get_input_embeddings()(batch.input_ids)

    def read(self, hidden: Tensor, batch: Batch, tasks: Iterable[str]) -> dict[str, Tensor]:
        """Reads these tasks' heads off hidden states (S, T, D): logits in float32, whatever the encoder computes in."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            return {task: self._read(self.heads[task], hidden, batch, task) for task in tasks}

    def _read(self, head: Head, hidden: Tensor, batch: Batch, task: str) -> Tensor:
        if head.space.about == "second texts":
            return batch.by_post(head(hidden, batch.attention_mask), len(head.space))
        if head.space.about == "answers":
            if batch.answerable is None:
                raise UserError(f"task {task!r} answers from second texts, and these posts have none; leave the task out")
            return head(batch.first(hidden), batch.first(batch.answerable))
        return head(batch.first(hidden), batch.first(batch.attention_mask), batch.counts.get(task))

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Stops learning inside: LoRAs are merged, no gradient is recorded, the encoder computes in its number format."""
        with self._still(), torch.inference_mode(), self._arithmetic():
            yield

    def settle(self) -> None:
        """Makes `inference` free of what it costs to begin: no weight changes any more, so LoRAs are merged once."""
        if not self.settled:
            for module in (self.encoder, *self.heads.values()):
                module.eval()
            merge(self.encoder, self.dtype, int8=self.int8)
            self.settled = True

    def unsettle(self) -> None:
        """Takes LoRAs out of the weights again."""
        if self.settled:
            unmerge(self.encoder)
            self.settled = False

    @contextmanager
    def _still(self) -> Iterator[None]:
        if self.settled:
            yield
        else:
            with self.without_dropout(), merged(self.encoder, self.dtype, int8=self.int8):
                yield

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """Stops learning inside, but for gradients of embeddings that are passed to `logits`; no weight gets any."""
        self.unsettle()  # what is merged has no way back
        trained = [p for module in (self.encoder, *self.heads.values()) for p in module.parameters() if p.requires_grad]
        learns, compiled, self.learns, self.compiled = self.learns, self.compiled, True, None
        try:
            for parameter in trained:
                parameter.requires_grad = False
            with self.without_dropout(), torch.enable_grad(), self._arithmetic():
                yield
        finally:
            self.learns, self.compiled = learns, compiled
            for parameter in trained:
                parameter.requires_grad = True

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Lets encoder and heads compute as in evaluation, inside; gradients are recorded as before."""
        before = [(module, module.training) for module in (self.encoder, *self.heads.values())]
        for module, _ in before:
            module.eval()
        try:
            yield
        finally:
            for module, training in before:
                module.train(training)

    def _arithmetic(self) -> AbstractContextManager[None]:
        device = next(self.encoder.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.dtype is torch.bfloat16)
