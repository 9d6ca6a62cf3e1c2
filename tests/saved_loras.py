"""Saved LoRAs in the files of AdapterHub and PEFT, written without either."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Factors = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]  # A (r, in) and B (out, r) by layer
QUERY, VALUE = (f"encoder.layer.0.attention.self.{name}" for name in ("query", "value"))


def draw(rank: int, out: int = 12, into: int = 8, *, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """A random A and B."""
    random = np.random.default_rng(seed)
    return random.standard_normal((rank, into)).astype("f4"), random.standard_normal((out, rank)).astype("f4")


def adapter_hub(folder: Path, layers: Factors, *, alpha: float, encoder: str | None = "mark", **config: Any) -> Path:
    """A run of ah_lora16, of the rank of its first layer unless `r` says otherwise; `config` changes its adapter's."""
    rank = next(iter(layers.values()))[1].shape[1]
    plain = {"architecture": "lora", "r": rank, "alpha": alpha, "attn_matrices": ["q", "k", "v"], "composition_mode": "add"}
    rest = {"use_gating": False, "use_dora": False, "vera_d": None, "vera_b": None, "leave_out": [], "dropout": 0.0}
    name = folder.name.replace(".", "_")
    tensors = {
        f"{layer}.loras.{name}.lora_{side}": x for layer, both in layers.items() for side, x in zip("AB", both, strict=True)
    }
    content = {"config": {**plain, **rest, **config}, "hidden_size": 8, "name": name, "version": "adapters.1.3.0"}
    return _write(folder, "adapterhub", encoder, content, "adapter.safetensors", tensors)


def peft(folder: Path, layers: Factors, *, alpha: float, encoder: str | None = "mark", **config: Any) -> Path:
    """A run of peft_lora16, of the rank of its first layer unless `r` says otherwise; `config` changes its adapter's."""
    rank = next(iter(layers.values()))[1].shape[1]
    plain = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "rank_pattern": {}, "alpha_pattern": {}, "bias": "none"}
    rest = {"use_rslora": False, "use_dora": False, "use_qalora": False, "fan_in_fan_out": False, "modules_to_save": None}
    prefix = "base_model.model."
    tensors = {
        f"{prefix}{layer}.lora_{side}.weight": x
        for layer, both in layers.items()
        for side, x in zip("AB", both, strict=True)
    }
    return _write(folder, "peft", encoder, {**plain, **rest, **config}, "adapter_model.safetensors", tensors)


def _write(
    folder: Path, library: str, encoder: str | None, config: Mapping[str, Any], name: str, tensors: Mapping[str, Any]
) -> Path:
    (folder / "adapter").mkdir(parents=True)
    method = {"adapterhub": "ah_lora16", "peft": "peft_lora16"}[library]
    mark = {} if encoder is None else {"encoder": encoder, "encoder_source": f"someone/{encoder}"}
    (folder / "run.json").write_text(json.dumps({"status": "finished", "method": method, "library": library, **mark}))
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    save_file({key: np.ascontiguousarray(x) for key, x in tensors.items()}, folder / "adapter" / name)
    return folder
