"""Makes of transformers' layers, whose weights they read, chains of steps that compute the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from hatemtl.encoders.fast.adapted import Adapted, product
from hatemtl.encoders.fast.attention import Attention
from hatemtl.encoders.fast.linear import Linear
from hatemtl.encoders.fast.positions import Distances, Turn
from hatemtl.encoders.fast.rowwise import Activation, Drop, Gate, Norm
from hatemtl.encoders.fast.tape import Chain, Step


@dataclass(frozen=True, eq=False)
class Bottleneck:
    """A bottleneck adapter of a library: r = scale·(act(e·Dᵀ + d)·Uᵀ + b), for norm(u + x + r) in place of norm(u + x).

    owner: the library's module that drops out, adds and norms. reads: what e is. `normed`, norm(u + x) (Pfeiffer et al.
    2021, arXiv:2005.00247), `output`, u (Houlsby et al. 2019, arXiv:1902.00751), `input`, x (He et al. 2022,
    arXiv:2110.04366).
    """

    owner: nn.Module
    down: nn.Linear
    up: nn.Linear
    activation: str
    scale: float
    reads: Literal["normed", "output", "input"]

    @property
    def factors(self) -> list[nn.Parameter]:
        own: list[Any] = [self.down.weight, self.down.bias, self.up.weight, self.up.bias]
        return own

    @property
    def sizes(self) -> list[float]:
        """Lists how large numbers `factors` hold in a comparison."""
        return [self.down.in_features**-0.5, 0.1, 0.1 / (self.scale or 1), 0.1 / (self.scale or 1)]


def linear(*layers: Any, gelu: bool = False) -> list[Step]:
    """Gives the steps of layers of one input, with what adapts them."""
    adapted = ((layer, layer.forward if isinstance(layer.forward, Adapted) else None) for layer in layers)
    return product(*adapted, gelu=gelu)


def bert_layer(layer: Any, bottlenecks: Mapping[int, Bottleneck], deberta: Any = None) -> Chain:
    """Makes a layer of BERT, ELECTRA or RoBERTa, or one of this encoder of DeBERTa-v3.

    bottlenecks: those that it may have, by the ids of their owners.
    """
    own, distances = layer.attention.self, None if deberta is None else Distances(deberta)
    names = [f"{name}_proj" if distances else name for name in ("query", "key", "value")]
    projections = linear(*(getattr(own, name) for name in names))
    attention = Attention(own.num_attention_heads, own.dropout, distances=distances)
    return Chain(
        [
            *_sublayer([*([distances] if distances else []), *projections, attention], layer.attention.output, bottlenecks),
            *_sublayer(linear(layer.intermediate.dense, gelu=True), layer.output, bottlenecks),
        ]
    )


def _sublayer(steps: list[Step], end: Any, bottlenecks: Mapping[int, Bottleneck]) -> list[Step]:
    """Gives the steps to norm(u + x): u is what the given ones and the end's product make of x.

    With a bottleneck nothing but adapters is trained, and the norm is frozen.
    """
    adapter, norm = bottlenecks.get(id(end)), Norm(end.LayerNorm)
    within = adapter is not None and adapter.reads == "output"
    u = [*steps, *linear(end.dense), Drop(end.dropout, scales=within)]
    if adapter is None:
        return [Chain(u, past=[], drops=end.dropout), norm]
    down, up = (Linear([layer], [None], thin=True) for layer in (adapter.down, adapter.up))
    adapts = [down, Activation(adapter.activation), up]
    if adapter.reads == "normed":
        adapts = [norm, *adapts]
    adapted = Chain(adapts, past=[], scale=adapter.scale)
    if within:
        return [Chain([*u, adapted], past=[]), norm]
    if adapter.reads == "input":
        return [Chain(u, past=[adapted], drops=end.dropout), norm]
    return [Chain(u, past=[], drops=end.dropout), adapted, norm]


def modernbert_layer(layer: Any, model: Any) -> Chain:
    """Makes a layer of ModernBERT; of dropout it knows nothing."""
    heads, attention, mlp = model.config.num_attention_heads, layer.attn, layer.mlp
    # the lowest layer has none, for the embeddings are normed
    norms: list[Step] = [Norm(layer.attn_norm)] if isinstance(layer.attn_norm, nn.LayerNorm) else []
    turn = Turn(layer, model)
    attends = [turn, Attention(heads, window=turn.window)]
    return Chain(
        [
            Chain([*norms, *linear(attention.Wqkv), *attends, *linear(attention.Wo)], past=[]),
            Chain([Norm(layer.mlp_norm), *linear(mlp.Wi), Gate(), *linear(mlp.Wo)], past=[]),
        ]
    )
