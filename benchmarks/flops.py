"""Floating-point operations that an encoder cannot avoid: those of real tokens, never of padding.

Forward, per token and layer, d wide with feed-forward f: the projections q, k, v, o and the two feed-forward matrices,
2·(4d² + 2df), 2·(4d² + 3df) where a gate is a third; attention scores and their weighted sum over T tokens, 2·2·T·d, twice
that where scores also are of content and place (DeBERTa); LoRA of rank r on q, k, v and the feed-forward matrices,
2·r·Σ(inputs + outputs); a bottleneck r wide, 2·2·d·r. Training needs forward and input gradient of what is frozen (2×), and
both gradients of attention and of what is trained (3×), but no input gradient where nothing below is trained: in the first
layer's q, k and v under LoRA, in all of the first layer under bottlenecks. Evaluation counts no LoRA: it may be merged into
the weights. Embeddings, the places that a DeBERTa projects once a batch, norms, softmax, activations and heads are left out,
as is customary (Kaplan et al. 2020, arXiv:2001.08361).
"""

from dataclasses import dataclass
from typing import Any, Literal

Method = Literal["ah_lora16", "full", "ah_seq_bn"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """An encoder under a method: layers, its width, that of its feed-forward layers, the rank of LoRA or bottlenecks."""

    layers: int
    hidden: int
    feed_forward: int
    gated: bool = False
    disentangled: bool = False
    method: Method = "ah_lora16"

    @property
    def rank(self) -> int:
        """Of a LoRA, or the width of a bottleneck, as conf/method/ has them."""
        return {"ah_lora16": 16, "full": 0, "ah_seq_bn": self.hidden // 16}[self.method]

    @property
    def linear(self) -> int:
        """FLOPs a token and layer of the encoder's matrices, forward."""
        return 2 * (4 * self.hidden**2 + (3 if self.gated else 2) * self.hidden * self.feed_forward)

    @property
    def adapter(self) -> int:
        """FLOPs a token and layer of what the method adds, forward."""
        if self.method == "ah_seq_bn":
            return 2 * self.rank * 2 * self.hidden
        inner = (2 if self.gated else 1) * self.feed_forward
        return 2 * self.rank * (3 * 2 * self.hidden + (self.hidden + inner) + (self.feed_forward + self.hidden))

    @property
    def attention(self) -> int:
        """FLOPs of a pair of tokens and layer, forward."""
        return (8 if self.disentangled else 4) * self.hidden


def shape_of(config: Any, method: Method) -> Shape:
    """The shape that an encoder's config.json tells of."""
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        feed_forward=config.intermediate_size,
        gated=config.model_type == "modernbert",
        disentangled=config.model_type == "deberta-v2",
        method=method,
    )


def training_flops(shape: Shape, tokens: int, squares: int) -> int:
    """FLOPs of a training pass over posts of `tokens` tokens in all, whose squared lengths add up to `squares`."""
    per_token, per_pair = 3 * shape.layers * shape.adapter, 3 * shape.layers * shape.attention
    if shape.method == "full":
        per_token += 3 * shape.layers * shape.linear
    elif shape.method == "ah_lora16":
        per_token += 2 * shape.layers * shape.linear - 2 * 3 * shape.hidden * (shape.hidden + shape.rank)
    else:
        per_token += (2 * shape.layers - 1) * shape.linear - 2 * shape.hidden * shape.rank
        per_pair -= 2 * shape.attention
    return tokens * per_token + squares * per_pair


def evaluation_flops(shape: Shape, tokens: int, squares: int) -> int:
    """FLOPs of a forward pass, with the LoRA merged."""
    apart = shape.adapter if shape.method == "ah_seq_bn" else 0
    return shape.layers * (tokens * (shape.linear + apart) + squares * shape.attention)
