"""A cohort: runs that differ in their seed or their labels, trained side by side on one frozen encoder.

Each is a run as any other, with its own heads, LoRAs, losses, learning rates, early stop and saved run, in a thread of its
own. One thread is at work at a time, until it needs what the encoder makes of its batch, or the gradient of that. When all
have come so far, the encoder is computed once for all of them, the posts of each with its own LoRAs.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast.lora_linear import loras, side_by_side
from hatemtl.encoders.pretrained import is_quantized
from hatemtl.errors import UserError

Inputs = Mapping[str, Tensor]
PATIENCE = 60  # seconds that a broken-off cohort waits for the run whose turn it is


class Abandoned(Exception):
    """The cohort ends before this run does."""


class Member(Callback):
    """A run of a cohort: a callback of its trainer, through which it asks for hidden states and their gradient.

    size: how many runs the cohort has. request: what it waits for: the first step of all (no inputs), the hidden states of a
    batch, or that their gradient be taken further; None while it works. hidden: the states that it was given last. error:
    what ended it too early.
    """

    def __init__(self, run: Callable[["Member"], None], *, name: str, size: int) -> None:
        self.run, self.name, self.size = run, name, size
        self.request: Inputs | Tensor | None = None
        self.error: BaseException | None = None
        self.module: Any = None
        self.hidden: Any = None
        self.shared = 0.0  # seconds of its share in what was computed for all since its request
        self._leaf: Tensor | None = None  # the same states, without what they came from
        self._others = 0.0  # seconds that passed while others worked
        self._random = _random_numbers()
        self._turn, self._back, self._abandoned = threading.Semaphore(0), threading.Semaphore(0), False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def go_on(self) -> None:
        """Lets the run work, with random numbers of its own, until it has a request or is at its end."""
        _set_random_numbers(self._random)
        self.request = None
        if self._thread.ident is None:
            self._thread.start()
        self._turn.release()
        self._back.acquire()
        self._random = _random_numbers()

    def clock(self) -> float:
        """Seconds that were spent on this run, its share of what was computed for all included."""
        return time.perf_counter() - self._others

    def abandon(self) -> None:
        """Ends the run at its next request, or where it waits; its folder stays as an unfinished one."""
        self._abandoned = True
        if self._thread.is_alive() and self.request is None:
            self._back.acquire(timeout=PATIENCE)  # whoever broke it off did so in the middle of this run's turn
        if self.request is not None:
            self.go_on()

    def _work(self) -> None:
        self._turn.acquire()
        try:
            self.run(self)
        except BaseException as error:
            self.error = error
        self._back.release()

    def _ask(self, request: Inputs | Tensor) -> None:
        self.request, asked = request, time.perf_counter()
        self._back.release()
        self._turn.acquire()
        self._others += time.perf_counter() - asked - self.shared
        self.shared = 0.0
        if self._abandoned:
            raise Abandoned("the cohort ended before this run")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.module = pl_module
        self.module.compiled = self._read
        self._ask({})

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._leaf is not None:
            leaf, self._leaf = self._leaf, None
            self._ask(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.module.compiled = None

    def _read(self, **inputs: Tensor) -> Any:
        """The encoder as training calls it; a gradient stops at what it gives, and goes on in `on_after_backward`."""
        if not torch.is_grad_enabled():  # the heads learn alone
            return self.module.encoder(**inputs)
        self._ask(inputs)
        self._leaf = self.hidden.detach().requires_grad_()
        return SimpleNamespace(last_hidden_state=self._leaf)


def check(encoder: nn.Module, *, method: str, name: str) -> None:
    """Raises UserError where the encoder called `name`, as this method left it, cannot be one of a cohort."""
    apart = "or train one run after another with main.py -m"
    found, trained = loras(encoder), sum(parameter.requires_grad for parameter in encoder.parameters())
    if is_quantized(encoder):
        raise UserError(
            f"cohort: encoder={name} is quantized, which no run reads for another; type encoder.quantize=null, {apart}"
        )
    if not found or trained != 2 * len(found):
        raise UserError(
            f"cohort: method={method} on encoder={name} is more than LoRAs without dropout, each on a linear layer; "
            f"type method=ah_lora16 or method=peft_lora16 with method.dropout=0, {apart}"
        )
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in encoder.modules()):
        raise UserError("cohort: the encoder's dropout would be drawn for all runs at once; type method.body_dropout=false")
    try:
        with torch.no_grad(), side_by_side([encoder, encoder]):
            encoder(input_ids=torch.ones(2, 4, dtype=torch.long), attention_mask=torch.ones(2, 4, dtype=torch.long))
    except UserError as error:
        raise UserError(f"cohort: method={method} on encoder={name}: {error}; choose another encoder, {apart}") from error


def check_body(encoders: Sequence[nn.Module]) -> None:
    """Raises UserError where what is frozen is not the same in all, so that no one could read posts for another."""
    frozen = [{key: p for key, p in encoder.named_parameters() if not p.requires_grad} for encoder in encoders]
    for others in frozen[1:]:
        if frozen[0].keys() != others.keys() or not all(torch.equal(p, others[key]) for key, p in frozen[0].items()):
            raise UserError("cohort: these runs stand on different encoders; train one run after another with main.py -m")


def train_together(runs: Mapping[str, Callable[[Member], None]]) -> None:
    """Does the runs, by their names, side by side. What fails before the first step ends all; later, that run alone.

    Raises what was raised in the first that failed, at the end.
    """
    members = [Member(run, name=name, size=len(runs)) for name, run in runs.items()]
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as a shell counts it
    try:
        _take_turns(members)
    finally:
        signal.signal(signal.SIGTERM, before)
        for member in members:
            member.abandon()
    for member in members:
        if member.error is not None:
            raise member.error


def _take_turns(members: Sequence[Member]) -> None:
    at_work, begun = members, False
    while at_work:
        for member in at_work:
            member.go_on()
            if member.error is not None and not begun:
                raise member.error
        waiting = [member for member in at_work if member.request is not None]
        for member in at_work:
            if member.error is not None:
                rest = "; the others go on" if waiting else ""
                Console(stderr=True).print(f"{member.name}: {member.error}{rest}", markup=False, soft_wrap=True)
        at_work, started = waiting, time.perf_counter()
        if not begun:
            check_body([member.module.encoder for member in at_work])
            begun = True
        elif at_work and isinstance(at_work[0].request, Tensor):  # they take the same turns
            learn(at_work)
        elif at_work:
            read(at_work)
        for member in at_work:
            member.shared = (time.perf_counter() - started) / len(at_work)


def read(members: Sequence[Member]) -> None:
    """Gives each its hidden states: batches of one size, filled up by padding and by their last post, read as one."""
    batches: list[Any] = [member.request for member in members]
    sizes = [batch["input_ids"].shape for batch in batches]
    rows, width = (max(size) for size in zip(*sizes, strict=True))
    inputs = {}
    for key in dict.fromkeys(key for batch in batches for key in batch):
        filled = []
        for batch in batches:
            values = batch[key] if key in batch else torch.zeros_like(batch["input_ids"])
            again = torch.arange(rows, device=values.device).clamp(max=len(values) - 1)
            filled.append(F.pad(values[again], (0, width - values.shape[1])))
        inputs[key] = torch.cat(filled)
    first = members[0].module
    with side_by_side([m.module.encoder for m in members]), first.trainer.precision_plugin.train_step_context():
        hidden = first.encoder(**inputs).last_hidden_state
    for member, states, (posts, length) in zip(members, hidden.chunk(len(members)), sizes, strict=True):
        member.hidden = states[:posts, :length]


def learn(members: Sequence[Member]) -> None:
    """Takes the gradients of the hidden states of all to the LoRAs of each."""
    gradients: list[Any] = [member.request for member in members]
    torch.autograd.backward([member.hidden for member in members], gradients)


def _random_numbers() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _set_random_numbers(states: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])
