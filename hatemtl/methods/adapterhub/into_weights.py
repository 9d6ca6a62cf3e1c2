"""Writes an adapter of AdapterHub's library into the weights under it, where it is a change of weights and nothing more."""

from typing import Any

import torch
from adapters.methods.lora import LoRAMergedLinear, Vera

from hatemtl.encoders.fast import restore
from hatemtl.errors import UserError
from hatemtl.methods.adapterhub.configuration_strings import FOLDABLE, kinds
from hatemtl.methods.adapterhub.library import factors, loras
from hatemtl.methods.adapterhub.library_fixes import dora_scale


@torch.no_grad()
def fold(model: Any, name: str) -> Any:
    """Writes adapter `name` into the weights under it, in float32, and takes it away: the model computes the same.

    Raises UserError where the adapter is more than a change of weights; the library would silently do nothing.
    """
    config = model.adapters_config.get(name)
    if more := sorted(kinds(config) - FOLDABLE):
        raise UserError(
            f"the adapter {name} on the encoder {model.config.model_type} is no mere change of its weights "
            f"({', '.join(more)}), so it cannot be merged into them; keep it beside the encoder, method=ah_load"
        )
    restore(model)
    for path, layer, lora in list(loras(model, name)):
        weight, bias = layer.weight.float(), layer.bias
        if isinstance(layer, LoRAMergedLinear) and kinds(config) != {"lora"}:
            raise UserError(
                f"{path}: only a LoRA can be merged into a matrix of queries, keys and values; type method=ah_lora16"
            )
        if lora.composition_mode == "scale":
            scale = lora.lora_B.flatten() * lora.scaling
            weight, bias = weight * scale[:, None], None if bias is None else bias * scale
        elif lora.use_dora:
            change, scale = dora_scale(layer, lora)
            weight = (weight + change) * scale[:, None]
            del layer.forward  # DoRALinear
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
