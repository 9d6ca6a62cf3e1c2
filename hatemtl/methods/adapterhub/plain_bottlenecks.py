"""Finds the bottlenecks of AdapterHub's library that hatemtl's own layers compute."""

from typing import Any

from adapters.configuration import BnConfig
from adapters.methods.bottleneck import BottleneckLayer

from hatemtl.encoders.fast import Bottleneck
from hatemtl.methods.bottleneck.configuration import odd, reads


def plain_bottlenecks(model: Any, name: str) -> list[Bottleneck]:
    """Gives those of adapter `name` that are no more than two linear layers, a function between them, and a scale."""
    found = []
    for layer in model.modules():
        if not isinstance(layer, BottleneckLayer) or name not in layer.adapters or layer.is_layer_hooked:
            continue
        config = model.adapters_config.match(name, BnConfig, layer.layer_idx, layer.location_key).to_dict()
        if not odd(config):
            adapter, activation = layer.adapters[name], config["non_linearity"].lower()
            down, up = adapter.adapter_down[0], adapter.adapter_up
            found.append(Bottleneck(layer, down, up, activation, config["scaling"], reads(config)))
    return found
