"""Gives the attention that a post's first token pays to its tokens, of one layer: what else the layer makes is left out."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hatemtl.encoders.partway import EnoughError, run_until
from hatemtl.errors import UserError


def of_first_token(model: nn.Module, inputs: Mapping[str, Tensor], *, layer: int, head: int | None) -> Tensor:
    """Gives the weights (S, T) float32 that the first of T tokens lays on each, of a layer's head or as the mean of all.

    layer: counted from 0, or from the last as -1. inputs: what the model takes, `attention_mask` (S, T) among it.
    Layers of BERT's form give softmax(q·kᵀ/√d) of their input, for that token alone (Vaswani et al. 2017, eq. 1), and no
    layer from there on is computed. Others are asked for `output_attentions`.
    Raises UserError where there is no such layer or head, or the weights are not to be had.
    """
    config: Any = model.config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    if not -layers <= layer < layers:
        raise UserError(f"layer={layer}: expected 0 to {layers - 1}, or -1 for the last: this encoder has {layers} layers")
    if head is not None and not 0 <= head < heads:
        raise UserError(
            f"head={head}: expected 0 to {heads - 1}, or null for the mean of all: this encoder has {heads} a layer"
        )
    # by its name, since AdapterHub's Parallel is of another room; a pass would end within the first adapter's
    if type(getattr(model, "active_adapters", None)).__name__ == "Parallel":
        raise UserError(
            "several adapters read each post by themselves (method=ah_parallel), so there is no one attention; type "
            "evaluations.NAME.explainers=[gradient_input]"
        )
    found = _layers(model)
    weights = _asked(model, inputs, layer) if found is None else _computed(model, inputs, found[layer])
    return weights.mean(dim=1) if head is None else weights[:, head]


def _layers(model: nn.Module) -> list[Any] | None:
    """Finds the layers where all are of BERT's form, with positions in the embeddings alone and no key but the tokens'."""
    config: Any = model.config
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        return None
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            inside: list[Any] = [getattr(getattr(layer, "attention", None), "self", None) for layer in module]
            plain = all(hasattr(attention, "query") and hasattr(attention, "key") for attention in inside)
            if plain and not any(getattr(getattr(x, "prefix_tuning", None), "prefixes", None) for x in inside):
                return [*module]
    return None


def _computed(model: nn.Module, inputs: Mapping[str, Tensor], layer: Any) -> Tensor:
    """(S, H, T) by the formula, of the hidden states that enter the layer; a hook on it keeps our own layers off it."""
    found: list[Tensor] = []

    def stop(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        hidden = arguments[0] if arguments else keywords["hidden_states"]
        attention = layer.attention.self
        q, k = attention.query(hidden[:, :1]), attention.key(hidden)
        q, k = (some.float().unflatten(-1, (attention.num_attention_heads, -1)) for some in (q, k))
        with torch.autocast(hidden.device.type, enabled=False):
            scores = torch.einsum("shd,sthd->sht", q[:, 0], k) * q.shape[-1] ** -0.5
            found.append(scores.masked_fill(inputs["attention_mask"][:, None] == 0, -torch.inf).softmax(dim=-1))
        raise EnoughError

    run_until(model, inputs, layer.register_forward_pre_hook(stop, with_kwargs=True))
    return found[0]


def _asked(model: nn.Module, inputs: Mapping[str, Tensor], layer: int) -> Tensor:
    """(S, H, T) as the library tells; of keys that are no tokens, as those of prefix tuning, nothing is said."""
    config: Any = model.config
    if config._attn_implementation != "eager":
        raise UserError(
            f"{config.model_type} gives no attention weights with encoder.attention={config._attn_implementation}; type "
            f"encoder.attention=eager"
        )
    given = model(**inputs, output_attentions=True).attentions[layer]
    return given[:, :, 0, -inputs["attention_mask"].shape[1] :].float()
