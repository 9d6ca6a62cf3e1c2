"""Computes bottlenecks and AdapterFusion in the layers of BERT and its kin, their parameters named as AdapterHub's."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hatemtl.encoders.fast import ACTIVATIONS, Bottleneck, accelerate, restore
from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.methods.bottleneck.configuration import reads, width


class Adapter(nn.Module):
    """r = scale·(act(e·Dᵀ + d)·Uᵀ + b); drawn as AdapterHub draws it: N(0, .02²), or U zero and D as a linear layer's."""

    def __init__(self, config: Mapping[str, Any], layer: int, hidden: int) -> None:
        super().__init__()
        self.config, narrow = config, width(config, layer, hidden)
        self.activation, self.scale = config["non_linearity"].lower(), float(config["scaling"])
        down = nn.Linear(hidden, narrow)
        self.adapter_down, self.adapter_up = nn.Sequential(down), nn.Linear(narrow, hidden)
        for linear in (down, self.adapter_up):
            nn.init.zeros_(linear.bias)
            if config["init_weights"] != "mam_adapter":
                nn.init.normal_(linear.weight, std=0.02)
        if config["init_weights"] == "mam_adapter":
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.adapter_up.weight)

    def forward(self, e: Tensor) -> Tensor:
        up: Tensor = self.adapter_up(ACTIVATIONS[self.activation][0](self.adapter_down(e)))
        return up * self.scale


class Fusion(nn.Module):
    """Σᵢ softmaxᵢ(Q(e)·K(rᵢ))·V(rᵢ) over what adapters add (Pfeiffer et al. 2021, arXiv:2005.00247, §3)."""

    def __init__(self, hidden: int, *, query: bool, key: bool, value: bool, width: int | None, dropout: float) -> None:
        super().__init__()
        narrow = width or hidden
        self.settings = {"query": query, "key": key, "value": value, "dropout_prob": dropout}
        self.dropout = nn.Dropout(dropout)
        self.query = _drawn(nn.Linear(hidden, narrow)) if query else None
        # a bias of keys would shift the scores of all sources alike
        self.key = _drawn(nn.Linear(hidden, narrow, bias=width is None)) if key else None
        self.value = _drawn(nn.Linear(hidden, hidden, bias=False)) if value else None
        if self.value is not None:
            self.value.weight.data.fill_(1e-6).fill_diagonal_(1.0)

    def forward(self, e: Tensor, said: Tensor) -> Tensor:
        """Gives (..., D) of e (..., D) and of what n adapters say of it, (..., n, D)."""
        asked = e if self.query is None else self.query(e)
        keys = said if self.key is None else self.key(said)
        shares = self.dropout((asked.unsqueeze(-2) @ keys.mT).squeeze(-2)).softmax(dim=-1)
        values = said if self.value is None else self.value(said)
        return (shares.unsqueeze(-2) @ values).squeeze(-2)


def _drawn(linear: nn.Linear) -> nn.Linear:
    nn.init.normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


class AdaptedEnd:
    """Computes norm(u + x + r) in the place of the `forward` of what transformers calls an output, norm(u + x)."""

    def __init__(self, owner: Any, names: Sequence[str], fusion: str | None) -> None:
        self.owner, self.names, self.fusion = owner, names, fusion

    def __call__(self, hidden: Tensor, x: Tensor) -> Tensor:
        owner, adapters = self.owner, [self.owner.adapters[name] for name in self.names]
        u = owner.dropout(owner.dense(hidden))
        entering = reads(adapters[-1].config)
        e = x if entering == "input" else u if entering == "output" else owner.LayerNorm(u + x)
        said = [adapter(e) for adapter in adapters]
        fusion = None if self.fusion is None else owner.adapter_fusion_layer[self.fusion]
        added = said[0] if fusion is None else fusion(e, torch.stack(said, dim=-2))
        normed: Tensor = owner.LayerNorm(added + u + x)  # in AdapterHub's order, to the last bit
        return normed


def places(model: Transformer) -> Iterator[tuple[int, str, Any]]:
    """Gives each layer's output of attention, then of the feed-forward. Raises UserError where there are none."""
    body: Any = model
    try:
        found = [[layer.attention.output, layer.output] for layer in body.encoder.layer]
    except AttributeError:
        found = []
    parts = "dense", "dropout", "LayerNorm"
    if not found or not all(hasattr(output, part) for both in found for output in both for part in parts):
        raise UserError(
            f"hatemtl's own bottlenecks know no layers of {model.config.model_type}; type method=ah_seq_bn, AdapterHub's, "
            f"or method=peft_lora16"
        )
    for i, (of_attention, output) in enumerate(found):
        yield from ((i, "mh_adapter", of_attention), (i, "output_adapter", output))


def insert(model: Transformer, name: str, config: Mapping[str, Any]) -> None:
    """Puts an adapter of this configuration into its layers; it acts only after `activate`."""
    for layer, key, output in places(model):
        if config[key] and layer not in config["leave_out"]:
            if not hasattr(output, "adapters"):
                output.adapters = nn.ModuleDict()
            output.adapters[name] = Adapter(config, layer, output.LayerNorm.weight.shape[0])


def fuse(model: Transformer, name: str, sources: Sequence[str], **settings: Any) -> None:
    """Puts a fusion where these adapters are. Raises UserError where they are in different places, or of two forms."""
    for layer, _, output in places(model):
        here = [output.adapters[each] for each in sources if each in getattr(output, "adapters", ())]
        if 0 < len(here) < len(sources) or len({reads(adapter.config) for adapter in here}) > 1:
            raise UserError(
                f"{', '.join(sources)} change layer {layer} of {model.config.model_type} in different places; name sources "
                f"of one method, trained with the same method.leave_out"
            )
        if here:
            output.adapter_fusion_layer = nn.ModuleDict({name: Fusion(output.LayerNorm.weight.shape[0], **settings)})


def activate(model: Transformer, names: Sequence[str], fusion: str | None, trained: str) -> Transformer:
    """Lets these adapters act, one or several under a fusion, and freezes all but the one called `trained`."""
    restore(model)
    model.requires_grad_(False).train()
    for _, _, output in places(model):
        if names[-1] not in getattr(output, "adapters", ()):
            continue
        output.forward = AdaptedEnd(output, names, fusion)
        own = output.adapters if fusion is None else output.adapter_fusion_layer
        own[trained].requires_grad_(True)
    if fusion is None:
        accelerate(model, bottlenecks=[_bottleneck(end.owner, end.owner.adapters[trained]) for end in ends(model)])
    return model


def _bottleneck(owner: Any, adapter: Adapter) -> Bottleneck:
    down: Any = adapter.adapter_down[0]
    return Bottleneck(owner, down, adapter.adapter_up, adapter.activation, adapter.scale, reads(adapter.config))


def ends(model: nn.Module) -> list[AdaptedEnd]:
    """Lists where adapters act."""
    return [module.forward for module in model.modules() if isinstance(module.forward, AdaptedEnd)]
