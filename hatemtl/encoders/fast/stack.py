"""Finds encoders whose layers are computed here, and takes the place of what computes them in the library."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from hatemtl.encoders.attention import KINDS
from hatemtl.encoders.fast.adapted import ScaledLinear
from hatemtl.encoders.fast.layers import Bottleneck, bert_layer, modernbert_layer
from hatemtl.encoders.fast.linear import Linear, prepare
from hatemtl.encoders.fast.posts import Posts
from hatemtl.encoders.fast.tape import Chain, Step, compute
from hatemtl.encoders.partway import Watch, states

ATTENTION = ("eager", "sdpa")  # the library's kinds of it whose modules hold what our layers read


class Stack:
    """Takes the place of the `forward` of an encoder's layers, or of the whole model where these stand in no module.

    Compiled code and whoever asks for more than the last hidden states go the library's own way, and so does every layer
    that somebody watches or has replaced, but for a `Watch`, which is told what it wants.
    before: an own `forward` that the owner had. enter: makes of what `forward` is given hidden states and a mask, as
    `Posts.of` takes them, or None where the library shall compute.
    """

    before: Any = None

    def __init__(
        self,
        owner: Any,
        layers: Any,
        make: Callable[[Any], Chain],
        enter: Callable[..., Any],
        bottlenecks: Mapping[int, Bottleneck],
    ) -> None:
        self.owner, self.own, self.enter = owner, owner.forward, enter
        self.layers = [(layer, make(layer), hooks_on(layer)) for layer in layers]
        self.dropouts = [m for layer in layers for m in layer.modules() if isinstance(m, nn.Dropout)]
        self.bottlenecks = [bottlenecks[id(module)] for module in owner.modules() if id(module) in bottlenecks]

    @property
    def leaves(self) -> list[Step]:
        return [leaf for _, ours, _ in self.layers for leaf in ours.leaves]

    def merge(self, dtype: torch.dtype, *, int8: bool) -> None:
        for leaf in self.leaves:
            leaf.merge(dtype, int8=int8)

    def unmerge(self) -> None:
        for leaf in self.leaves:
            leaf.merged = None

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Computes the last hidden states (B, T, D), zero at padding, as transformers gives them."""
        theirs = ["forward" in layer.__dict__ or hooks_on(layer) != hooks for layer, _, hooks in self.layers]
        entering = None if torch.compiler.is_compiling() else self.enter(self, any(theirs), *given, **named)
        if entering is None:
            return self.own(*given, **named)
        hidden, mask = entering
        ours: list[Chain] = []  # that are yet to be computed
        for (layer, own, _), other in zip(self.layers, theirs, strict=True):
            watches = [] if other else _watches(layer)  # which the library tells itself
            if ours and (other or watches):
                hidden, ours = through(ours, hidden, mask), []
            for watch in watches:
                watch(layer, (hidden,), {})
            if other:
                hidden = states(layer(hidden, mask))
            else:
                ours.append(own)
        hidden = through(ours, hidden, mask) if ours else hidden
        if hasattr(self.owner, "final_norm"):
            hidden = self.owner.final_norm(hidden)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)


def hooks_on(layer: nn.Module) -> int:
    """Counts who watches a layer, but for a `Watch`."""
    if not layer._forward_hooks and not layer._forward_pre_hooks:
        return 0
    hooks = [*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()]  # AdapterHub sets some of its own
    # with which transformers 5 collects hidden states, once it was asked to for good
    own = [hook for hook in hooks if getattr(hook, "__module__", None) == "transformers.utils.output_capturing"]
    return len(hooks) - len(own) - len(_watches(layer))


def _watches(layer: nn.Module) -> list[Watch]:
    return [hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, Watch)]


