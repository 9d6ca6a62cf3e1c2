"""Trains a LoRA or an adapter of any other kind of the `peft` library, which only this file imports; saves and loads one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.ia3 import Linear as LinearWithIA3
from peft.tuners.lora import Linear as LinearWithLoRA
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from torch import nn

from hatemtl.encoders.fast import DoRALinear, LoRALinear, ScaledLinear, accelerate, restore
from hatemtl.encoders.pretrained import Transformer, is_quantized
from hatemtl.errors import UserError, did_you_mean
from hatemtl.machine import json_object
from hatemtl.methods import base
from hatemtl.methods.base import FAILURES, Attached, Library, Method
from hatemtl.methods.lora_formats import PLAIN_STARTS
from hatemtl.saved_runs.saved_run import AGAIN, SavedRun
from hatemtl.seeds import seeded

WEIGHTS = "adapter/adapter_model.safetensors"
NAME = "default"  # PEFT saves an adapter of any other name in a folder below
PATTERN = re.compile(rf"\.({NAME})(?:\.|$)")  # whatever the kind calls its weights

# The layers that AdapterHub's LoRA on q, k, v, intermediate and output adapts, by the names each architecture gives them.
BERT_LIKE = r".*(attention\.self\.(query|key|value)|intermediate\.dense|layer\.\d+\.output\.dense)"
TARGETS = {
    **dict.fromkeys(("bert", "electra", "roberta", "xlm-roberta"), BERT_LIKE),
    "deberta-v2": r".*(attention\.self\.(query|key|value)_proj|intermediate\.dense|layer\.\d+\.output\.dense)",
    "modernbert": r".*(attn\.Wqkv|mlp\.Wi|mlp\.Wo)",
}
# (IA)³ scales keys, values and what enters the second feed-forward layer (Liu et al. 2022, arXiv:2205.05638).
FEED_FORWARD = r".*(layer\.\d+\.output\.dense|mlp\.Wo)"
IA3_TARGETS = r".*(attention\.self\.(key|value)(_proj)?|attn\.Wqkv|layer\.\d+\.output\.dense|mlp\.Wo)"
NORMS = r".*(LayerNorm|norm)"

# Every kind of adapter that the library knows, by the name of its configuration.
KINDS: dict[str, type[peft.PeftConfig]] = {config.__name__: config for config in PEFT_TYPE_TO_CONFIG_MAPPING.values()}
VIRTUAL = (
    "its virtual tokens stand before those of the post, which heads read by their places, and PEFT gives them to models of "
    "its own tasks alone"
)
# Kinds of which a run here could make nothing, and why.
REFUSED = {
    "AdaLoraConfig": "it moves ranks between layers in a training loop of its own",
    "AdaptionPromptConfig": "it knows decoders alone",
    "PolyConfig": "it needs the task of every post at each forward",
    "ShadowConfig": "it hands over more than hidden states from layer to layer, which no encoder here takes",
    "TrainableTokensConfig": "it trains embeddings of tokens, and adapts no layer",
    "XLoraConfig": "it mixes LoRAs that were trained before",
    **{kind: VIRTUAL for kind, config in KINDS.items() if issubclass(config, peft.PromptLearningConfig)},
}
# Kinds that read nothing of the frozen layers but their inputs and outputs, or that know 8-bit and 4-bit layers.
QUANTIZABLE = (
    *("HiraConfig", "IA3Config", "LNTuningConfig", "LoraConfig", "OFTConfig", "PveraConfig", "RandLoraConfig", "RoadConfig"),
    "VeraConfig",
)
# Keys of a configuration that the run sets, and of which none is passed on from a saved one: tools of PEFT's that are not
# used here find another model by them. Then those in whose place the run has another, and those that are refused.
OWNED = (
    *("peft_type", "task_type", "inference_mode", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
    *("runtime_config", "megatron_core"),
)
INSTEAD = {
    "target_modules": "type method.targets='.*(query|value)'",
    "exclude_modules": "type method.leave_out=[0,1]",
    "modules_to_save": "heads are trained and saved beside the adapter anyway",
}
LEADING = {
    "megatron_config": "it makes PEFT import a module that is named beside it",
    "corda_config": "it names files with statistics of texts, which no run here gathers",
}


def train(model: peft.PeftModel) -> peft.PeftModel:
    """Gives the model, every plain LoRA, DoRA and (IA)³ of which is computed fast."""
    found: list[Any] = []
    every: list[Any] = [*model.modules()]
    for layer in every:
        if _low_rank(layer):
            A, B = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
            given = layer, layer.base_layer, A, B, layer.scaling[NAME]
            if NAME in layer.lora_variant:
                found.append(DoRALinear(*given, scaler=layer.lora_magnitude_vector[NAME].weight))
            else:
                found.append(LoRALinear(*given))
        elif _scales(layer):
            found.append(ScaledLinear(layer, layer.base_layer, layer.ia3_l[NAME], enters=layer.is_feedforward))
    accelerate(model, found)
    return model


def _scales(layer: Any) -> bool:
    if type(layer) is not LinearWithIA3 or type(layer.base_layer) is not nn.Linear or NAME not in layer.ia3_l:
        return False
    return not layer.fan_in_fan_out and not any(parameter.requires_grad for parameter in layer.base_layer.parameters())


def _low_rank(layer: Any) -> bool:
    if type(layer) is not LinearWithLoRA or type(layer.base_layer) is not nn.Linear:
        return False
    if not {*map(type, layer.lora_variant.values())} <= {DoraLinearVariant}:
        return False
    if any(parameter.requires_grad for parameter in layer.base_layer.parameters()) or NAME not in layer.lora_A:
        return False
    return isinstance(layer.lora_dropout[NAME], nn.Identity) and layer.lora_B[NAME].bias is None and not layer.fan_in_fan_out


def save(model: nn.Module, name: str, folder: Path) -> None:
    """Writes adapter/adapter_config.json and adapter/adapter_model.safetensors."""
    # without its search for embeddings, for which it would ask the hub
    model.save_pretrained(str(folder / "adapter"), safe_serialization=True, save_embedding_layers=False)  # type: ignore[operator]
    (folder / "adapter" / "README.md").unlink(missing_ok=True)  # a card of blanks


def fold(model: peft.PeftModel) -> nn.Module:
    """Merges the adapter into the encoder's weights and takes it away, in float32."""
    restore(model)
    try:
        return model.merge_and_unload()
    except FAILURES as error:
        raise UserError(
            f"{type(model.peft_config[NAME]).__name__} on {model.config.model_type} cannot be merged ({error}); type "
            f"export.format=peft"
        ) from error


