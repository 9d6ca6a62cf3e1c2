"""Trains MTL-LoRA (Yang et al. 2024, arXiv:2410.09437, eq. 4): a LoRA for each task, mixed from parts that all share.

    y_t = W·x + b + s·(Σᵢ softmax(v_t/τ)ᵢ·Bᵢ)·Λ_t·A·x

A (r, in) and n matrices Bᵢ (out, r) are shared; Λ_t (r, r) and v_t (n) belong to task t. What a layer makes of a post so
depends on the task that reads it, so the encoder runs once for each task that a batch is computed for: a post with labels
of several tasks is right for each of them, at the price of as many passes. sampling.step=per_task has one task a batch,
of posts that carry it alone, and so no pass too many in training; evaluation has one a task.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError, did_you_mean
from hatemtl.methods.base import Attached, Library, Method, check_lora, draw_lora_A, to_load
from hatemtl.methods.lora_formats import ROLES
from hatemtl.saved_runs.saved_run import SavedRun, write_text
from hatemtl.seeds import generator

WEIGHTS = "adapter/mtl_lora.safetensors"
SETTINGS = "adapter/mtl_lora.json"
PATTERN = re.compile(r"\.mixtures\.([^.]+)\.")


class Mixture(nn.Module):
    """The LoRAs of all tasks on one linear layer.

    All Bᵢ start at zero, so nothing changes yet; v is drawn, for with equal v the Bᵢ would stay equal forever.
    """

    def __init__(self, layer: nn.Linear, *, tasks: int, rank: int, ups: int, scale: float, temperature: float) -> None:
        super().__init__()
        self.scale, self.temperature = scale, temperature
        self.task = 0  # whose LoRA is computed
        self.A = nn.Parameter(torch.zeros(rank, layer.in_features))
        self.B = nn.Parameter(torch.zeros(ups, layer.out_features, rank))
        self.transform = nn.Parameter(torch.eye(rank).repeat(tasks, 1, 1))
        self.choice = nn.Parameter(torch.zeros(tasks, ups))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Computes y + the update of the present task, for x (..., in) and y (..., out)."""
        with torch.autocast(x.device.type, enabled=False):
            shares = (self.choice[self.task] / self.temperature).softmax(dim=-1)
            up = torch.einsum("n,nor->or", self.scale * shares, self.B) @ self.transform[self.task]
        low = F.linear(x, self.A.to(x.dtype))
        sums = torch.addmm(y.reshape(-1, y.shape[-1]), low.reshape(-1, low.shape[-1]), up.to(y.dtype).T)
        return sums.view(y.shape)


class Mixed:
    """Takes the place of `forward` in a linear layer that has a mixture."""

    def __init__(self, own: Callable[[Tensor], Tensor], mixture: Mixture) -> None:
        self.own, self.mixture = own, mixture

    def __call__(self, x: Tensor) -> Tensor:
        y = self.own(x)
        return self.mixture(x.to(y.dtype), y)


@dataclass(frozen=True)
class _Settings:
    tasks: list[str]
    rank: int
    alpha: float
    ups: int
    temperature: float


def mixtures(model: nn.Module) -> dict[str, Mixture]:
    """Finds every mixture of the model, by the path of its layer."""
    return {PATTERN.split(f"{path}.")[0]: module for path, module in model.named_modules() if isinstance(module, Mixture)}


def active(model: nn.Module) -> list[str]:
    """Names the mixtures."""
    paths = (path for path, module in model.named_modules() if isinstance(module, Mixture))
    return list(dict.fromkeys(match[1] for path in paths if (match := PATTERN.search(f"{path}."))))


def reads_by_task(model: nn.Module) -> bool:
    """Tells whether the encoder's hidden states of a post depend on the task that reads it."""
    return isinstance(getattr(model, "mtl_settings", None), _Settings)