def through(layers: list[Chain], hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Computes these layers of hidden states (B, T, D); mask: as of `Posts.of`."""
    leaves, kind = [leaf for layer in layers for leaf in layer.leaves], hidden.device.type
    dtype = next(leaf for leaf in leaves if isinstance(leaf, Linear)).layers[0].weight.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    prepare(leaves, dtype)
    hidden = hidden.to(dtype)
    return compute(layers, hidden, Posts.of(hidden, mask))


def _enter_encoder(stack: Stack, theirs: bool, hidden: Tensor, attention_mask: Tensor | None = None, **more: Any) -> Any:
    """Takes the embedded posts that transformers gives to BERT's layers."""
    asked = more.get("output_attentions") or more.get("output_hidden_states") or not more.get("return_dict", True)
    return None if asked else (hidden, attention_mask)


def _enter_model(
    stack: Stack, theirs: bool, input_ids: Any = None, attention_mask: Tensor | None = None, *more: Any, **named: Any
) -> Any:
    """Embeds the token ids, or takes the embeddings, that a whole model is given; dropout is the library's, as are hooks."""
    asked = named.keys() - {"inputs_embeds", "token_type_ids", "return_dict"}
    plain = not more and named.get("return_dict", True) and all(named[key] is None or named[key] is False for key in asked)
    drops = any(m.training and m.p > 0 for m in stack.dropouts)
    if not plain or theirs or drops or attention_mask is None or attention_mask.ndim != 2:
        return None
    given = {key: named[key] for key in ("inputs_embeds", "token_type_ids") if named.get(key) is not None}
    mask = torch.zeros_like(attention_mask, dtype=torch.float32)
    mask = mask.masked_fill_(attention_mask == 0, torch.finfo(mask.dtype).min)[:, None, None]
    return stack.owner.embeddings(input_ids=input_ids, **given), mask


def stacks(model: nn.Module, bottlenecks: Mapping[int, Bottleneck]) -> Iterator[Stack]:
    """Gives what takes the place of the model's encoders, where their layers are as BERT's, ModernBERT's or DeBERTa-v3's.

    bottlenecks: by the ids of their owners.
    """
    config: Any = model.config
    if not _alike(model):
        return
    every: list[Any] = [*model.modules()]
    for module in every:
        kind, layers = type(module).__name__, getattr(module, "layer", None)
        if kind == "ModernBertModel" and _as_modernbert(module.config):
            yield Stack(module, module.layers, partial(modernbert_layer, model=module), _enter_model, bottlenecks)
        elif kind == "DebertaV2Model" and _as_deberta(module):
            make = partial(bert_layer, bottlenecks=bottlenecks, deberta=module.encoder)
            yield Stack(module, module.encoder.layer, make, _enter_model, bottlenecks)
        elif (
            isinstance(layers, nn.ModuleList) and _as_bert(config) and {type(layer).__name__ for layer in layers} <= {*KINDS}
        ):
            yield Stack(module, layers, partial(bert_layer, bottlenecks=bottlenecks), _enter_encoder, bottlenecks)


def _alike(model: nn.Module) -> bool:
    """Tells whether q, k and v read the same rows: no factor multiplies what enters one of them."""
    own = [(path, module.forward) for path, module in model.named_modules() if isinstance(module.forward, ScaledLinear)]
    ends = ("query", "key", "value", "query_proj", "key_proj", "value_proj")
    return not any(ours.enters and path.endswith(ends) for path, ours in own)


def _as_bert(config: Any) -> bool:
    absolute = getattr(config, "position_embedding_type", "absolute") == "absolute"  # transformers 5 knows no other
    plain = absolute and getattr(config, "hidden_act", "") == "gelu" and not getattr(config, "is_decoder", False)
    return plain and config._attn_implementation in ATTENTION


def _as_modernbert(config: Any) -> bool:
    plain = config._attn_implementation in ATTENTION and config.hidden_activation == "gelu"
    # by kind of layer in transformers 5, where `rope_scaling` is another name of it
    ropes = getattr(config, "rope_parameters", None) or {"": getattr(config, "rope_scaling", None)}
    plain = plain and not getattr(config, "reference_compile", False)
    return plain and all(rope is None or rope.get("rope_type") == "default" for rope in ropes.values())


def _as_deberta(model: Any) -> bool:
    config, encoder = model.config, model.encoder
    plain = config.relative_attention and {*config.pos_att_type} == {"c2p", "p2c"} and encoder.conv is None
    plain = plain and config.hidden_act == "gelu" and getattr(config, "share_att_key", False)
    distances = [encoder.rel_embeddings, getattr(encoder, "LayerNorm", nn.Identity())]
    # our layers compute no gradient of these
    return plain and not any(parameter.requires_grad for module in distances for parameter in module.parameters())