def add(
    model: Transformer,
    kind: str,
    options: Mapping[str, Any],
    targets: str | Sequence[str] | None,
    leave_out: Sequence[int],
    seed: int,
) -> peft.PeftModel:
    """Gives the model with a new adapter on layers that an expression finds, or on these; no draw but its own moves."""
    encoder, settings = model.config.model_type, dict(options)
    if kind == "IA3Config":
        settings.setdefault("feedforward_modules", FEED_FORWARD)
    default = TARGETS.get(encoder)
    targets = targets or {"IA3Config": default and IA3_TARGETS, "LNTuningConfig": NORMS}.get(kind, default)
    if targets is None:
        raise UserError(f"method.targets: no default for {encoder}; type method.targets='.*(query|value)'")
    left_out = base.check_leave_out(leave_out, model.config.num_hidden_layers)
    beyond = rf"(?!.*\blayers?\.({'|'.join(map(str, left_out))})\.)" if left_out else ""
    make: Any = KINDS[kind]
    try:
        config = make(target_modules=f"{beyond}(?:{targets})" if beyond else targets, **settings)
        _check_quantized(model, config)
        with seeded(seed, "peft", kind):
            wrapped = peft.get_peft_model(model, config, adapter_name=NAME)
    except FAILURES as error:
        raise UserError(
            f"{kind} on {encoder} with method.targets={targets!r}: {type(error).__name__}: {error}; give others, or other "
            f"method.options, or type method=peft_lora16"
        ) from error
    if kind == "LoraConfig" and settings.get("init_lora_weights", True) is True:
        for path, module in wrapped.get_base_model().named_modules():
            if isinstance(module, LoraLayer) and NAME in module.lora_A:
                A: Any = module.lora_A[NAME].weight
                base.draw_lora_A(A, seed=seed, layer=path)
    return wrapped


def _check_quantized(model: Transformer, config: peft.PeftConfig) -> None:
    """Raises UserError where the adapter would compute with weights that are there in 8 or 4 bits alone."""
    if not is_quantized(model):
        return
    kind, body = type(config).__name__, f"a quantized {model.config.model_type}"
    way_out = "encoder.quantize=null, or method=peft_lora16"
    if kind not in QUANTIZABLE:
        raise UserError(f"{kind} on {body}: it computes with the very weights; type {way_out}")
    if (start := getattr(config, "init_lora_weights", True)) not in PLAIN_STARTS:
        raise UserError(f"{kind} on {body}: init_lora_weights={start} changes the weights; type {way_out}")
    if getattr(config, "use_dora", False) and model.is_loaded_in_8bit:
        raise UserError(f"DoRA on {body}: PEFT fails over 8 bits; type encoder.quantize=4bit, or {way_out}")


