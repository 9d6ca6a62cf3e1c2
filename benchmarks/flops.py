"""Floating-point operations that a BERT-like encoder with LoRA cannot avoid: those of real tokens, never of padding.

Forward, per token and layer, d wide with feed-forward f: the projections q, k, v, o and the two feed-forward matrices,
2·(4d² + 2df); attention scores and their weighted sum over T tokens, 2·2·T·d; LoRA of rank r on q, k, v and both
feed-forward matrices, 2·r·Σ(inputs + outputs). Training with LoRA needs forward and input gradient of the frozen matrices
(2×), and forward, both gradients of attention and LoRA (3×). Evaluation counts no LoRA: it may be merged into the weights.
Embeddings, norms, softmax, activations and heads are left out, as is customary (Kaplan et al. 2020, arXiv:2001.08361).
The first layer's q, k and v need no input gradient, for nothing below is trained.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """An encoder: layers, its width, that of its feed-forward layers, and the rank of its LoRA."""

    layers: int
    hidden: int
    feed_forward: int
    rank: int

    @property
    def linear(self) -> int:
        """FLOPs a token of the frozen matrices, forward."""
        return 2 * self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.feed_forward)

    @property
    def lora(self) -> int:
        """FLOPs a token of the LoRA, forward."""
        return 2 * self.layers * self.rank * (3 * 2 * self.hidden + 2 * (self.hidden + self.feed_forward))

    @property
    def input_gradient(self) -> int:
        """FLOPs a token of the input gradient of the first layer's q, k and v, which nobody needs."""
        return 2 * 3 * self.hidden * (self.hidden + self.rank)

    @property
    def attention(self) -> int:
        """FLOPs of a pair of tokens, forward."""
        return 4 * self.layers * self.hidden


MINILM = Shape(layers=6, hidden=384, feed_forward=1536, rank=16)


def training_flops(shape: Shape, tokens: int, squares: int) -> int:
    """FLOPs of a training pass over posts of `tokens` tokens in all, whose squared lengths add up to `squares`."""
    per_token = 2 * shape.linear + 3 * shape.lora - shape.input_gradient
    return tokens * per_token + 3 * shape.attention * squares


def evaluation_flops(shape: Shape, tokens: int, squares: int) -> int:
    """FLOPs of a forward pass with the LoRA merged."""
    return tokens * shape.linear + shape.attention * squares
