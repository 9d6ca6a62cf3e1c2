"""Reads and writes a LoRA in the files of AdapterHub and of PEFT, without either library: updates in, updates out."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.errors import Refusal, UserError
from hatemtl.machine import json_object
from hatemtl.machine.hub import parted
from hatemtl.merging.lora import LoRAUpdate, Updates
from hatemtl.methods.base import draw_lora_A
from hatemtl.saved_runs.saved_run import AGAIN, SavedRun

# The weights by library, and their names, of which a layer's path and A or B are cut.
FILES = {"adapterhub": "adapter/adapter.safetensors", "peft": "adapter/adapter_model.safetensors"}
KEYS = {"adapterhub": r"(.+)\.loras\.[^.]+\.lora_([AB])", "peft": r"base_model\.model\.(.+)\.lora_([AB])\.weight"}
# Keys of a configuration that leave a LoRA at W + s·B·A, by library; any other must be empty or false.
PLAIN = {
    "adapterhub": (
        *("architecture", "selfattn_lora", "intermediate_lora", "output_lora", "attn_matrices", "leave_out", "r", "alpha"),
        *("dropout", "composition_mode", "init_weights", "init_weights_seed", "dtype"),
    ),
    "peft": (
        *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "bias"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "ensure_weight_tying"),
        *("init_lora_weights", "eva_config", "loftq_config", "corda_config", "lora_ga_config", "velora_config"),
        *("qalora_group_size", "megatron_core", "auto_mapping", "base_model_name_or_path", "revision", "task_type"),
        *("inference_mode", "peft_version"),
    ),
}
SEVERAL = "adapter/setup.json"  # of a run with several of AdapterHub's adapters; see several_adapters
# What to do with an adapter that is something else: AdapterHub merges its own of any kind, and knows PEFT's by this file.
INSTEAD = {"adapterhub": "for a merge type method=ah_merge16 merge=mean", "peft": "train it with method=peft_lora16"}
OTHER = "give the encoder that it was trained on"
# PEFT's ways to start that leave the encoder's own weights alone.
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
# The layers that AdapterHub's LoRA can adapt, by the names each architecture gives them; q, k and v share one in some.
ROLES = {
    "q": re.compile(r"attention\.self\.query(_proj)?$"),
    "k": re.compile(r"attention\.self\.key(_proj)?$"),
    "v": re.compile(r"attention\.self\.value(_proj)?$"),
    "qkv": re.compile(r"attn\.Wqkv$"),
    "intermediate": re.compile(r"(intermediate\.dense|mlp\.Wi)$"),
    "output": re.compile(r"(layer\.\d+\.output\.dense|mlp\.Wo)$"),
}
LAYER = re.compile(r"\b(layers?\.)(\d+)(?=\.)")


def read(run: SavedRun, model: nn.Module) -> dict[str, LoRAUpdate]:
    """Reads the saved LoRA as one update for each linear layer of this encoder that it adapts.

    Raises UserError where the adapter is no plain LoRA, is broken, or does not fit the encoder.
    """
    library = run.record["library"]
    config, other = _described(run, library)
    if other:
        raise Refusal(f"{run.folder}: {other}, and nothing else can be read here; leave it out, or {INSTEAD[library]}")
    projections = [name for name in "qkv" if name in config.get("attn_matrices", ())]
    updates, layers = {}, dict(model.named_modules())
    for path, (A, B) in _pairs(run, library).items():
        if not isinstance(layer := layers.get(path), nn.Linear):
            raise UserError(f"{run.folder}: this encoder has no linear layer {path}; {OTHER}")
        rank = B.shape[1]
        if projections and (A.shape[0] != rank or B.shape[0] != layer.out_features):
            B = _block(B, projections)
        if (B.shape[0], A.shape[0], A.shape[1]) != (layer.out_features, B.shape[1], layer.in_features):
            shapes = f"A {tuple(A.shape)} and B {tuple(B.shape)}"
            raise UserError(f"{run.folder}: {shapes} do not fit layer {path} of this encoder; {OTHER}")
        updates[path] = LoRAUpdate(A, B, _scale(config, library, path, rank))
    return updates


def is_lora(run: SavedRun) -> bool:
    """Tells whether all that is saved is one LoRA that `read` takes. Raises UserError where its configuration is broken."""
    return not (run.folder / SEVERAL).is_file() and not _described(run, run.record["library"])[1]


def _described(run: SavedRun, library: str) -> tuple[dict[str, Any], str]:
    """The adapter's configuration, and what makes it something else than W + s·B·A, if anything does."""
    path = run.folder / "adapter" / "adapter_config.json"
    content = json_object.read(path, AGAIN)
    try:
        config = dict(content["config"] if library == "adapterhub" else content)
        if library == "adapterhub":
            kind = config.get("architecture", "a bottleneck or several")  # these carry no such key
            plain = kind == "lora" and config["composition_mode"] == "add"
        else:
            kind, plain = config["peft_type"], config["peft_type"] == "LORA"
        if plain:
            _scale(config, library, "", 1)  # has what it needs
            list(config.get("attn_matrices", ()))
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, re.error) as error:
        raise UserError(f"{path} cannot be read ({error!r}); {AGAIN}") from error
    if not plain:
        return config, f"its adapter is no LoRA ({kind})"
    if other := [key for key in config if config[key] and key not in PLAIN[library]]:
        return config, f"its LoRA is no plain one ({other[0]}={config[other[0]]})"
    if (start := config.get("init_lora_weights", True)) not in PLAIN_STARTS:
        return config, f"its LoRA started by {start}, which changes the encoder's own weights"
    return config, ""


