"""Finds the bottlenecks of AdapterHub's library that hatemtl's own layers compute."""

from typing import Any

from adapters.configuration import BnConfig
from adapters.methods.bottleneck import BottleneckLayer

from hatemtl.encoders.fast import ACTIVATIONS, Bottleneck


def plain_bottlenecks(model: Any, name: str) -> list[Bottleneck]:
    """Gives those of adapter `name` that are no more than two linear layers, a function between them, and a scale."""
    found = []
    for layer in model.modules():
        if not isinstance(layer, BottleneckLayer) or name not in layer.adapters or layer.is_layer_hooked:
            continue
        config, adapter = (
            model.adapters_config.match(name, BnConfig, layer.layer_idx, layer.location_key),
            layer.adapters[name],
        )
        more = config.ln_before or config.ln_after or config.use_gating or config.phm_layer or config.dropout
        around = config.original_ln_after and (config.is_parallel or config.residual_before_ln is True)
        activation = config.non_linearity.lower()
        if not more and around and isinstance(adapter.scaling, float) and activation in ACTIVATIONS:
            reads: Any = "input" if config.is_parallel else "normed" if config.original_ln_before else "output"
            down, up = adapter.adapter_down[0], adapter.adapter_up
            found.append(Bottleneck(layer, down, up, activation, adapter.scaling, reads))
    return found
