"""Fuses and gates saved LoRAs in a bank: N frozen LoRAs beside one frozen linear layer, mixed by a gate that is trained.

    y = W·x + b + Σₙ gₙ(x)·sₙ·Bₙ·Aₙ·x

The Aₙ are stacked to A (R, in), the sₙ·Bₙ stand side by side in B (out, R), R = Σ rₙ, so the sum is B·(g ⊙ A·x), each gₙ
repeated rₙ times: two products, whatever N. A source that does not adapt a layer has rank 0 there, and adds nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.merging.lora import Updates
from hatemtl.methods import beside, lora_formats
from hatemtl.methods.base import Attached, Library, Method, module_name
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.seeds import generator


class WeightGate(nn.Module):
    """A weight a source: softmax(b + V·x/√in), or 1/N + b + V·x/√in; V only where it depends on the layer's input x."""

    def __init__(self, sources: int, width: int, *, input: bool, softmax: bool) -> None:
        super().__init__()
        self.softmax, self.start = softmax, 1 / sources
        self.bias = nn.Parameter(torch.zeros(sources))
        self.weight = nn.Parameter(torch.zeros(sources, width)) if input else None

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        """Gives (N,) weights, or (..., N) where they depend on x (..., in), in float32."""
        logits = self.bias
        if self.weight is not None:  # under the root, so that one learning rate fits b and V
            logits = logits + F.linear(x, self.weight.to(x.dtype)).float() * x.shape[-1] ** -0.5
        return logits.softmax(dim=-1) if self.softmax else self.start + logits


class AttentionGate(nn.Module):
    """Attention over the sources, softmaxₙ(qᵀ·kₙ/√d): q = Q·x/√in asks, kₙ = Kₙ·Aₙ·x + cₙ is what source n makes of x.

    As in AdapterFusion (Pfeiffer et al. 2021, arXiv:2005.00247, eq. 3) a key is read off its source's output; there it is
    the whole output through a square matrix, here the r numbers Aₙ·x that it is made of. The values are the outputs as they
    are. Q = 0 at the start, so every weight is 1/N; Kₙ is drawn, or neither would ever move.
    """

    spread: Tensor

    def __init__(self, ranks: Sequence[int], width: int, *, key_width: int, draw: torch.Generator) -> None:
        super().__init__()
        bounds = torch.tensor([rank**-0.5 for rank in ranks for _ in range(rank)])
        self.query = nn.Parameter(torch.zeros(key_width, width))
        self.key = nn.Parameter((2 * torch.rand(key_width, sum(ranks), generator=draw) - 1) * bounds)  # the Kₙ side by side
        self.key_bias = nn.Parameter(torch.zeros(len(ranks), key_width))
        self.register_buffer("spread", spread(ranks), persistent=False)

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        """Gives (..., N) weights in float32, for x (..., in) and low = A·x (..., R)."""
        q = F.linear(x, self.query.to(x.dtype))
        with torch.autocast(x.device.type, enabled=False):
            q = q.float() * (x.shape[-1] * len(self.query)) ** -0.5
            logits = (q @ self.key * low.float()) @ self.spread.T + q @ self.key_bias.T
            return logits.softmax(dim=-1)


def spread(ranks: Sequence[int]) -> Tensor:
    """Tells, (N, R), which of the R stacked rows belong to which source: a 1 in each column."""
    return torch.eye(len(ranks)).repeat_interleave(torch.tensor(ranks), dim=1)


@dataclass(frozen=True, kw_only=True)
class Gating:
    """The kind of a bank's gates: attention with keys of `key_width`, or a `WeightGate`."""

    key_width: int | None = None
    input: bool = False
    softmax: bool = True


