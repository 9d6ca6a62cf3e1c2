"""Writes bottlenecks and fusions as AdapterHub does, and reads what either wrote: a run of one is a run of the other.

adapter/adapter_config.json and adapter.safetensors; of several adapter/setup.json, adapter/NAME/ each, and the fusion's own.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.machine import json_object
from hatemtl.methods.base import Library, check_keys, fusion_width, module_names
from hatemtl.methods.bottleneck.configuration import NEEDED, is_number, odd
from hatemtl.methods.bottleneck.layers import activate, ends, fuse, insert
from hatemtl.methods.lora_formats import SEVERAL
from hatemtl.saved_runs.saved_run import AGAIN, SavedRun
from hatemtl.saved_runs.writing import write, write_text
from hatemtl.seeds import seeded

PATTERN = re.compile(r"\.(?:adapters|adapter_fusion_layer)\.([^.]+)\.")
WRITTEN_AS = "adapters.1.3.0"  # whose format this is
FUSION = {"query_before_ln": False, "residual_before": False, "temperature": False, "value_before_softmax": True}


def save(model: Any, name: str, folder: Path) -> None:
    """Writes what acts into folder/adapter."""
    end, target = ends(model)[0], folder / "adapter"
    if end.fusion is None:
        _save_one(model, end.names[0], end.owner.adapters[end.names[0]].config, target)
        return
    for each in end.names:
        _save_one(model, each, end.owner.adapters[each].config, target / each)
    settings = {**FUSION, "regularization": False, "value_initialized": True}
    settings |= end.owner.adapter_fusion_layer[end.fusion].settings
    content = {"config": settings, "adapter_names": [*end.names]}
    _write(model, name, content, target / name, "adapter_fusion_config.json")
    _write_tensors(model, f".adapter_fusion_layer.{name}.", target / name / "model_adapter_fusion.safetensors")
    shares = [1 / len(end.names)] * len(end.names)
    setup = {"how": "Fuse", "names": [*end.names], "trained": name, "weights": shares}
    write_text(folder / SEVERAL, json.dumps(setup, indent=2, ensure_ascii=False) + "\n")


def _save_one(model: Any, name: str, config: Mapping[str, Any], target: Path) -> None:
    _write(model, name, {"config": dict(config)}, target, "adapter_config.json")
    _write_tensors(model, f".adapters.{name}.", target / "adapter.safetensors")


def _write(model: Any, name: str, content: dict[str, Any], target: Path, file: str) -> None:
    target.mkdir(parents=True, exist_ok=True)
    config = model.config
    about = {"hidden_size": config.hidden_size, "model_class": type(model).__name__, "model_type": config.model_type}
    about |= {"model_name": config.name_or_path or None, "name": name, "version": WRITTEN_AS}
    write_text(target / file, json.dumps({**content, **about}, indent=2, sort_keys=True) + "\n")


def _write_tensors(model: Any, place: str, path: Path) -> None:
    tensors = {key: value.contiguous().cpu() for key, value in model.state_dict().items() if place in key}
    write(path, lambda temporary: save_file(tensors, temporary))


def load(model: Transformer, run: SavedRun, name: str, seed: int) -> Transformer:
    """Gives the model what was saved, one adapter or several and a fusion; what was trained stands under `name`."""
    path = run.folder / SEVERAL
    if not path.is_file():
        load_one(model, run, name)
        return activate(model, [name], None, name)
    saved = json_object.read(path, AGAIN, "how", "names", "trained")
    names, trained = saved["names"], saved["trained"]
    called = [*names, trained] if isinstance(names, list) else [None]
    if saved["how"] != "Fuse" or not all(isinstance(each, str) and re.fullmatch(r"[^/\\.]+", each) for each in called):
        raise UserError(
            f"{run.folder}: its adapters work together as {saved['how']!r:.40}, and a fusion of bottlenecks is expected; "
            f"type method=ah_load"
        )
    taken = module_names(names, name)
    for each, now in zip(names, taken, strict=True):
        load_one(model, run, now, inside=f"adapter/{each}")
    inside = f"adapter/{trained}/model_adapter_fusion.safetensors"
    tensors, config = run.tensors(inside), run.folder / f"adapter/{trained}/adapter_fusion_config.json"
    settings = json_object.read(config, AGAIN, "config")["config"]
    matrices, dropout = _checked(config, settings)
    with seeded(seed, "fusion"):
        fuse(model, name, taken, **matrices, width=fusion_width(tensors), dropout=dropout)
    _take(model, run.folder / inside, tensors, f".adapter_fusion_layer.{trained}.", f".adapter_fusion_layer.{name}.")
    return activate(model, taken, name, name)


def _checked(path: Path, settings: Any) -> tuple[dict[str, bool], float]:
    """Gives which matrices a fusion has, and its dropout. Raises UserError where its file says none, or more."""
    if not isinstance(settings, dict):
        raise UserError(f"{path}: config is {settings!r:.40}, expected keys with values; {AGAIN}")
    if more := [key for key, value in FUSION.items() if settings.get(key, value) != value]:
        raise UserError(f"{path}: {', '.join(more)}: more than hatemtl's own fusions know; type method=ah_load")
    matrices, dropout = {key: settings.get(key) for key in ("query", "key", "value")}, settings.get("dropout_prob") or 0.0
    if not all(isinstance(is_there, bool) for is_there in matrices.values()):
        raise UserError(f"{path}: query, key and value are {[*matrices.values()]!r:.60}, expected true or false; {AGAIN}")
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise UserError(f"{path}: dropout_prob is {dropout!r:.40}, expected a probability below 1; {AGAIN}")
    return matrices, dropout  # type: ignore[return-value]


def load_one(model: Transformer, run: SavedRun, name: str, inside: str = "adapter") -> None:
    """Puts the adapter in this folder of a saved run into the model. Raises UserError where it is no plain bottleneck."""
    path, weights = run.folder / inside / "adapter_config.json", f"{inside}/adapter.safetensors"
    if inside == "adapter" and (run.folder / SEVERAL).is_file():
        raise UserError(f"{run.folder} holds several adapters together, and one is expected; name the runs of each")
    content = json_object.read(path, AGAIN, "config", "name")
    config = content["config"]
    known = isinstance(config, dict) and config.get("architecture") is None and config.keys() >= NEEDED
    if more := odd(config) if known else ["architecture"]:
        raise UserError(f"{path}: no plain bottleneck ({', '.join(more)}), which is expected here; type method=ah_load")
    tensors = run.tensors(weights)
    with torch.random.fork_rng(devices=[]):
        insert(model, name, config)
    if not any(f".adapters.{name}." in key for key, _ in model.named_parameters()):
        raise UserError(f"{path}: leaves out each of the encoder's layers, expected an adapter in one; {AGAIN}")
    _take(model, run.folder / weights, tensors, f".adapters.{content['name']}.", f".adapters.{name}.")


@torch.no_grad()
def _take(model: Any, path: Path, tensors: Mapping[str, Tensor], saved: str, now: str) -> None:
    given = {key.replace(saved, now): tensor for key, tensor in tensors.items()}
    own = {key: parameter for key, parameter in model.named_parameters() if now in key}
    check_keys(path, given, own)
    for key, tensor in given.items():
        if own[key].shape != tensor.shape:
            raise UserError(f"{path}: {key} is {tuple(tensor.shape)}, expected {tuple(own[key].shape)}; {AGAIN}")
        own[key].copy_(tensor)


def active(model: Any) -> list[str]:
    """Names the adapters that act, and the fusion over them."""
    end = ends(model)[0]
    return [*end.names, *([end.fusion] if end.fusion else [])]


LIBRARY = Library(name="adapterhub", pattern=PATTERN, quantizable=False, save=save, load=load, active=active)
