"""Trains MTL-LoRA (Yang et al. 2024, arXiv:2410.09437, eq. 4): a LoRA for each task, mixed from parts that all share.

    y_t = W·x + b + s·(Σᵢ softmax(v_t/τ)ᵢ·Bᵢ)·Λ_t·A·x

A (r, in) and n matrices Bᵢ (out, r) are shared; Λ_t (r, r) and v_t (n) belong to task t. What a layer makes of a post so
depends on the task that reads it, and the encoder runs once for each task of a batch. sampling.step=per_task has one task
a batch, of posts that carry it alone, and so no pass too many in training.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError, did_you_mean
from hatemtl.methods import beside
from hatemtl.methods.base import Attached, Library, Method, check_lora, draw_lora_A
from hatemtl.methods.lora_formats import ROLES
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.seeds import generator


@dataclass(kw_only=True)
class Mixing:
    """Holds what all mixtures of an encoder share: the tasks, r, alpha, n, τ, and the task whose LoRAs are computed."""

    tasks: Sequence[str]
    rank: int
    alpha: float
    ups: int
    temperature: float
    task: int = field(default=0, init=False)


class Mixture(nn.Module):
    """The LoRAs of all tasks on one linear layer: Bᵢ = 0 at the start; v is drawn, for with equal v the Bᵢ stay equal."""

    def __init__(self, layer: nn.Linear, mixing: Mixing) -> None:
        super().__init__()
        self.mixing, rank, ups = mixing, mixing.rank, mixing.ups
        self.A = nn.Parameter(torch.zeros(rank, layer.in_features))
        self.B = nn.Parameter(torch.zeros(ups, layer.out_features, rank))
        self.transform = nn.Parameter(torch.eye(rank).repeat(len(mixing.tasks), 1, 1))
        self.choice = nn.Parameter(torch.zeros(len(mixing.tasks), ups))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Adds the update of the present task to y (..., out), for x (..., in)."""
        with torch.autocast(x.device.type, enabled=False):
            task, scale = self.mixing.task, self.mixing.alpha / self.mixing.rank
            shares = (self.choice[task] / self.mixing.temperature).softmax(dim=-1)
            up = torch.einsum("n,nor->or", scale * shares, self.B) @ self.transform[task]
        return beside.add_up(y, F.linear(x, self.A.to(x.dtype)), up)


def reads_by_task(model: nn.Module) -> bool:
    """Tells whether the encoder's hidden states of a post depend on the task that reads it."""
    return any(isinstance(module, Mixture) for module in model.modules())


@contextmanager
def reading(model: nn.Module, task: str) -> Iterator[None]:
    """Lets the encoder compute for this task, inside."""
    mixing = _mixing(model)
    before, mixing.task = mixing.task, mixing.tasks.index(task)
    try:
        yield
    finally:
        mixing.task = before


def _mixing(model: nn.Module) -> Mixing:
    return next(module.mixing for module in model.modules() if isinstance(module, Mixture))


def save(model: nn.Module, name: str, folder: Path) -> None:
    """Writes adapter/mtl_lora.json and adapter/mtl_lora.safetensors."""
    mixtures, settings = beside.found(model, Mixture), asdict(_mixing(model))
    del settings["task"]
    beside.save(folder, "mtl_lora", mixtures, {**settings, "layers": list(mixtures)})


def load(model: nn.Module, run: SavedRun, name: str, seed: int) -> nn.Module:
    """Gives the model the mixtures of a saved run."""
    model.requires_grad_(False)
    beside.load(model, run, "mtl_lora", "mixtures", name, _described)
    return model


def _described(settings: dict[str, Any]) -> beside.Makers:
    layers = settings.pop("layers")
    return dict.fromkeys(layers, partial(Mixture, mixing=Mixing(**settings)))


LIBRARY = Library(name="mtl_lora", pattern=beside.PATTERN, quantizable=True, save=save, load=load)


@dataclass(frozen=True, kw_only=True)
class MTLLoRA(Method):
    """Trains MTL-LoRA on the layers that ah_lora16 adapts."""

    tasks: Sequence[str]
    rank: int
    alpha: float
    ups: int
    temperature: float
    library = LIBRARY

    def __post_init__(self) -> None:
        check_lora(rank=self.rank, alpha=self.alpha)
        if self.ups < 1:
            raise UserError(f"method.ups={self.ups}: expected a whole number from 1; type method.ups=2")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"method.temperature={self.temperature}: expected a number above 0; type method.temperature=1")

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        linear = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
        layers = [path for path in linear if any(pattern.search(path) for pattern in ROLES.values())]
        if not layers:
            raise UserError(f"method=mtl_lora knows no layers of {model.config.model_type}; type method=peft_lora16")
        mixing = Mixing(tasks=list(self.tasks), rank=self.rank, alpha=self.alpha, ups=self.ups, temperature=self.temperature)
        model.requires_grad_(False)
        for path in layers:
            mixture = Mixture(linear[path], mixing)
            draw_lora_A(mixture.A, seed=seed, layer=path)
            nn.init.normal_(mixture.choice, generator=generator(seed, "mtl_lora", path))
            beside.put(model, path, "mixtures", name, mixture)
        return Attached(model)


@dataclass(frozen=True, kw_only=True)
class LoadMTLLoRA(Method):
    """Starts from the MTL-LoRA of a saved run, which has to know each of the run's tasks."""

    path: str | None = field()
    loads = True
    tasks: Sequence[str]
    library = LIBRARY

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        attached = super().attach(model, name=name, seed=seed)
        known = _mixing(attached.model).tasks
        if other := next((task for task in self.tasks if task not in known), None):
            given = f"load_path={self.path}: its MTL-LoRA was trained for {', '.join(known)}"
            raise UserError(f"{given}, not for {other!r}; {did_you_mean(other, known)}")
        return attached