def load(model: Transformer, run: SavedRun, name: str, seed: int) -> peft.PeftModel:
    """Gives the model with a saved run's adapter, of which PEFT itself reads no file."""
    saved, path = run.tensors(WEIGHTS), run.folder / "adapter" / "adapter_config.json"
    try:
        config = _saved(path)
        _check_quantized(model, config)
        with torch.random.fork_rng(devices=[]):
            loaded = peft.get_peft_model(model, config, adapter_name=NAME)
        own = peft.get_peft_model_state_dict(loaded, adapter_name=NAME, save_embedding_layers=False)
        base.check_keys(run.folder / WEIGHTS, saved, own)
        peft.set_peft_model_state_dict(loaded, saved, adapter_name=NAME)
    except FAILURES as error:
        raise UserError(f"{path.parent} cannot be read ({type(error).__name__}: {error}); {AGAIN}") from error
    return train(loaded)


def _saved(path: Path) -> peft.PeftConfig:
    """Reads a saved configuration. Raises UserError where training refuses its kind or a key, or knows neither."""
    content = json_object.read(path, AGAIN)
    kind = content.get("peft_type")
    config: Any = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind) if isinstance(kind, str) else None  # type: ignore[call-overload]
    if reason := "no kind of adapter that PEFT has" if config is None else REFUSED.get(config.__name__):
        raise UserError(f"{path}: peft_type={kind!r}: {reason}; {AGAIN}")
    known = {key.name for key in fields(config)}
    for key, value in content.items():
        refused = LEADING.get(key) or (INSTEAD[key] if key == "modules_to_save" else "")
        if refused and value:
            raise UserError(f"{path}: {key}: {refused}; {AGAIN}")
        if key not in known:
            raise UserError(f"{path}: {key}: no key of {config.__name__}, which would be left out of account; {AGAIN}")
    settings = config.check_kwargs(**content)
    return config(**{key: value for key, value in settings.items() if key not in (*OWNED, *LEADING)})


LIBRARY = Library(name="peft", pattern=PATTERN, quantizable=True, save=save, load=load)


@dataclass(frozen=True, kw_only=True)
class PEFTLoRA(Method):
    """Trains a new LoRA on the frozen encoder; its update is scaled by alpha / rank."""

    rank: int
    alpha: int
    dropout: float
    targets: str | None
    leave_out: Sequence[int]
    library = LIBRARY

    def __post_init__(self) -> None:
        base.check_lora(rank=self.rank, alpha=self.alpha, dropout=self.dropout)

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        options = {"r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout}
        return Attached(train(add(model, "LoraConfig", options, self.targets, self.leave_out, seed)))


@dataclass(frozen=True, kw_only=True)
class PEFTAdapter(Method):
    """Trains a new adapter of any kind that PEFT has on the frozen encoder, by the name of its configuration there."""

    kind: str
    options: Mapping[str, Any] | None
    targets: str | None
    leave_out: Sequence[int]
    library = LIBRARY

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"method.kind={self.kind}: {did_you_mean(self.kind, sorted(KINDS.keys() - REFUSED.keys()))}")
        if self.kind in REFUSED:
            raise UserError(f"method.kind={self.kind}: {REFUSED[self.kind]}; type method=peft_lora16")
        keys = {key.name: key.type for key in fields(KINDS[self.kind]) if key.name not in {*OWNED, *INSTEAD}}
        for key, value in (self.options or {}).items():
            if key in INSTEAD or key in LEADING:
                raise UserError(f"method.options.{key}: {(INSTEAD | LEADING)[key]}")
            if key not in keys:
                raise UserError(f"method.options.{key}: no key of {self.kind} to be set here; {did_you_mean(key, keys)}")
            if keys[key] in (bool, "bool") and not isinstance(value, bool):  # the library takes any text for true
                raise UserError(f"method.options.{key}={value}: expected true or false")

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        wrapped = add(model, self.kind, self.options or {}, self.targets, self.leave_out, seed)
        return Attached(train(base.try_out(wrapped, f"method.kind={self.kind}")))


@dataclass(frozen=True, kw_only=True)
class LoadPEFT(Method):
    """Starts from the adapter of a saved run, to test it, to predict with it or to train it further."""

    path: str | None = field()
    loads = True
    library = LIBRARY
