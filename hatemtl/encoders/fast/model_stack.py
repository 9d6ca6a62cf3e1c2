"""Computes a whole encoder whose layers stand in no module of their own, or say more than is read: ModernBERT, DeBERTa."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from hatemtl.encoders.fast.bert_layer import BertLayer, Layer
from hatemtl.encoders.fast.bert_stack import hooks_on, through
from hatemtl.encoders.fast.deberta_layer import Disentangled
from hatemtl.encoders.fast.modernbert_layer import ModernBertLayer
from hatemtl.encoders.fast.sublayer_end import Bottleneck


class ModelStack:
    """Takes the place of `forward` in a whole model: embeds tokens, computes the layers, and the norm after them if any.

    Dropout, compiled code, layers that somebody watches or has replaced, and whoever asks for more than the last hidden
    states go the library's own way.
    """

    before: Any = None  # an own `forward` that the model had

    def __init__(self, model: Any, layers: Any, make: Callable[[Any], Layer]) -> None:
        self.owner, self.own = model, model.forward
        self.layers = [(layer, make(layer), hooks_on(layer)) for layer in layers]
        self.dropouts = [m for layer in layers for m in layer.modules() if isinstance(m, nn.Dropout)]

    def __call__(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *more: Any, **named: Any
    ) -> Any:
        """Computes the last hidden states (B, T, D) of posts, token ids or embeddings; as transformers gives them."""
        asked = named.keys() - {"inputs_embeds", "token_type_ids", "return_dict"}
        plain = (
            not more and named.get("return_dict", True) and all(named[key] is None or named[key] is False for key in asked)
        )
        plain = plain and not any(m.training and m.p > 0 for m in self.dropouts)
        plain = plain and not any("forward" in layer.__dict__ or hooks_on(layer) != known for layer, _, known in self.layers)
        if not plain or attention_mask is None or attention_mask.ndim != 2 or torch.compiler.is_compiling():
            return self.own(input_ids, attention_mask, *more, **named)
        given = {key: named[key] for key in ("inputs_embeds", "token_type_ids") if named.get(key) is not None}
        hidden: Any = self.owner.embeddings(input_ids=input_ids, **given)
        mask = torch.zeros_like(attention_mask, dtype=torch.float32)
        mask = mask.masked_fill_(attention_mask == 0, torch.finfo(mask.dtype).min)[:, None, None]
        hidden = through([ours for _, ours, _ in self.layers], hidden, mask)
        norm = getattr(self.owner, "final_norm", None)
        return BaseModelOutput(last_hidden_state=hidden if norm is None else norm(hidden))


def stacks(model: nn.Module, bottlenecks: Mapping[int, Bottleneck]) -> Iterator[ModelStack]:
    """Gives what takes the place of the model's encoders, where their layers are as ModernBERT's or DeBERTa-v3's."""
    for module in [*model.modules()]:
        config: Any = getattr(module, "config", None)
        if type(module).__name__ == "ModernBertModel":
            known = config._attn_implementation == "eager" and config.hidden_activation == "gelu"
            known = known and not getattr(config, "reference_compile", False)
            # by kind of layer in transformers 5, where `rope_scaling` is another name of it
            ropes = getattr(config, "rope_parameters", None) or {"": getattr(config, "rope_scaling", None)}
            if known and all(rope is None or rope.get("rope_type") == "default" for rope in ropes.values()):
                yield ModelStack(module, module.layers, partial(ModernBertLayer, model=module))
        elif type(module).__name__ == "DebertaV2Model":
            encoder: Any = module.encoder
            known = config.relative_attention and {*config.pos_att_type} == {"c2p", "p2c"} and encoder.conv is None
            known = known and config.hidden_act == "gelu" and getattr(config, "share_att_key", False)
            distances = [encoder.rel_embeddings, getattr(encoder, "LayerNorm", nn.Identity())]
            learn = any(parameter.requires_grad for module in distances for parameter in module.parameters())
            if known and not learn:  # our layers compute no gradient of these
                yield ModelStack(module, encoder.layer, partial(_disentangled, encoder=encoder, bottlenecks=bottlenecks))


def _disentangled(layer: Any, encoder: Any, bottlenecks: Mapping[int, Bottleneck]) -> BertLayer:
    return BertLayer(layer, Disentangled(encoder), bottlenecks)
