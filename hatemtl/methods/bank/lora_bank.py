"""Holds the LoRA bank: N frozen LoRAs beside one frozen linear layer, mixed by a gate.

    y = W·x + b + Σₙ gₙ(x)·sₙ·Bₙ·Aₙ·x

The Aₙ are stacked to A (R, in), the sₙ·Bₙ stand side by side in B (out, R), R = Σ rₙ, so the sum is B·(g ⊙ A·x), each gₙ
repeated rₙ times: two products, whatever N, and no LoRA's output is ever computed at full width. A source that does not
adapt a layer has rank 0 there, and its share of the gate adds nothing.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.errors import UserError
from hatemtl.merging.lora import Updates
from hatemtl.methods.base import Library
from hatemtl.saved_runs.saved_run import SavedRun, write_text
from hatemtl.seeds import generator

WEIGHTS = "adapter/bank.safetensors"
SETTINGS = "adapter/bank.json"
PATTERN = re.compile(r"\.banks\.([^.]+)\.")


class WeightGate(nn.Module):
    """A weight a source: 1/N at the start, then softmax(b + V·x/√in), or 1/N + b + V·x/√in where it may be of any sum.

    V only where the weights depend on the layer's input x. The root makes one learning rate fit b and V.
    """

    def __init__(self, sources: int, width: int, *, input: bool, softmax: bool) -> None:
        super().__init__()
        self.softmax, self.start = softmax, 1 / sources
        self.bias = nn.Parameter(torch.zeros(sources))
        self.weight = nn.Parameter(torch.zeros(sources, width)) if input else None

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        """Gives (N,) weights, or (..., N) where they depend on x (..., in), in float32."""
        logits = self.bias
        if self.weight is not None:
            logits = logits + F.linear(x, self.weight.to(x.dtype)).float() * x.shape[-1] ** -0.5
        return logits.softmax(dim=-1) if self.softmax else self.start + logits


class AttentionGate(nn.Module):
    """Attention over the sources, softmaxₙ(qᵀ·kₙ/√d): q = Q·x/√in asks, kₙ = Kₙ·Aₙ·x + cₙ is what source n makes of x.

    As in AdapterFusion (Pfeiffer et al. 2021, arXiv:2005.00247, eq. 3) a key is read off its source's output; there it is
    the whole output through a square matrix, here the r numbers Aₙ·x that the output is made of. A key of the source alone
    would make qᵀ·kₙ linear in x, which is no more than an input-dependent `WeightGate`. The values are the outputs as they
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
    """The kind of a bank's gates: attention with keys of `key_width`, or a `WeightGate` where that is None."""

    key_width: int | None = None
    input: bool = False
    softmax: bool = True

    def gate(self, ranks: Sequence[int], width: int, *, seed: int, layer: str) -> nn.Module:
        """Makes a fresh gate of a layer with inputs so wide; what it draws depends on seed and layer alone."""
        if self.key_width is None:
            return WeightGate(len(ranks), width, input=self.input, softmax=self.softmax)
        return AttentionGate(ranks, width, key_width=self.key_width, draw=generator(seed, "lora_fusion", layer))


class LoRABank(nn.Module):
    """The sources of one layer, frozen, and their gate, trained; both in float32."""

    spread: Tensor

    def __init__(self, A: Tensor, B: Tensor, ranks: Sequence[int], gate: nn.Module) -> None:
        super().__init__()
        self.A, self.B = (nn.Parameter(factor.contiguous(), requires_grad=False) for factor in (A, B))
        self.ranks, self.gate = tuple(ranks), gate
        self.selected: Tensor | None = None
        self.register_buffer("spread", spread(ranks), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Computes y + Σₙ gₙ·sₙ·Bₙ·Aₙ·x, for x (..., in) and y (..., out)."""
        low = F.linear(x, self.A.to(x.dtype))
        weights = self.gate(x, low) if self.selected is None else self._selection(x, self.selected)
        mixed = low * (weights.to(low.dtype) @ self.spread.to(low.dtype))
        sums = torch.addmm(y.reshape(-1, y.shape[-1]), mixed.reshape(-1, mixed.shape[-1]), self.B.to(y.dtype).T)
        return sums.view(y.shape)

    def _selection(self, x: Tensor, rows: Tensor) -> Tensor:
        if len(x) != len(rows):  # DeBERTa projects positions, which no post owns, with the weights of q and k
            raise UserError(
                f"a source a post is chosen for {len(rows)} posts, but this encoder has a layer that reads {len(x)}"
            )
        chosen = (rows[:, None] == torch.arange(len(self.ranks), device=rows.device)).float()
        return chosen.view(len(rows), *[1] * (x.ndim - 2), -1)


class Banked:
    """Takes the place of `forward` in a linear layer that has a bank."""

    def __init__(self, own: Callable[[Tensor], Tensor], bank: LoRABank) -> None:
        self.own, self.bank = own, bank

    def __call__(self, x: Tensor) -> Tensor:
        y = self.own(x)
        return self.bank(x.to(y.dtype), y)


def banks(model: nn.Module) -> dict[str, LoRABank]:
    """Finds every bank of the model, by the path of its layer."""
    return {PATTERN.split(f"{path}.")[0]: module for path, module in model.named_modules() if isinstance(module, LoRABank)}


def active(model: nn.Module) -> list[str]:
    """Names the bank."""
    paths = (path for path, module in model.named_modules() if isinstance(module, LoRABank))
    return list(dict.fromkeys(match[1] for path in paths if (match := PATTERN.search(f"{path}."))))


def stack(sources: Sequence[Updates], layer: str) -> tuple[Tensor, Tensor, list[int]]:
    """Stacks A (R, in) and B (out, R) with the scales in it, and every source's rank in this layer, 0 where it has none."""
    here = [source[layer] for source in sources if layer in source]
    ranks = [source[layer].rank if layer in source else 0 for source in sources]
    return torch.cat([update.A for update in here]), torch.cat([update.scale * update.B for update in here], dim=1), ranks


def fill(model: nn.Module, sources: Mapping[str, Updates], *, gating: Gating, name: str, seed: int) -> nn.Module:
    """Gives every layer that a source adapts a bank `name` of all sources; freezes all but the gates."""
    layers = sorted({layer for source in sources.values() for layer in source})
    for layer in layers:
        A, B, ranks = stack(list(sources.values()), layer)
        gate = gating.gate(ranks, A.shape[1], seed=seed, layer=layer)
        _install(model, layer, name, LoRABank(A, B, ranks, gate))
    return _ready(model, gating, list(sources))


def _linear(model: nn.Module, path: str) -> nn.Linear:
    layer = model.get_submodule(path)
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"layer {path} is not linear")
    return layer


