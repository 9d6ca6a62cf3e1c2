"""Computes chains of steps that know their own gradients, a whole chain as one step of autograd."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import accumulate, chain, islice, repeat
from operator import or_
from typing import Any

import torch
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors

from hatemtl.encoders.fast.dropout import Dropout
from hatemtl.encoders.fast.posts import Group, Posts
from hatemtl.errors import UserError

# Inside, autograd looks at no operation, which takes it time even where nothing is recorded.
_BelowAutograd = torch._C._AutoDispatchBelowAutograd


class Tape:
    """Holds what one pass writes down: on its way forward what the way back needs, in the order of the steps.

    groups: of the posts whose rows they are. records: whether there will be a way back.
    """

    def __init__(self, groups: list[Group], device: torch.device, *, records: bool) -> None:
        self.groups, self.records, self.dropout = groups, records, Dropout(device)
        self.kept: list[Sequence[Tensor]] = []
        self.found: dict[int, tuple[Tensor, float]] = {}  # by the id of a factor: its gradient, yet to be multiplied
        self.known: dict[Hashable, Any] = {}

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Computes once a pass what several layers need."""
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]

    def learn(self, factors: Iterable[Tensor], gradients: Iterable[Tensor], scales: Iterable[float] = repeat(1.0)) -> None:
        """Takes the gradients of factors. scales: by what they are yet to be multiplied."""
        self.found.update(zip(map(id, factors), zip(gradients, scales, strict=False), strict=True))

    def gradients(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Gives the gradients of all factors, of one type, in one go."""
        if not factors:
            return []
        parts, scales = zip(*(self.found[id(factor)] for factor in factors), strict=True)
        into = [*_unflatten_dense_tensors(factors[0].new_empty(sum(part.numel() for part in parts)), parts)]
        torch._foreach_copy_(into, parts)
        for part, scale in zip(into, scales, strict=True):
            if scale != 1:
                part.mul_(scale)
        self.found = {}
        return into


class Step:
    """Computes rows y of rows x, (M, D), and from the gradient of y those of x and of `factors`."""

    merged: Any = None  # what it computes with while nothing is trained, if not as in training

    @property
    def leaves(self) -> list["Step"]:
        """Lists the steps that it is made of, itself where of none."""
        return [self]

    @property
    def factors(self) -> list[nn.Parameter]:
        """Lists what it learns."""
        return []

    def forward(self, x: Tensor, tape: Tape, dx: bool) -> tuple[Tensor, Sequence[Tensor]]:
        """Computes y, and gives what `backward` needs. dx: whether that will be asked for the gradient of x."""
        raise NotImplementedError

    def backward(self, dy: Tensor, kept: Sequence[Tensor], tape: Tape, dx: bool) -> Any:
        """Computes the gradient of x if asked for, and lets the tape learn those of `factors`.

        It leaves dy as it is, unless it only ever stands before a product or attention, whose gradient nobody else has.
        """
        raise NotImplementedError

    def merge(self, dtype: torch.dtype, *, int8: bool) -> None:
        """Computes as `merged` from now on; dtype: of the computation."""


class Chain(Step):
    """Computes steps one after the other, and back as far as anything learns.

    past: the steps of what goes past them, for past(x) + scale·steps(x); of none that is x (He et al. 2016,
    arXiv:1512.03385). drops: the dropout that the last step is, whose 1/(1 − p) is taken into the scale.
    """

    def __init__(
        self,
        steps: Iterable[Step],
        past: Iterable[Step] | None = None,
        scale: float = 1.0,
        drops: nn.Dropout | None = None,
    ) -> None:
        self.steps, self.scale, self.drops = [*steps], scale, drops
        self.past = None if past is None else Chain(past)
        self.own = [leaf for step in (*self.steps, self.past) if step is not None for leaf in step.leaves]

    @property
    def leaves(self) -> list[Step]:
        return self.own

    @property
    def factors(self) -> list[nn.Parameter]:
        return [factor for leaf in self.own for factor in leaf.factors]

    def forward(self, x: Tensor, tape: Tape, dx: bool) -> tuple[Tensor, Sequence[Tensor]]:
        y, learns = x, dx
        for step in self.steps:
            y, kept = step.forward(y, tape, learns)
            learns = tape.records and (learns or bool(step.factors))
            if learns:
                tape.kept.append(kept)
        if self.past is not None:
            scale = self.scale / (1 - tape.dropout.chance(self.drops))
            torch.add(self.past.forward(x, tape, dx)[0], y, alpha=scale, out=y)
        return y, ()

    def backward(self, dy: Tensor, kept: Sequence[Tensor], tape: Tape, dx: bool) -> Any:
        past = None if self.past is None else self.past.backward(dy, (), tape, dx)
        d = dy if self.scale == 1 else dy * self.scale
        below = [*accumulate((bool(step.factors) for step in self.steps), or_, initial=dx)]
        for i in reversed(range(len(self.steps))):
            if below[i + 1]:
                d = self.steps[i].backward(d, tape.kept.pop(), tape, below[i])
        return d.add_(past) if dx and past is not None else d


class _Pass(torch.autograd.Function):
    """A chain of x, whose last dimension is D, with gradients for x and the chain's factors, named to get theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, posts: Posts, whole: Chain, tape: Tape, *factors: Tensor) -> Tensor:
        with _BelowAutograd():
            y = posts.unpack(whole.forward(posts.pack(x), tape, ctx.needs_input_grad[0])[0])
        ctx.sizes = [len(kept) for kept in tape.kept]
        ctx.save_for_backward(*chain.from_iterable(tape.kept))
        tape.kept.clear()
        ctx.posts, ctx.whole, ctx.tape = posts, whole, tape
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        # torch's `once_differentiable` tells only who calls `backward()`; `torch.autograd.grad` loses the factors' part
        if torch.is_grad_enabled():
            raise UserError("a gradient of gradients is more than hatemtl's own layers compute; type trainer.fast=false")
        flat, tape, dx = iter(ctx.saved_tensors), ctx.tape, ctx.needs_input_grad[0]
        tape.kept = [[*islice(flat, size)] for size in ctx.sizes]
        with _BelowAutograd():
            d = ctx.whole.backward(ctx.posts.pack(grads[0]), (), tape, dx)
            return ctx.posts.unpack(d) if dx else None, None, None, None, *tape.gradients(ctx.whole.factors)


def compute(steps: Sequence[Step], x: Tensor, posts: Posts) -> Tensor:
    """Computes these steps of hidden states (..., D), all of one type, as one step of autograd."""
    whole, records = Chain(steps), torch.is_grad_enabled()
    tape = Tape(posts.groups, x.device, records=records)
    with torch.autocast(x.device.type, enabled=False):
        if records:
            y: Tensor = _Pass.apply(x, posts, whole, tape, *whole.factors)
            return y
        return posts.unpack(whole.forward(posts.pack(x), tape, dx=False)[0])
