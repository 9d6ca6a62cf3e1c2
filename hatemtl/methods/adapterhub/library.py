"""Calls AdapterHub's `adapters` library as the methods here use it: adds, loads, activates, saves and folds an adapter."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import adapters
import torch
from adapters.composition import AdapterCompositionBlock, Stack
from adapters.configuration import AdapterConfig, LoRAConfig
from adapters.loading import AdapterLoader
from adapters.methods.bottleneck import BottleneckLayer
from adapters.methods.lora import IA3, LoRALayer, LoRALinearTorch, LoRAMergedLinear, Vera
from adapters.methods.lora import LoRA as LoRAModule
from adapters.methods.prefix_tuning import PrefixTuningLayer
from adapters.methods.reft import ReftModule
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hatemtl.encoders.fast import DoRALinear, LoRALinear, ScaledLinear, accelerate, restore
from hatemtl.encoders.pretrained import Transformer, is_quantized
from hatemtl.errors import UserError
from hatemtl.machine import json_object
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.methods import lora_formats
from hatemtl.methods.adapterhub.configuration_strings import FOLDABLE, kinds, saved
from hatemtl.methods.adapterhub.library_fixes import Diagonal, DoRAFormula, dora_scale, keep_type
from hatemtl.methods.adapterhub.plain_bottlenecks import plain_bottlenecks
from hatemtl.methods.base import FAILURES, check_keys, draw_lora_A, module_names
from hatemtl.saved_runs.saved_run import AGAIN, SavedRun
from hatemtl.saved_runs.writing import write
from hatemtl.seeds import seeded

WEIGHTS = "adapter/adapter.safetensors"
# The adapter's name inside the name of a parameter, whatever the kind of adapter.
PATTERN = re.compile(
    r"(?:^|\.)(?:loras|adapters|invertible_adapters|prefix_tunings|prefix_gates|refts|shared_parameters|adapter_fusion_layer)"
    r"\.([^.]+)\."
)


def enable(model: Transformer) -> Any:
    """Gives the model AdapterHub's methods, in place; it is typed as anything, for they are added at run time."""
    without_bias = {path for path, m in model.named_modules() if isinstance(m, nn.Linear) and m.bias is None}
    with torch.random.fork_rng(devices=[]):  # it draws weights for layers that it then gives their own
        try:
            adapters.init(model)  # type: ignore[attr-defined]
        except ValueError as error:
            raise UserError(
                f"AdapterHub knows no encoder of type {model.config.model_type}; type method=full, method=peft_lora16 with "
                f"method.targets='.*(query|value)', or another encoder"
            ) from error
    for path, module in model.named_modules():
        if path in without_bias:
            module.bias = None  # ModernBERT's query-key-value layer would come out with a random one
    for layer in [module for module in model.modules() if isinstance(module, PrefixTuningLayer)]:
        # all layers' prefixes lie in one pool, which as a part of every layer could not be saved as safetensors
        layer.__dict__["pool"] = layer._modules.pop("pool")
    if is_quantized(model) and any(isinstance(module, LoRAMergedLinear) for module in model.modules()):
        raise UserError(
            f"AdapterHub reads a matrix of queries, keys and values as floats, and {model.config.model_type} has one; type "
            f"method=peft_lora16, or encoder.quantize=null"
        )
    return model


def add(model: Any, name: str, config: AdapterConfig, seed: int) -> None:
    """Adds an adapter that is drawn by the seed and its configuration, a LoRA's A by layer; no other random draw moves."""
    with seeded(seed, "adapter"):
        _insert(model, name, config)
    if not any(parameter.numel() for parameter in own_parameters(model, name).values()):
        raise UserError(
            f"the adapter ({_said(config)}) changes none of the {model.config.num_hidden_layers} layers of the encoder "
            f"{model.config.model_type}; give other keys, or type method=ah_lora16, which changes them all"
        )
    for path, layer, lora in loras(model, name):
        if isinstance(lora, LoRAModule) and model.adapters_config.match(name, LoRAConfig).init_weights == "lora":
            for projection, A, _ in factors(layer, lora):
                draw_lora_A(A, seed=seed, layer=path + projection)


