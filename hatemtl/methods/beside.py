"""Puts a module beside a linear layer, which makes y' of the layer's input x and output y = W·x + b; saves and loads it."""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hatemtl.errors import UserError
from hatemtl.machine import json_object
from hatemtl.methods.base import FAILURES
from hatemtl.saved_runs.saved_run import AGAIN, SavedRun
from hatemtl.saved_runs.writing import write_text

M = TypeVar("M", bound=nn.Module)
Makers = Mapping[str, Callable[[nn.Linear], nn.Module]]  # what makes the module for a layer, by the path of the layer
PATTERN = re.compile(r"\.(?:banks|mixtures)\.([^.]+)\.")  # the places of modules in a layer, each by its name


def _both(own: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Tensor:
    y = own(x)
    return module(x.to(y.dtype), y)


def put(model: nn.Module, path: str, place: str, name: str, module: nn.Module) -> None:
    """Puts the module beside the layer at this path, under a name in this place."""
    layer = model.get_submodule(path)
    layer.add_module(place, nn.ModuleDict({name: module.train(model.training)}))
    layer.forward = partial(_both, layer.forward, module)


def found(model: nn.Module, kind: type[M]) -> dict[str, M]:
    """Finds every module of this kind that stands beside a layer, by the path of the layer."""
    return {PATTERN.split(f"{path}.")[0]: module for path, module in model.named_modules() if isinstance(module, kind)}


def add_up(y: Tensor, low: Tensor, up: Tensor) -> Tensor:
    """Computes y + up·low in the type of y, for y (..., out), low (..., r) and up (out, r)."""
    sums = torch.addmm(y.reshape(-1, y.shape[-1]), low.reshape(-1, low.shape[-1]), up.to(y.dtype).T)
    return sums.view(y.shape)


def save(folder: Path, form: str, modules: Mapping[str, nn.Module], settings: Mapping[str, Any]) -> None:
    """Writes adapter/FORM.json, the settings, and adapter/FORM.safetensors, the tensors of these modules, by layer."""
    states = {f"{layer}/{key}": t for layer, module in modules.items() for key, t in module.state_dict().items()}
    tensors = {key: tensor.cpu().contiguous() for key, tensor in states.items()}
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / f"adapter/{form}.safetensors")
    write_text(folder / f"adapter/{form}.json", json.dumps(settings, indent=1, ensure_ascii=False) + "\n")


def load(
    model: nn.Module, run: SavedRun, form: str, place: str, name: str, described: Callable[[dict[str, Any]], Makers]
) -> None:
    """Puts what `save` wrote beside the same layers; `described` gives makers of their modules, by what the settings say."""
    weights, path = f"adapter/{form}.safetensors", run.folder / f"adapter/{form}.json"
    tensors = run.tensors(weights)
    try:
        if not (makers := described(json_object.read(path, AGAIN))):
            raise ValueError("it names no layer")
    except FAILURES as error:
        raise UserError(f"{path} cannot be read ({error!r}); {AGAIN}") from error
    try:
        for layer, make in makers.items():
            linear = model.get_submodule(layer)
            if not isinstance(linear, nn.Linear):
                raise ValueError(f"layer {layer} is not linear")
            module = make(linear)
            state = {key.removeprefix(f"{layer}/"): t for key, t in tensors.items() if key.startswith(f"{layer}/")}
            module.load_state_dict(state)
            put(model, layer, place, name, module)
    except FAILURES as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{run.folder / weights} and this encoder do not fit ({reason}); {AGAIN}") from error