def _scale(config: Mapping[str, Any], library: str, path: str, rank: int) -> float:
    if library == "adapterhub":
        return float(config["alpha"] / rank)
    patterns = config.get("alpha_pattern") or {}  # of layers' paths, as PEFT matches them
    own = (alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", path))
    return float(next(own, config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank))


def _pairs(run: SavedRun, library: str) -> dict[str, tuple[Tensor, Tensor]]:
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in run.tensors(FILES[library]).items():
        if (match := re.fullmatch(KEYS[library], key)) is None:
            raise Refusal(f"{run.folder}: {key} belongs to no plain LoRA, and nothing else can be read here; leave it out")
        factors.setdefault(match[1], {})[match[2]] = tensor
    if alone := [path for path, pair in factors.items() if len(pair) != 2]:
        raise UserError(f"{run.folder}: layer {alone[0]} lacks one of A and B; {AGAIN}")
    if not factors:
        raise UserError(f"{run.folder}: its LoRA adapts no layer; leave it out")
    return {path: (pair["A"], pair["B"]) for path, pair in factors.items()}


def _block(B: Tensor, projections: list[str]) -> Tensor:
    """AdapterHub's B of some of q, k and v, (n·D, r), as that of the layer that holds all three, (3·D, n·r)."""
    parts = dict(zip(projections, B.chunk(len(projections)), strict=True))
    nothing = parts[projections[0]][:, :0]
    return torch.block_diag(*(parts.get(name, nothing) for name in "qkv"))


def to_peft(updates: Updates, *, base: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Gives the content of PEFT's adapter_model.safetensors and adapter_config.json. base: the encoder, by hub or folder."""
    repo, revision = parted(base)
    alphas = {path: update.scale * update.rank for path, update in updates.items()}
    rank = Counter(update.rank for update in updates.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    tensors = {}
    for path, update in updates.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = update.A.contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = update.B.contiguous()
    config = {
        **{"peft_type": "LORA", "task_type": None, "base_model_name_or_path": repo, "revision": revision},
        "inference_mode": True,
        **{"r": rank, "lora_alpha": _whole(alpha), "lora_dropout": 0.0, "bias": "none", "target_modules": sorted(updates)},
        # PEFT reads these keys as regular expressions
        "rank_pattern": {re.escape(path): update.rank for path, update in updates.items() if update.rank != rank},
        "alpha_pattern": {re.escape(path): _whole(own) for path, own in alphas.items() if own != alpha},
    }
    return tensors, config


def to_adapterhub(updates: Updates, *, name: str, depth: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Gives the content of AdapterHub's adapter.safetensors, and of adapter_config.json under `config`.

    Where ranks or scales differ, factors are filled up with zeros and scales multiplied into B.
    depth: of the encoder. A layer the like of which is adapted elsewhere gets a LoRA that changes nothing yet. Raises
    UserError where a layer is adapted that AdapterHub leaves alone.
    """
    roles = {_role(path) for path in updates}
    rank = max(update.rank for update in updates.values())
    scales = {update.scale for update in updates.values()}
    scale = scales.pop() if len(scales) == 1 else 1.0
    adapted = {int(LAYER.split(path)[2]) for path in updates}
    names = [role for role in "qkv" if role in roles or "qkv" in roles]
    config = {
        **{"architecture": "lora", "composition_mode": "add", "init_weights": "lora", "dropout": 0.0},
        **{"use_gating": False, "use_dora": False, "r": rank, "alpha": _whole(scale * rank)},
        **{"selfattn_lora": bool(names), "attn_matrices": names},
        **{role + "_lora": role in roles for role in ("intermediate", "output")},
        "leave_out": sorted(set(range(depth)) - adapted),
    }
    whole = dict(updates)
    for path in updates:
        for layer in adapted:
            like = LAYER.sub(rf"\g<1>{layer}", path, count=1)  # the same part in another layer
            if like not in whole:
                A = torch.empty_like(updates[path].A)
                draw_lora_A(A, seed=0, layer=like)
                whole[like] = LoRAUpdate(A, torch.zeros_like(updates[path].B))
    tensors = {}
    for path, update in whole.items():
        more = rank - update.rank
        A, B = F.pad(update.A, (0, 0, 0, more)), F.pad(update.B, (0, more))
        if update.scale != scale:
            B = B * (update.scale / scale)
        if _role(path) == "qkv":  # a LoRA each for q, k and v: A is that of all, and B is cut as the layer's rows are
            A = A.repeat(3, 1)
        tensors[f"{path}.loras.{name}.lora_A"], tensors[f"{path}.loras.{name}.lora_B"] = A.contiguous(), B.contiguous()
    return tensors, config


def _role(path: str) -> str:
    for role, pattern in ROLES.items():
        if pattern.search(path) and LAYER.search(path):
            return role
    raise UserError(
        f"AdapterHub's LoRA adapts q, k, v and the two feed-forward layers, and no layer such as {path}; type "
        f"export.format=peft or export.format=merged"
    )


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def settings(config: Mapping[str, Any], *, name: str, encoder: Any) -> dict[str, Any]:
    """Makes AdapterHub's adapter_config.json around the configuration of an adapter of this encoder (its own config)."""
    of = {"model_class": (encoder.architectures or ["AutoModel"])[0], "model_name": encoder.name_or_path}
    model = {"hidden_size": encoder.hidden_size, **of, "model_type": encoder.model_type}
    return {"config": dict(config), **model, "name": name, "version": "adapters.1.3.0"}