@contextmanager
def reading(model: nn.Module, task: str) -> Iterator[None]:
    """Lets the encoder compute for this task, inside."""
    number, found = _settings(model).tasks.index(task), list(mixtures(model).values())
    before = [mixture.task for mixture in found]
    for mixture in found:
        mixture.task = number
    try:
        yield
    finally:
        for mixture, task_before in zip(found, before, strict=True):
            mixture.task = task_before


def _settings(model: nn.Module) -> _Settings:
    settings: Any = model.mtl_settings
    return settings


def _install(model: nn.Module, settings: _Settings, layers: Sequence[str], name: str) -> nn.Module:
    model.requires_grad_(False)
    for path in layers:
        layer: Any = model.get_submodule(path)
        mixture = Mixture(
            layer,
            tasks=len(settings.tasks),
            rank=settings.rank,
            ups=settings.ups,
            scale=settings.alpha / settings.rank,
            temperature=settings.temperature,
        )
        layer.mixtures = nn.ModuleDict({name: mixture.train(model.training)})
        layer.forward = Mixed(layer.forward, mixture)
    model.mtl_settings = settings  # type: ignore[assignment]
    return model


def save(model: nn.Module, name: str, folder: Path) -> None:
    """Writes adapter/mtl_lora.json and adapter/mtl_lora.safetensors."""
    found = mixtures(model)
    tensors = {
        f"{layer}/{key}": tensor.detach().cpu().contiguous()
        for layer, mixture in found.items()
        for key, tensor in mixture.state_dict().items()
    }
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    content = {**vars(_settings(model)), "layers": list(found)}
    write_text(folder / SETTINGS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


LIBRARY = Library(name="mtl_lora", pattern=PATTERN, quantizable=True, active=active, save=save)


@dataclass(frozen=True, kw_only=True)
class MTLLoRA(Method):
    """Trains MTL-LoRA on the layers that ah_lora16 adapts.

    tasks: the run's. rank: r. alpha: updates are scaled by alpha / r. ups: n, how many B are shared. temperature: τ; the
    lower, the more a task keeps to one B.
    """

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
        linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
        layers = [path for path in linear if any(pattern.search(path) for pattern in ROLES.values())]
        if not layers:
            raise UserError(f"method=mtl_lora knows no layers of {model.config.model_type}; type method=peft_lora16")
        settings = _Settings(list(self.tasks), self.rank, self.alpha, self.ups, self.temperature)
        _install(model, settings, layers, name)
        with torch.no_grad():
            for path, mixture in mixtures(model).items():
                draw_lora_A(mixture.A, seed=seed, layer=path)
                mixture.choice.normal_(generator=generator(seed, "mtl_lora", path))
        return Attached(model)


@dataclass(frozen=True, kw_only=True)
class Load(Method):
    """Starts from the MTL-LoRA of a saved run, to test it, to predict with it or to train it further.

    tasks: the run's, each of which the saved one has to know.
    """

    path: str | None
    tasks: Sequence[str]
    library = LIBRARY

    def starts_from(self) -> list[SavedRun]:
        return to_load(self.path, LIBRARY)

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        run = self.starts_from()[0]
        tensors, path = run.tensors(WEIGHTS), run.folder / SETTINGS
        again = "train the run again with overwrite=true"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            layers = content.pop("layers")
            settings = _Settings(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({error}); {again}") from error
        for task in self.tasks:
            if task not in settings.tasks:
                raise UserError(
                    f"load_path={self.path}: its MTL-LoRA was trained for {', '.join(settings.tasks)}, not for {task!r}; "
                    f"{did_you_mean(task, settings.tasks)}"
                )
        try:
            _install(model, settings, layers, name)
            for layer, mixture in mixtures(model).items():
                mixture.load_state_dict(
                    {k.rpartition("/")[2]: v for k, v in tensors.items() if k.rpartition("/")[0] == layer}
                )
        except (AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{run.folder / WEIGHTS} and this encoder do not fit ({reason}); {again}") from error
        return Attached(model)
