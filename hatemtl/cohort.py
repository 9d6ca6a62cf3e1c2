"""A cohort: runs that differ in their seed or their labels, trained side by side on one frozen encoder.

Each is a run as any other, with its own heads, LoRAs, losses, learning rates, early stop and saved run, in a thread of its
own. One thread is at work at a time, until it needs what the encoder makes of its batch, or the gradient of that. When all
have come so far, the encoder is computed once for all of them, the posts of each with its own LoRAs.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.errors import UserError
from hatemtl.methods.lora_linear import loras, side_by_side

Inputs = Mapping[str, Tensor]


class Abandoned(Exception):
    """The cohort ends before this run does."""


class Member(Callback):
    """A run of a cohort: a callback of its trainer, through which it asks for hidden states and their gradient.

    size: how many runs the cohort has. request: what it waits for: the hidden states of a batch, or that their gradient be
    taken further; None before its first step and after its end. hidden: the states that it was given last. error: what
    ended it too early.
    """

    def __init__(self, run: Callable[["Member"], None], *, name: str, size: int) -> None:
        self.run, self.name, self.size = run, name, size
        self.request: Inputs | Tensor | None = None
        self.error: BaseException | None = None
        self.module: Any = None
        self.hidden: Any = None
        self._leaf: Tensor | None = None  # the same states, without what they came from
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

    def abandon(self) -> None:
        """Ends the run where it waits; its folder stays as an unfinished one."""
        self._abandoned = True
        self.go_on()

    def _work(self) -> None:
        self._turn.acquire()
        try:
            self.run(self)
        except BaseException as error:
            self.error = error
        self._back.release()

    def _ask(self, request: Inputs | Tensor) -> None:
        self.request = request
        self._back.release()
        self._turn.acquire()
        if self._abandoned:
            raise Abandoned("the cohort ended before this run")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.module = pl_module
        self.module.compiled = self._read

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


def check(encoder: nn.Module) -> None:
    """Raises UserError where this encoder cannot be one of a cohort: it trains more than plain LoRAs, or has dropout."""
    trained = sum(parameter.requires_grad for parameter in encoder.parameters())
    if trained != 2 * len(loras(encoder)):
        raise UserError(
            "cohort: runs train side by side where all that is trained of the encoder are LoRAs without dropout; type "
            "method=ah_lora16 or method=peft_lora16, or train one run after another with main.py -m"
        )
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in encoder.modules()):
        raise UserError("cohort: the encoder's dropout would be drawn for all runs at once; type method.body_dropout=false")


def check_body(encoders: Sequence[nn.Module]) -> None:
    """Raises UserError where what is frozen is not the same in all, so that no one could read posts for another."""
    frozen = [{key: p for key, p in encoder.named_parameters() if not p.requires_grad} for encoder in encoders]
    for others in frozen[1:]:
        if frozen[0].keys() != others.keys() or not all(torch.equal(p, others[key]) for key, p in frozen[0].items()):
            raise UserError("cohort: these runs stand on different encoders; train one run after another with main.py -m")


def train_together(runs: Mapping[str, Callable[[Member], None]]) -> None:
    """Does the runs, by their names, side by side. What fails before any has begun ends all; later, that run alone.

    Raises what was raised in the first that failed, at the end.
    """
    members = [Member(run, name=name, size=len(runs)) for name, run in runs.items()]
    at_work, begun = members, False
    try:
        while at_work:
            for member in at_work:
                member.go_on()
                if member.error is not None and not begun:
                    raise member.error
                if member.error is not None:
                    Console(stderr=True).print(f"{member.name}: {member.error}; the others go on", markup=False)
            at_work = [member for member in at_work if member.request is not None]
            if not begun:
                check_body([member.module.encoder for member in at_work])
            begun = True
            if at_work and isinstance(at_work[0].request, Tensor):  # they take the same turns
                learn(at_work)
            elif at_work:
                read(at_work)
    finally:  # those that wait yet, where one of them or the user broke it off
        for member in members:
            if member.request is not None:
                member.abandon()
    for member in members:
        if member.error is not None:
            raise member.error


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
