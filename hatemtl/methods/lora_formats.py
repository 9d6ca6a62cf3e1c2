"""Converts one LoRA between two libraries: updates in, tensors and configuration of AdapterHub or PEFT out.

Nothing is rounded: where a library can hold the factors as they are, they stay so to the last bit; where it wants one rank
and one scale for all layers, factors are filled up with zeros and scales multiplied into B. `lora_source.read` reads both.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.merging.lora import LoRAUpdate, Updates
from hatemtl.methods.base import draw_lora_A

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


def to_peft(updates: Updates, *, base: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Gives the content of PEFT's adapter_model.safetensors and adapter_config.json. base: the encoder, by hub or folder."""
    alphas = {path: update.scale * update.rank for path, update in updates.items()}
    rank = Counter(update.rank for update in updates.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    tensors = {}
    for path, update in updates.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = update.A.contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = update.B.contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _whole(alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(updates),
        # PEFT reads these keys as regular expressions
        "rank_pattern": {re.escape(path): update.rank for path, update in updates.items() if update.rank != rank},
        "alpha_pattern": {re.escape(path): _whole(own) for path, own in alphas.items() if own != alpha},
    }
    return tensors, config


def to_adapterhub(updates: Updates, *, name: str, depth: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Gives the content of AdapterHub's adapter.safetensors, and of adapter_config.json under `config`.

    depth: how many layers the encoder has. A layer that AdapterHub must adapt because it adapts the like of it elsewhere
    gets a LoRA that changes nothing yet. Raises UserError where a layer is adapted that AdapterHub leaves alone.
    """
    roles = {path: _role(path) for path in updates}
    rank = max(update.rank for update in updates.values())
    scales = {update.scale for update in updates.values()}
    scale = scales.pop() if len(scales) == 1 else 1.0
    adapted = {int(LAYER.split(path)[2]) for path in updates}
    names = [role for role in "qkv" if role in roles.values() or "qkv" in roles.values()]
    config = {
        **{"architecture": "lora", "composition_mode": "add", "init_weights": "lora", "dropout": 0.0},
        **{"use_gating": False, "use_dora": False},
        **{"r": rank, "alpha": _whole(scale * rank)},
        **{"selfattn_lora": bool(names), "attn_matrices": names},
        **{role + "_lora": role in roles.values() for role in ("intermediate", "output")},
        "leave_out": sorted(set(range(depth)) - adapted),
    }
    whole = dict(updates)
    for path, role in roles.items():
        for layer in adapted:
            like = LAYER.sub(rf"\g<1>{layer}", path, count=1)  # the same part in another layer
            if like not in whole:
                A = torch.empty_like(updates[path].A)
                draw_lora_A(A, seed=0, layer=like)
                whole[like], roles = LoRAUpdate(A, torch.zeros_like(updates[path].B)), {**roles, like: role}
    tensors = {}
    for path, update in whole.items():
        A, B = _filled(update, rank, scale)
        if roles[path] == "qkv":  # a LoRA each for q, k and v: A is that of all, and B is cut as the layer's rows are
            A = A.repeat(3, 1)
        tensors[f"{path}.loras.{name}.lora_A"], tensors[f"{path}.loras.{name}.lora_B"] = A.contiguous(), B.contiguous()
    return tensors, config


def _filled(update: LoRAUpdate, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) of the same update under another scale."""
    more = rank - update.rank
    A = torch.cat([update.A, update.A.new_zeros(more, update.A.shape[1])]) if more else update.A
    B = torch.cat([update.B, update.B.new_zeros(update.B.shape[0], more)], dim=1) if more else update.B
    return A, B if update.scale == scale else B * (update.scale / scale)


def _role(path: str) -> str:
    found = [role for role, pattern in ROLES.items() if pattern.search(path)]
    if not found or not LAYER.search(path):
        raise UserError(
            f"AdapterHub's LoRA adapts q, k, v and the two feed-forward layers, and no layer such as {path}; type "
            f"export.format=peft or export.format=merged"
        )
    return found[0]


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def settings(config: Mapping[str, Any], *, name: str, encoder: Any) -> dict[str, Any]:
    """Makes AdapterHub's adapter_config.json around the configuration of an adapter of this encoder (its own config)."""
    return {
        "config": dict(config),
        "hidden_size": encoder.hidden_size,
        "model_class": (encoder.architectures or ["AutoModel"])[0],
        "model_name": encoder.name_or_path,
        "model_type": encoder.model_type,
        "name": name,
        "version": "adapters.1.3.0",
    }
