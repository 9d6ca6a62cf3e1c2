"""Writes a run's adapter with one task's head, as PEFT's classes and AdapterHub's flexible heads load them together."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from hatemtl.encoders.for_others import head_modules
from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.machine.hub import parted
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.methods import lora_formats
from hatemtl.methods.base import module_name
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.using.publish.said_head import SaidHead

TASK_TYPES = {"sequence": "SEQ_CLS", "tokens": "TOKEN_CLS"}
HEAD_TYPES = {"softmax": "classification", "none": "classification", "sigmoid": "multilabel_classification"}


def updates(run: SavedRun, body: Transformer) -> tuple[dict[str, LoRAUpdate] | None, str]:
    """The run's LoRA, or None and the reason where it has none that both libraries know."""
    if run.record["library"] not in lora_formats.FILES:
        return None, f"{run.record['method']} trained no adapter"
    try:
        return lora_formats.read(run, body), ""
    except UserError as error:
        return None, str(error)


def write_peft(folder: Path, found: Mapping[str, LoRAUpdate], said: SaidHead | None, base: str) -> None:
    """Writes the LoRA, and the head's modules as those that PEFT saves beside it. base: what others load the encoder by."""
    tensors, config = lora_formats.to_peft(found, base=base)
    if said is not None:
        before, body = "base_model.model.", f"{said.model.base_model_prefix}."
        tensors = {f"{before}{body}{key.removeprefix(before)}": tensor for key, tensor in tensors.items()}
        modules = head_modules(said.model, tokens=said.form == "tokens")
        for module in modules:
            own = said.model.get_submodule(module).state_dict()
            tensors |= {f"{before}{module}.{key}": tensor.contiguous() for key, tensor in own.items()}
        config["modules_to_save"] = [module.removeprefix(body) for module in modules]
        config["task_type"] = TASK_TYPES[said.form]
    _write(folder, "adapter_model.safetensors", tensors, "adapter_config.json", config)


def write_adapterhub(
    folder: Path, run: SavedRun, found: Mapping[str, LoRAUpdate] | None, said: SaidHead | None, body: Transformer, base: str
) -> None:
    """Writes the LoRA, or whatever AdapterHub itself saved, and the head as a flexible one of the same name.

    Raises UserError where a layer is adapted that AdapterHub leaves alone.
    """
    repo, _ = parted(base)
    body.config.name_or_path = repo
    name = module_name(run.folder.resolve().name)
    if run.record["library"] == "adapterhub":
        shutil.copytree(run.folder / "adapter", folder)
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        name = config["name"]
        path.write_text(json.dumps({**config, "model_name": repo}, indent=2) + "\n", encoding="utf-8")
    else:
        assert found is not None
        tensors, inner = lora_formats.to_adapterhub(found, name=name, depth=body.config.num_hidden_layers)
        config = lora_formats.settings(inner, name=name, encoder=body.config)
        _write(folder, "adapter.safetensors", tensors, "adapter_config.json", config)
    if said is not None:
        head, config = _flexible(said, name)
        whole = lora_formats.settings(config, name=name, encoder=body.config)
        whole["model_class"] = f"{type(body).__name__.removesuffix('Model')}AdapterModel"
        _write(folder, "model_head.safetensors", head, "head_config.json", whole)


def _flexible(said: SaidHead, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A head's layers as AdapterHub numbers them, and its configuration: a dropout before each, an activation between."""
    tensors = {
        f"heads.{name}.{3 * i + 1}.{key}": weight.detach().contiguous()
        for i, layer in enumerate(said.layers)
        for key, weight in layer.state_dict().items()
    }
    config: dict[str, Any] = {
        **{"head_type": "tagging", "num_labels": len(said.names), "layers": len(said.layers)},
        **{"activation_function": "gelu", "label2id": {label: i for i, label in enumerate(said.names)}},
        "dropout_prob": None,
    }
    if said.form == "sequence":
        config |= {"head_type": HEAD_TYPES[said.activation], "use_pooler": False, "bias": True}
    return tensors, config


def _write(folder: Path, weights: str, tensors: dict[str, Tensor], name: str, config: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / weights, metadata={"format": "pt"})
    (folder / name).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
