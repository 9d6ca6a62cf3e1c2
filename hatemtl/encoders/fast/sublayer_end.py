"""Computes the end of a sublayer of BERT, the norm of its sum with what entered it, and a bottleneck adapter in it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast.dropout import Dropout, keep, keep_
from hatemtl.encoders.fast.trained import Norm, TrainedLinear

aten: Any = torch.ops.aten
# Each with the gradient of what it is taken of, of its own and of that.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "relu": (F.relu, lambda dy, z: aten.threshold_backward(dy, z, 0)),
    "gelu": (F.gelu, aten.gelu_backward),
    "silu": (F.silu, aten.silu_backward),
    "swish": (F.silu, aten.silu_backward),
}


@dataclass(frozen=True, eq=False)
class Bottleneck:
    """A bottleneck adapter of a library: r = scale·(act(e·Dᵀ + d)·Uᵀ + b), for norm(u + x + r) in place of norm(u + x).

    owner: the library's module that drops out, adds and norms. reads: what e is. `normed`, norm(u + x) (Pfeiffer et al.
    2021, arXiv:2005.00247), `output`, u (Houlsby et al. 2019, arXiv:1902.00751), `input`, x (He et al. 2022,
    arXiv:2110.04366).
    """

    owner: nn.Module
    down: nn.Linear
    up: nn.Linear
    activation: str
    scale: float
    reads: Literal["normed", "output", "input"]

    @property
    def factors(self) -> list[nn.Parameter]:
        own: list[Any] = [self.down.weight, self.down.bias, self.up.weight, self.up.bias]
        return own

    @property
    def sizes(self) -> list[float]:
        """Lists how large numbers `factors` hold in a comparison."""
        return [self.down.in_features**-0.5, 0.1, 0.1 / (self.scale or 1), 0.1 / (self.scale or 1)]


class SublayerEnd:
    """Computes norm(x + dropout(u)), all (M, D): u is what the last product of a sublayer gives, x what entered it.

    With a bottleneck nothing but adapters is trained, and the norm is frozen.
    """

    loras = ()

    def __init__(self, output: Any, bottleneck: Bottleneck | None) -> None:
        self.dropout, self.norm, self.bottleneck = output.dropout, Norm(output.LayerNorm), bottleneck
        self.joints = [TrainedLinear([layer]) for layer in ((bottleneck.down, bottleneck.up) if bottleneck else ())]

    @property
    def factors(self) -> list[nn.Parameter]:
        parts: list[Any] = [self.norm, *self.joints]
        return [factor for part in parts for factor in part.factors]

    @property
    def scales(self) -> list[float]:
        return [1.0] * len(self.factors)

    def forward(self, u: Tensor, x: Tensor, dropout: Dropout | None, p: float) -> tuple[Tensor, list[list[Tensor]]]:
        """Computes it in u's place, with what its gradient needs. p: of dropout, if there is any."""
        mask, adapter = list[Tensor](), self.bottleneck
        if dropout is not None and p:
            mask = [dropout.mask(u.shape, p, u.dtype)]
            keep_(u, mask[0])
        if adapter is None:
            y, normed = self.norm.forward(torch.add(x, u, alpha=1 / (1 - p), out=u))
            return y, [mask, normed, []]
        e, under = x, list[Tensor]()
        if adapter.reads == "output":
            e = u.div_(1 - p) if mask else u
            total = x + e
        else:
            total = torch.add(x, u, alpha=1 / (1 - p), out=u)
        if adapter.reads == "normed":
            e, under = self.norm.forward(total)
        z, down = self.joints[0].forward(e)
        a = ACTIVATIONS[adapter.activation][0](z)
        r, up = self.joints[1].forward(a)
        y, normed = self.norm.forward(torch.add(total, r, alpha=adapter.scale, out=r))
        return y, [mask, normed, [e, z, a, *down, *up, *under]]

    def backward(self, dy: Tensor, kept: list[list[Tensor]], p: float, *, dx: bool) -> tuple[Any, Any, list[Tensor]]:
        """Computes the gradients of u and x, where asked for, and those of `factors`. They may be the same tensor."""
        mask, normed, of_adapter = kept
        of_u, found = self.norm.backward(dy, normed)
        of_x, adapter = of_u, self.bottleneck
        if adapter is not None:
            e, z, a, down, up, *under = of_adapter
            dr = of_u if adapter.scale == 1 else of_u * adapter.scale
            d: Any
            d, of_up = self.joints[1].backward(dr, a, [up], dx=True)
            d, of_down = self.joints[0].backward(ACTIVATIONS[adapter.activation][1](d, z), e, [down], dx=dx)
            found = [*found, *of_down, *of_up]
            if dx and adapter.reads == "input":
                of_x = d.add_(of_u)
            elif dx and adapter.reads == "output":
                of_u = d.add_(of_u)
            elif dx:
                of_u = of_x = self.norm.backward(d, under)[0].add_(of_u)
        return (keep(of_u, mask[0]).div_(1 - p) if mask and dx else of_u), of_x, found

    def apart(self, found: list[Tensor]) -> list[Tensor]:
        return found

    def merged(self, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
        """Gives what computes it, in u's place, of u and x while nothing is trained."""
        norm, adapter = self.norm.merged(dtype), self.bottleneck
        if adapter is None:
            return lambda u, x: norm(u.add_(x))
        # in int8 these thin products would take longer
        down, up = (joint.merged(dtype, gelu=False, int8=False) for joint in self.joints)
        act, reads, scale = ACTIVATIONS[adapter.activation][0], adapter.reads, adapter.scale

        def compute(u: Tensor, x: Tensor) -> Tensor:
            total = x + u if reads == "output" else u.add_(x)
            r = up(act(down(u if reads == "output" else x if reads == "input" else norm(total))))
            return norm(torch.add(total, r, alpha=scale, out=r))

        return compute