def _insert(model: Any, name: str, config: AdapterConfig) -> None:
    kind = model.config.model_type
    try:
        model.add_adapter(name, config=config)
    except FAILURES as error:
        reason = "phm_dim does not divide its bottleneck's width" if isinstance(error, AssertionError) else error
        raise UserError(
            f"the adapter ({_said(config)}) does not fit the encoder {kind}: {reason}; give other keys, such as "
            f"method.reduction_factor=8, or type method=ah_lora16, which fits every encoder"
        ) from error
    for _, layer, lora in loras(model, name):
        if "vera" in kinds(config):
            for key in ("vera_D", "vera_B"):
                parametrize.register_parametrization(lora, key, Diagonal())
        elif getattr(lora, "use_dora", False):
            if type(layer) is not LoRALinearTorch:
                raise UserError(
                    f"DoRA on the encoder {kind}: it needs the norms of a float weight that is one layer's own, and a "
                    f"{type(layer).__name__} has none; type method=ah_lora16"
                )
            layer.forward = DoRAFormula(layer)
    layers = [module for module in model.modules() if isinstance(module, BottleneckLayer) and name in module.adapters]
    for bottleneck in (layer.adapters[name] for layer in layers):
        if hasattr(bottleneck, "adapter_norm_before"):
            del bottleneck.adapter_norm_before  # a second name of what adapter_down begins with: safetensors would refuse it
        if isinstance(bottleneck.scaling, nn.Parameter):
            bottleneck.register_forward_hook(keep_type)


def _said(config: AdapterConfig) -> str:
    return " with ".join(sorted(kinds(config)))


def load_one(model: Any, run: SavedRun, name: str, inside: str = "adapter") -> None:
    """Loads an adapter that stands in this folder of a saved run under `name`, from safetensors and nothing else."""
    if inside == "adapter" and (run.folder / lora_formats.SEVERAL).is_file():
        raise UserError(
            f"{run.folder} holds several adapters ({run.record['method']}), and one is expected here; only method=ah_load "
            f"takes it, whole"
        )
    weights, path = f"{inside}/adapter.safetensors", run.folder / inside / "adapter_config.json"
    loader = AdapterLoader(model)  # of which no file is read: it would fall back to a pickle, and load weights of the body
    if run.record["library"] == "peft":
        updates, depth = lora_formats.read(run, model), model.config.num_hidden_layers
        given, content = lora_formats.to_adapterhub(updates, name=name, depth=depth)
        config = AdapterConfig.load(content)
    else:
        tensors, content = run.tensors(weights), json_object.read(path, AGAIN)
        rename = loader.rename_func(content.get("name"), name)
        given = {rename(f".{key}").removeprefix("."): tensor for key, tensor in tensors.items()}
        config = saved(content.get("config"), str(path))
    try:
        with torch.random.fork_rng(devices=[]):
            _insert(model, name, config)
    except UserError as error:
        raise UserError(f"{run.folder}: {error}") from error
    belongs = loader.filter_func(name)
    own = {key: tensor for key, tensor in model.state_dict(keep_vars=True).items() if belongs(f".{key}")}
    take_in(run.folder / weights, given, own)


