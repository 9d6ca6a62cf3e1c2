"""Computes the layers of BERT and its kin as one step of autograd, in which next to no padding is computed."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, chain, groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from hatemtl.encoders.attention import KINDS
from hatemtl.encoders.fast.bert_layer import BertLayer, Group, Layer, waits
from hatemtl.encoders.fast.dropout import Dropout
from hatemtl.encoders.fast.lora_linear import check_once, gradients, prepare
from hatemtl.encoders.fast.sublayer_end import Bottleneck
from hatemtl.encoders.partway import Watch, states

# Inside, autograd looks at no operation, which takes it time even where nothing is recorded.
_BelowAutograd = torch._C._AutoDispatchBelowAutograd

# Places of padding that cost as much as one more group. With fewer, groups would have several times as many shapes, for each
# of which oneDNN makes code; with 48, batches of HateXplain have 2.1 % of padding in place of 1.1.
PADDING = 48
# Posts times squared length of a group at most, unless of one post: what attention computes of it shall stay in the cache.
AREA = 2**17
# oneDNN makes code for each number of rows, 0.65 MB a product, and computes blocks of them. So it is a multiple of 4, and
# has some five digits of two: 46 numbers in place of 211 in three epochs of HateXplain, for 0.8 % more rows.
ROWS, FINEST = 4, 32


class _Stack(torch.autograd.Function):
    """Some layers, one after the other, with gradients for their input (B, T, D) and their factors, named to get theirs."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, posts: "Posts", layers: list[Layer], dropout: Dropout | None, *factors: Tensor
    ) -> Tensor:
        # nothing learns below the first of these
        first = 0 if ctx.needs_input_grad[0] else next((i for i, layer in enumerate(layers) if layer.factors), len(layers))
        ctx.chances = []
        with _BelowAutograd():
            x, kept = posts.pack(hidden), []
            for i, layer in enumerate(layers):
                x, found, chances = layer.forward(x, posts.groups, dropout)
                if i >= first:
                    kept.append(found)
                    ctx.chances.append(chances)
            y = posts.unpack(x)
        ctx.sizes = [[len(tensors) for tensors in layer] for layer in kept]
        ctx.save_for_backward(*(tensor for layer in kept for tensors in layer for tensor in tensors))
        ctx.posts, ctx.layers = posts, layers[first:]
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        check_once()
        flat, below = iter(ctx.saved_tensors), ctx.needs_input_grad[0]
        kept = [[[*islice(flat, size)] for size in layer] for layer in ctx.sizes]
        with _BelowAutograd():
            dy, found = ctx.posts.pack(grads[0]), []
            for i, layer in reversed([*enumerate(ctx.layers)]):
                dy, of = layer.backward(dy, ctx.posts.groups, kept[i], ctx.chances[i], dx=i > 0 or below)
                found.append(of)
            parts = [part for layer in ctx.layers for part in layer.parts]
            factors = gradients(parts, [*chain.from_iterable(reversed(found))])
            return ctx.posts.unpack(dy) if below else None, None, None, None, *factors


