"""Gives the attention that a post's first token pays to its tokens, of one layer: what else the layer makes is left out."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hatemtl.encoders.partway import EnoughError, Watch, run_until
from hatemtl.errors import UserError

# transformers' layers of BERT's form, whose weights of attention are softmax(q·kᵀ/√d) of what enters the layer.
KINDS = ("BertLayer", "ElectraLayer", "RobertaLayer", "XLMRobertaLayer")


def of_first_token(model: nn.Module, inputs: Mapping[str, Tensor], *, layer: int, head: int | None) -> Tensor:
    """Gives the weights (S, T) float32 of a layer's head, or the mean of all, as `by_head` gives them.

    Raises UserError where there is no such head, and as `by_head` does.
    """
    config: Any = model.config
    heads = config.num_attention_heads
    if head is not None and not 0 <= head < heads:
        raise UserError(
            f"head={head}: expected 0 to {heads - 1}, or null for the mean of all: this encoder has {heads} a layer"
        )
    weights = by_head(model, inputs, layer=layer)
    return weights.mean(dim=1) if head is None else weights[:, head]


def by_head(model: nn.Module, inputs: Mapping[str, Tensor], *, layer: int, entered: Tensor | None = None) -> Tensor:
    """Gives the weights (S, H, T) float32 that the first of T tokens lays on each, of a layer's H heads.

    layer: counted from 0, or from the last as -1. inputs: what the model takes, `attention_mask` (S, T) among it.
    entered: what entered the layer, (S, T, D), where a pass was `watching`; then none is made.
    Layers of BERT's form give softmax(q·kᵀ/√d) of their input, for that token alone (Vaswani et al. 2017, eq. 1), and no
    layer from there on is computed. Others are asked for `output_attentions`. Gradients are recorded where they are wanted.
    Raises UserError where there is no such layer, or the weights are not to be had.
    """
    config: Any = model.config
    layers = config.num_hidden_layers
    if not -layers <= layer < layers:
        raise UserError(f"layer={layer}: expected 0 to {layers - 1}, or -1 for the last: this encoder has {layers} layers")
    # by its name, since AdapterHub's Parallel is of another room; a pass would end within the first adapter's
    if type(getattr(model, "active_adapters", None)).__name__ == "Parallel":
        raise UserError(
            "several adapters read each post by themselves (method=ah_parallel), so there is no one attention; type "
            "another method, or evaluations.NAME.explainers=[gradient_input]"
        )
    found = _layers(model)
    if found is None:
        return _asked(model, inputs, layer)
    if entered is None:
        entered = _entering(model, inputs, found[layer])
    return _formula(found[layer].attention.self, entered, inputs["attention_mask"])


@contextmanager
def watching(model: nn.Module, layers: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """Gives what enters these layers, (S, T, D), in the last pass inside; nothing where layers are not of BERT's form."""
    entered: dict[int, Tensor] = {}
    found = _layers(model) if layers else None
    hooks = [] if found is None else [(found[layer], Watch(partial(entered.__setitem__, layer))) for layer in layers]
    handles = [layer.register_forward_pre_hook(watch, with_kwargs=True) for layer, watch in hooks]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: nn.Module) -> list[Any] | None:
    """Finds the layers where all are of BERT's form, with positions in the embeddings alone and no key but the tokens'."""
    config: Any = model.config
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        return None
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            layers: list[Any] = [*module]
            known = all(type(layer).__name__ in KINDS for layer in layers)
            more = [getattr(layer.attention.self, "prefix_tuning", None) for layer in layers if known]
            if known and not any(getattr(prefix, "prefixes", None) for prefix in more):
                return layers
    return None


def _entering(model: nn.Module, inputs: Mapping[str, Tensor], layer: nn.Module) -> Tensor:
    """(S, T, D) what enters the layer, at which the pass ends; a hook on it keeps our own layers off it."""
    found: list[Tensor] = []

    def stop(*given: Any) -> None:
        Watch(found.append)(*given)
        raise EnoughError

    run_until(model, inputs, layer.register_forward_pre_hook(stop, with_kwargs=True))
    return found[0]


def _formula(attention: Any, entered: Tensor, mask: Tensor) -> Tensor:
    """(S, H, T) of a layer's own queries and keys."""
    q, k = attention.query(entered[:, :1]), attention.key(entered)
    q, k = (some.float().unflatten(-1, (attention.num_attention_heads, -1)) for some in (q, k))
    with torch.autocast(entered.device.type, enabled=False):
        scores = torch.einsum("shd,sthd->sht", q[:, 0], k) * q.shape[-1] ** -0.5
        return scores.masked_fill(mask[:, None] == 0, -torch.inf).softmax(dim=-1)


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