@torch.no_grad()
def take_in(path: Path, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Copies the tensors of a file into an adapter's own. Raises UserError where there are others, or of another shape."""
    check_keys(path, given, own)
    for key, tensor in given.items():
        if own[key].shape != tensor.shape:
            raise UserError(f"{path}: {key} is {tuple(tensor.shape)}, expected {tuple(own[key].shape)}; {AGAIN}")
        own[key].copy_(tensor)


def load_all(model: Transformer, runs: Sequence[SavedRun], name: str) -> tuple[Any, list[str]]:
    """Gives the model with every run's adapter, each under its folder's name, none under `name`; and their names."""
    adapted, names = enable(model), module_names((run.folder.resolve().name for run in runs), name)
    for run, each in zip(runs, names, strict=True):
        load_one(adapted, run, each)
    return adapted, names


def own_parameters(model: Any, name: str) -> dict[str, nn.Parameter]:
    """Gives the adapter's parameters, by names that say `*` for its own: the same for adapters of one configuration."""
    found = {}
    for key, parameter in model.named_parameters():
        if (match := PATTERN.search(key)) and match[1] == name:
            found[f"{key[: match.start(1)]}*{key[match.end(1) :]}"] = parameter
    return found


def activate(model: Any, setup: AdapterCompositionBlock, trained: Collection[str]) -> Any:
    """Makes `setup` what every forward computes, and freezes all but the adapters or fusions called `trained`."""
    model.train()
    model.freeze_model(True)
    model.set_active_adapters(setup)
    for key, parameter in model.named_parameters():
        found = PATTERN.search(key)
        parameter.requires_grad = found is not None and found[1] in trained
    for name in trained:
        if name in model.adapters_config and "vera" in kinds(model.adapters_config.get(name)):
            model.shared_parameters[name].requires_grad_(False)
    for module in model.modules():
        if isinstance(module, ReftModule) and not module.tied_weights:
            for unit, positions in zip(module.units, (module.prefix_positions, module.suffix_positions), strict=True):
                if not positions:
                    unit.requires_grad_(False)  # it never acts, and a parameter without gradient stalls distributed training
    return model


def train(model: Any, name: str) -> Any:
    """Freezes the body and activates adapter `name`; what of it our layers know is computed fast."""
    activate(model, Stack(name), {name})
    found: list[Any] = []
    for _, layer, lora in loras(model, name):
        if _low_rank(layer, lora):
            given = layer, layer, lora.lora_A, lora.lora_B, lora.scaling, len(factors(layer, lora))
            found.append(DoRALinear(*given, scaler=lora.m.weight) if lora.use_dora else LoRALinear(*given))
        elif _scales(layer, lora):
            found.append(ScaledLinear(layer, layer, lora.lora_B, lora.scaling))
    accelerate(model, found, plain_bottlenecks(model, name))
    return model


def _low_rank(layer: Any, lora: Any) -> bool:
    if type(layer) not in (LoRALinearTorch, LoRAMergedLinear) or layer.fan_in_fan_out or type(lora) is not LoRAModule:
        return False
    if isinstance(layer, LoRAMergedLinear) and not {*"qkv"} <= {*lora.attn_matrices}:
        return False  # of q and v alone, rows between them have none
    return not (lora.use_gating or isinstance(lora.lora_dropout, nn.Dropout))


def _scales(layer: Any, lora: Any) -> bool:
    return type(layer) is LoRALinearTorch and not layer.fan_in_fan_out and type(lora) is IA3 and not lora.use_gating


def active(model: Any) -> list[str]:
    """Names the adapters in the active setup, and the fusion over them."""
    setup = model.active_adapters
    if not setup:
        return []
    return [*setup.children, *([setup.name] if getattr(setup, "name", None) else [])]


def save_one(model: Any, name: str, folder: Path) -> None:
    """Writes adapter_config.json and adapter.safetensors of one adapter into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_adapter(str(folder), name, use_safetensors=True)
    if name in model.shared_parameters:  # Compacter's rule or VeRA's matrices, which the library forgets
        path, shared = folder / "adapter.safetensors", model.shared_parameters[name].items()
        whole = load_file(path) | {f"shared_parameters.{name}.{key}": p.detach().cpu() for key, p in shared}
        write(path, lambda temporary: save_file(whole, temporary))


def loras(model: nn.Module, name: str) -> Iterable[tuple[str, LoRALayer, Any]]:
    """Gives every layer that LoRA `name`, or a kin of it, adapts: its path, the layer, the LoRA on it."""
    for path, module in model.named_modules():
        if isinstance(module, LoRALayer) and name in module.loras:
            yield path, module, module.loras[name]


def factors(layer: LoRALayer, lora: LoRAModule) -> list[tuple[str, Tensor, Tensor]]:
    """Gives A and B for each projection of the layer as views: one, or q, k and v where one matrix holds them."""
    if not isinstance(layer, LoRAMergedLinear):
        return [("", lora.lora_A, lora.lora_B)]
    names = [f".{name}" for name in "qkv" if name in lora.attn_matrices]
    return list(zip(names, lora.lora_A.chunk(len(names)), lora.lora_B.chunk(len(names)), strict=True))


def updates(model: nn.Module, name: str) -> dict[str, LoRAUpdate]:
    """Gives LoRA `name` as one update a layer."""
    return {
        path + projection: LoRAUpdate(A.detach(), B.detach(), lora.scaling)
        for path, layer, lora in loras(model, name)
        for projection, A, B in factors(layer, lora)
    }


@torch.no_grad()
def fold(model: Any, name: str) -> Any:
    """Writes adapter `name` into the weights under it, in float32, and takes it away: the model computes the same."""
    config = model.adapters_config.get(name)
    if more := sorted(kinds(config) - FOLDABLE):  # to which the library would silently do nothing
        raise UserError(
            f"the adapter {name} on the encoder {model.config.model_type} is no mere change of its weights "
            f"({', '.join(more)}), so it cannot be merged into them; keep it beside the encoder, method=ah_load"
        )
    restore(model)
    for path, layer, lora in list(loras(model, name)):
        weight, bias = layer.weight.float(), layer.bias
        if isinstance(layer, LoRAMergedLinear) and kinds(config) != {"lora"}:
            what = "a matrix of queries, keys and values"
            raise UserError(f"{path}: only a LoRA can be merged into {what}; type method=ah_lora16")
        if lora.composition_mode == "scale":
            scale = lora.lora_B.flatten() * lora.scaling
            weight, bias = weight * scale[:, None], None if bias is None else bias * scale
        elif lora.use_dora:
            change, scale = dora_scale(layer, lora)
            weight = (weight + change) * scale[:, None]
            del layer.forward  # DoRAFormula
        elif isinstance(lora, Vera):
            A, B = (model.shared_parameters[name][key] for key in ("lora_A", "lora_B"))
            weight = weight + lora.scaling * (lora.vera_B @ B @ lora.vera_D @ A)
        else:
            for projection, A, B in factors(layer, lora):
                rows = weight.chunk(3)["qkv".index(projection[1])] if projection else weight
                rows += lora.scaling * (B @ A)
        layer.weight.data.copy_(weight)
        if bias is not None:
            layer.bias.data.copy_(bias)
    model.set_active_adapters(None)
    model.delete_adapter(name)
    return model