@dataclass(frozen=True)
class Posts:
    """The places of a padded batch's posts (B, T) when they stand one behind the other, in M rows: see `ROWS`.

    groups: of like length, each as long as its longest. packing: which place each row holds (M,), the rows that hold no
    token, which row holds each place (B·T,), any at padding, and where that is; None where the batch stays as it is.
    """

    shape: tuple[int, int]
    groups: list[Group]
    packing: tuple[Tensor, ...] | None = None

    @staticmethod
    def of(hidden: Tensor, mask: Tensor | None) -> "Posts":
        """Finds those of a batch's hidden states (B, T, D).

        mask: (B, 1, 1, T), or the same for every place that reads, (B, 1, T, T), 0 for a token. With another, or on a GPU,
        which would be waited for, the batch stays as it is.
        """
        posts, length, _ = hidden.shape
        mask = hidden.new_zeros(1, 1, 1, length, dtype=torch.float32) if mask is None else mask.float()
        if mask.shape[2] > 1 and not waits(hidden.device) and bool((mask == mask[:, :, :1]).all()):
            mask = mask[:, :, :1]  # transformers 5 gives the wide one
        if waits(hidden.device) or mask.shape != (posts, 1, 1, length):
            return Posts((posts, length), [Group(0, posts * length, mask)])
        real = (mask.view(posts, length) == 0).numpy()
        if posts == 1 and real.all():  # to move it would take longer than it saves
            return Posts((posts, length), [Group(0, length, mask)])
        lengths = np.where(real, np.arange(1, length + 1), 1).max(axis=1)
        order = np.argsort(lengths, kind="stable")
        groups: list[Group] = []
        places = []
        for group in np.split(order, _cuts(lengths[order])):
            longest, begin = int(lengths[group[-1]]), groups[-1].end if groups else 0
            groups.append(Group(begin, begin + len(group) * longest, mask[group, ..., :longest]))
            places.append((group[:, None] * length + np.arange(longest)).reshape(-1))
        rows = np.concatenate(places)
        sources, tokens = np.zeros(posts * length, dtype=np.int64), real.reshape(-1)
        sources[rows] = np.arange(len(rows))
        rest = -len(rows) % max(ROWS, 2 ** len(rows).bit_length() // FINEST)
        nothing = np.append(np.flatnonzero(~tokens[rows]), np.arange(len(rows), len(rows) + rest))
        found = np.append(rows, np.zeros(rest, dtype=np.int64)), nothing, sources, np.flatnonzero(~tokens)
        return Posts((posts, length), groups, tuple(map(torch.from_numpy, found)))

    def pack(self, hidden: Tensor) -> Tensor:
        """Packs (B, T, D) to (M, D), zero where no token is."""
        hidden = hidden.reshape(-1, hidden.shape[-1])
        if self.packing is None:
            return hidden
        places, nothing, *_ = self.packing
        return hidden.index_select(0, places).index_fill_(0, nothing, 0.0)

    def unpack(self, x: Tensor) -> Tensor:
        """Unpacks (M, D) to (B, T, D), zero at padding."""
        if self.packing is not None:
            *_, sources, padding = self.packing
            x = x.index_select(0, sources).index_fill_(0, padding, 0.0)
        return x.view(*self.shape, -1)


def _cuts(lengths: np.ndarray) -> list[int]:
    """Gives where groups but the first begin, among lengths (N,) from short to long: least padding, `PADDING` a group."""
    longest, counts = (found.tolist() for found in np.unique(lengths, return_counts=True))
    ends = [0, *accumulate(counts)]
    best: list[tuple[float, list[int]]] = [(0, [])]  # for the posts of so many lengths: its cost, and where its groups end
    for j, length in enumerate(longest, 1):
        least, found, padding, most = math.inf, [], 0, max(1, AREA // length**2)
        for i in range(j - 1, -1, -1):  # a group of the lengths from i on
            padding += counts[i] * (length - longest[i])
            if padding + PADDING >= least:
                break
            posts = ends[j] - ends[i]
            parts = -(-posts // most)
            cost = best[i][0] + padding + PADDING * parts
            if cost < least:
                least, found = cost, best[i][1] + [ends[i] + posts * part // parts for part in range(1, parts + 1)]
        best.append((least, found))
    return best[-1][1][:-1]


class BertStack:
    """Takes the place of `forward` in what transformers calls an encoder: the layers of BERT, ELECTRA or RoBERTa.

    Compiled code and whoever asks for more than the last hidden states go the library's own way, and so does every layer
    that somebody watches or has replaced, but for a `Watch`, which is told what it wants.
    """

    before: Any = None  # an own `forward` that the encoder had

    def __init__(self, encoder: Any, bottlenecks: Mapping[int, Bottleneck]) -> None:
        self.owner, self.own = encoder, encoder.forward
        self.layers = [(layer, BertLayer(layer, bottlenecks=bottlenecks), hooks_on(layer)) for layer in encoder.layer]

    def __call__(self, hidden: Any, attention_mask: Tensor | None = None, **more: Any) -> Any:
        """Computes the last hidden states (B, T, D), zero at padding, of the embedded posts; as transformers gives them."""
        asked = more.get("output_attentions") or more.get("output_hidden_states") or not more.get("return_dict", True)
        if asked or torch.compiler.is_compiling():
            return self.own(hidden, attention_mask, **more)
        for (own, _), items in groupby(self.layers, self._way()):
            group = [*items]
            if own:
                for layer, *_ in group:
                    hidden = states(layer(hidden, attention_mask))
            else:
                for watch in _watches(group[0][0]):
                    watch(group[0][0], (hidden,), {})
                hidden = through([ours for _, ours, _ in group], hidden, attention_mask)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)

    def _way(self) -> Callable[[Any], tuple[bool, int]]:
        """Tells of each layer, asked in their order, whether the library computes it, and which stack it is of.

        One begins where a `Watch` is to be told what enters.
        """
        stacks = accumulate(bool(_watches(layer)) for layer, *_ in self.layers)
        return lambda item: ("forward" in item[0].__dict__ or hooks_on(item[0]) != item[2], next(stacks))


def hooks_on(layer: nn.Module) -> int:
    """Counts who watches a layer, but for a `Watch`."""
    hooks = [*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()]  # AdapterHub sets some of its own
    # with which transformers 5 collects hidden states, once it was asked to for good
    own = [hook for hook in hooks if getattr(hook, "__module__", None) == "transformers.utils.output_capturing"]
    return len(hooks) - len(own) - len(_watches(layer))


def _watches(layer: nn.Module) -> list[Watch]:
    return [hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, Watch)]


def through(layers: list[Layer], hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Computes these layers of hidden states (B, T, D); mask: as of `Posts.of`."""
    kind, dtype = hidden.device.type, layers[0].joints[0].layers[0].weight.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    hidden = hidden.to(dtype)
    posts = Posts.of(hidden, mask)
    prepare([joint for layer in layers if layer.merged is None for joint in layer.linears], dtype)
    dropout = Dropout(hidden.device) if any(any(layer.chances()) for layer in layers) else None
    with torch.autocast(kind, enabled=False):  # all is of one type
        if torch.is_grad_enabled():
            return _Stack.apply(hidden, posts, layers, dropout, *chain.from_iterable(layer.factors for layer in layers))
        x = posts.pack(hidden)
        for layer in layers:
            x, *_ = layer.forward(x, posts.groups, dropout)  # what a gradient would need is let go at once
        return posts.unpack(x)


def stacks(model: nn.Module, bottlenecks: Mapping[int, Bottleneck]) -> Iterator[BertStack]:
    """Gives what takes the place of the model's encoders; nothing where its layers are not as BERT's."""
    config: Any = model.config
    eager = config._attn_implementation == "eager"
    absolute = getattr(config, "position_embedding_type", "absolute") == "absolute"  # transformers 5 knows no other
    if not eager or not absolute or getattr(config, "hidden_act", "") != "gelu" or getattr(config, "is_decoder", False):
        return
    for module in [*model.modules()]:
        layers = getattr(module, "layer", None)
        if isinstance(layers, nn.ModuleList) and all(type(layer).__name__ in KINDS for layer in layers):
            yield BertStack(module, bottlenecks)