def _install(model: nn.Module, path: str, name: str, bank: LoRABank) -> None:
    layer = model.get_submodule(path)
    layer.banks = nn.ModuleDict({name: bank})
    layer.forward = Banked(layer.forward, bank)


def _ready(model: nn.Module, gating: Gating, sources: Sequence[str]) -> nn.Module:
    model.requires_grad_(False)
    for bank in banks(model).values():
        bank.gate.requires_grad_(True)
        bank.train(model.training)
    model.bank_settings = {"sources": list(sources), "gate": asdict(gating)}  # type: ignore[assignment]
    return model


def empty(model: nn.Module) -> None:
    """Takes the banks away again; the model is as it was before `fill`, and nothing of it frozen."""
    for path in banks(model):
        layer: Any = model.get_submodule(path)
        layer.__dict__.pop("forward")
        del layer.banks
    del model.bank_settings
    model.requires_grad_(True)


def source_names(model: nn.Module) -> list[str]:
    """Names the sources, in the order of the gates' weights."""
    settings: Any = model.bank_settings
    return list(settings["sources"])


def save(model: nn.Module, name: str, folder: Path) -> None:
    """Writes adapter/bank.json and adapter/bank.safetensors: gates and sources."""
    settings: Any = model.bank_settings
    found = banks(model)
    tensors = {
        f"{layer}/{key}": tensor.detach().cpu().contiguous()
        for layer, bank in found.items()
        for key, tensor in bank.state_dict().items()
    }
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    content = {**settings, "ranks": {layer: list(bank.ranks) for layer, bank in found.items()}}
    write_text(folder / SETTINGS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


LIBRARY = Library(name="bank", pattern=PATTERN, quantizable=True, active=active, save=save)


def load(model: nn.Module, run: SavedRun, *, name: str) -> nn.Module:
    """Gives the model the banks of a saved run, exactly as they were.

    Raises UserError where they are broken or fit another encoder.
    """
    tensors, path = run.tensors(WEIGHTS), run.folder / SETTINGS
    again = "train the run again with overwrite=true"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        gating, names, by_layer = Gating(**content["gate"]), list(content["sources"]), dict(content["ranks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); {again}") from error
    for layer, ranks in by_layer.items():
        state = {key.rpartition("/")[2]: value for key, value in tensors.items() if key.rpartition("/")[0] == layer}
        try:
            module, A, B = _linear(model, layer), state["A"], state["B"]
            if (B.shape[0], A.shape[1]) != (module.out_features, module.in_features):
                raise ValueError(f"layer {layer} has other widths")
            bank = LoRABank(A, B, ranks, gating.gate(ranks, A.shape[1], seed=0, layer=layer))
            bank.load_state_dict(state)
        except (AttributeError, KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{run.folder / WEIGHTS} and this encoder do not fit ({reason}); {again}") from error
        _install(model, layer, name, bank)
    return _ready(model, gating, names)


@contextmanager
def selected(model: nn.Module, rows: Tensor) -> Iterator[None]:
    """Computes post i of a batch, inside, with source rows[i] alone, or with none where that is -1; no gate is asked."""
    found = list(banks(model).values())
    if len(rows) and found and not -1 <= int(rows.min()) <= int(rows.max()) < len(found[0].ranks):
        raise UserError(
            f"a source a post: expected numbers from -1 to {len(found[0].ranks) - 1}, or the bank has no such source"
        )
    try:
        for bank in found:
            bank.selected = rows
        yield
    finally:
        for bank in found:
            bank.selected = None