class LoRABank(nn.Module):
    """The sources of one layer, frozen, and their gate, trained, whose draw depends on seed and layer; both in float32."""

    spread: Tensor

    def __init__(
        self, A: Tensor, B: Tensor, ranks: Sequence[int], sources: Sequence[str], gating: Gating, *, seed: int, layer: str
    ) -> None:
        super().__init__()
        self.A, self.B = (nn.Parameter(factor.contiguous(), requires_grad=False) for factor in (A, B))
        self.ranks, self.sources, self.gating = tuple(ranks), tuple(sources), gating
        if gating.key_width is None:
            self.gate: nn.Module = WeightGate(len(ranks), A.shape[1], input=gating.input, softmax=gating.softmax)
        else:
            draw = generator(seed, "lora_fusion", layer)
            self.gate = AttentionGate(ranks, A.shape[1], key_width=gating.key_width, draw=draw)
        self.register_buffer("spread", spread(ranks), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Computes y + Σₙ gₙ·sₙ·Bₙ·Aₙ·x, for x (..., in) and y (..., out)."""
        low = F.linear(x, self.A.to(x.dtype))
        mixed = low * (self.gate(x, low).to(low.dtype) @ self.spread.to(low.dtype))
        return beside.add_up(y, mixed, self.B)


def banks(model: nn.Module) -> dict[str, LoRABank]:
    """Finds every bank of the model, by the path of its layer."""
    return beside.found(model, LoRABank)


def fill(model: nn.Module, sources: Mapping[str, Updates], *, gating: Gating, name: str, seed: int) -> nn.Module:
    """Gives every layer that a source adapts a bank `name` of all sources; freezes all but the gates."""
    for layer in sorted({layer for source in sources.values() for layer in source}):
        here = [source[layer] for source in sources.values() if layer in source]
        ranks = [source[layer].rank if layer in source else 0 for source in sources.values()]
        A, B = torch.cat([update.A for update in here]), torch.cat([update.scale * update.B for update in here], dim=1)
        beside.put(model, layer, "banks", name, LoRABank(A, B, ranks, [*sources], gating, seed=seed, layer=layer))
    return _gates_alone(model)


def _gates_alone(model: nn.Module) -> nn.Module:
    model.requires_grad_(False)
    for bank in banks(model).values():
        bank.gate.requires_grad_(True)
    return model


def empty(model: nn.Module) -> None:
    """Takes the banks away again; the model is as it was before `fill`, and nothing of it frozen."""
    for path in banks(model):
        layer: Any = model.get_submodule(path)
        del layer.banks, layer.forward
    model.requires_grad_(True)


def save(model: nn.Module, name: str, folder: Path) -> None:
    """Writes adapter/bank.json and adapter/bank.safetensors: gates and sources."""
    found = banks(model)
    some = next(iter(found.values()))
    ranks = {layer: bank.ranks for layer, bank in found.items()}
    beside.save(folder, "bank", found, {"sources": some.sources, "gate": asdict(some.gating), "ranks": ranks})


def load(model: nn.Module, run: SavedRun, name: str, seed: int) -> nn.Module:
    """Gives the model the banks of a saved run, exactly as they were."""
    beside.load(model, run, "bank", "banks", name, _described)
    return _gates_alone(model)


def _described(settings: dict[str, Any]) -> beside.Makers:
    sources, gating = list(settings["sources"]), Gating(**settings["gate"])

    def bank(linear: nn.Linear, *, layer: str, ranks: list[int]) -> LoRABank:
        A, B = torch.empty(sum(ranks), linear.in_features), torch.empty(linear.out_features, sum(ranks))
        return LoRABank(A, B, ranks, sources, gating, seed=0, layer=layer)

    return {layer: partial(bank, layer=layer, ranks=ranks) for layer, ranks in dict(settings["ranks"]).items()}


LIBRARY = Library(name="bank", pattern=beside.PATTERN, quantizable=True, save=save, load=load)


@dataclass(frozen=True, kw_only=True)
class LoRAFusion(Method):
    """Trains attention over the outputs of saved LoRAs in every layer that they adapt; it starts as their exact average."""

    sources: str = field()
    key_width: int  # weights of N sources lie in N - 1 dimensions, so few are needed
    library = LIBRARY

    def __post_init__(self) -> None:
        if self.key_width < 1:
            raise UserError(f"method.key_width={self.key_width}: expected a whole number from 1; type method.key_width=4")

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        return _attached(self, model, Gating(key_width=self.key_width), name, seed)


@dataclass(frozen=True, kw_only=True)
class LoRAGate(Method):
    """Trains one weight a source and layer of saved LoRAs; it starts as their exact average."""

    sources: str = field()
    input: bool
    softmax: bool
    library = LIBRARY

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        return _attached(self, model, Gating(input=self.input, softmax=self.softmax), name, seed)


def _attached(method: Method, model: Transformer, gating: Gating, name: str, seed: int) -> Attached:
    sources: dict[str, Updates] = {}
    for run in method.starts_from():
        sources[module_name(run.folder.resolve().name, taken=list(sources))] = lora_formats.read(run, model)
    return Attached(fill(model, sources, gating=gating, name=name, seed=seed))


@dataclass(frozen=True, kw_only=True)
class LoadBank(Method):
    """Starts from the sources and gates of a saved run, to test it, to predict with it or to train its gates further."""

    path: str | None = field()
    loads = True
    library = LIBRARY
