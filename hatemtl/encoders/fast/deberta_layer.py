"""Computes the attention of DeBERTa-v3, whose scores read how far apart two places are; the rest of its layer is BERT's."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hatemtl.encoders.fast.bert_layer import LEAST_KEYS, Attention, Group
from hatemtl.encoders.fast.dropout import Dropout

BLOCK = 4  # rows that oneDNN computes together


class Disentangled(Attention):
    """softmax((qᵢ·kⱼ + qᵢ·Kᵣ + kⱼ·Qᵣ)/√(3d))·v with r = i − j (He et al. 2021, arXiv:2006.03654, eq. 4).

    Kᵣ and Qᵣ are what the layer's own k and q make of an embedding of the distance r. Of posts of T places at most, those
    of T − 1, T − 2, … enter as R rows behind the posts', so that LoRAs learn from them too. R is 2·T − 1, rounded up.
    """

    names = "query_proj", "key_proj", "value_proj"

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self.known: tuple[Any, int, Tensor] | None = None  # while merged: what projects, T, and what it made of distances

    def enter(self, x: Tensor, groups: list[Group]) -> Tensor:
        self.known = None
        return torch.cat([x, self._embedded(_longest(groups)).to(x.dtype)])

    def forward(
        self, qkv: Tensor, groups: list[Group], heads: int, dropout: Dropout | None, p: float
    ) -> tuple[Tensor, list[Tensor]]:
        rows = _rows(_longest(groups))
        positions = _of_positions(qkv[-rows:], heads)
        context, kept = _attend(qkv[:-rows], positions, _longest(groups), groups)
        return context, [positions, *kept]

    def alone(self, project: Callable[[Tensor], Tensor], x: Tensor, groups: list[Group], heads: int) -> Tensor:
        longest = _longest(groups)
        if self.known is None or self.known[0] is not project or self.known[1] < longest:
            self.known = project, longest, _of_positions(project(self._embedded(longest).to(x.dtype)), heads)
        _, longest, positions = self.known
        return _attend(project(x), positions, longest, groups)[0]

    def backward(self, dy: Tensor, groups: list[Group], kept: list[Tensor], p: float) -> Tensor:
        positions, *rest = kept
        _, heads, rows, width = positions.shape
        dqkv = dy.new_zeros(len(dy) + rows, 3, heads, width)
        of_positions = dqkv[len(dy) :, :2].permute(1, 2, 0, 3)
        for group, own, weights in zip(groups, rest[::2], rest[1::2], strict=True):
            length, far = weights.shape[1], _far(weights.shape[1], _longest(groups))
            (q, k, v), (all_q, all_k, _) = own.flatten(1, 2), own.flatten(2, 3)
            Q, K = positions[:, :, far]
            do = dy[group.begin : group.end].view(-1, length, heads, width).permute(2, 0, 1, 3).reshape(v.shape)
            dp = torch.bmm(do, v.mT).float()
            ds = torch._softmax_backward_data(dp, weights.float(), -1, torch.float32).mul_((3 * width) ** -0.5).to(q.dtype)
            of_K, of_Q = _aslant_back(ds, heads), _aslant_back(ds.mT, heads)  # the gradients of q·Kᵣ and k·Q₋ᵣ
            dq = torch.bmm(ds, k).add_(torch.bmm(of_K, K).view(q.shape))
            dk = torch.bmm(ds.mT, q).add_(torch.bmm(of_Q, Q.flip(1)).view(q.shape))
            of_positions[0, :, far] += torch.bmm(of_Q.mT, all_k).flip(1)
            of_positions[1, :, far] += torch.bmm(of_K.mT, all_q)
            into = dqkv[group.begin : group.end].view(-1, length, 3, heads, width)
            for i, gradient in enumerate((dq, dk, torch.bmm(weights.mT, do))):
                into[:, :, i] = gradient.view(heads, -1, length, width).permute(1, 2, 0, 3)
        return dqkv.flatten(1)

    def _embedded(self, longest: int) -> Tensor:
        """Gives the embeddings (R, D) of the distances from T − 1 down."""
        encoder = self.encoder
        span, table = encoder.rel_embeddings.num_embeddings // 2, encoder.get_rel_embedding().detach()
        distances = torch.arange(longest - 1, longest - 1 - _rows(longest), -1, device=table.device)
        if encoder.position_buckets > 0:
            # its module compiles functions as it is imported, and warns of it: only where it is there anyway
            from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

            distances = make_log_bucket_position(distances, encoder.position_buckets, encoder.max_relative_positions)
        return table[(distances.long() + span).clamp_(0, 2 * span - 1)]


def _attend(qkv: Tensor, positions: Tensor, longest: int, groups: list[Group]) -> tuple[Tensor, list[Tensor]]:
    """Computes the context (M, H·d) of q, k and v (M, 3·H·d); keeps these, (3, H, n, T, d), and weights (H·n, T, T).

    positions: (2, H, R, d), Qᵣ and Kᵣ of distances from `longest` − 1 down.
    """
    _, heads, _, width = positions.shape
    context, kept = qkv.new_zeros(len(qkv), heads * width), []
    for group in groups:
        length = group.mask.shape[-1]
        own = qkv[group.begin : group.end].view(-1, length, 3, heads, width).permute(2, 3, 0, 1, 4).contiguous()
        (q, k, v), (all_q, all_k, _), (Q, K) = own.flatten(1, 2), own.flatten(2, 3), positions[:, :, _far(length, longest)]
        scores = torch.bmm(q, k.mT).add_(_aslant(torch.bmm(all_q, K.mT), length))
        scores.add_(_aslant(torch.bmm(all_k, Q.flip(1).mT), length).mT)
        more = max(0, LEAST_KEYS - length)
        masked = torch.add(group.mask[:, 0], scores.view(heads, -1, length, length), alpha=(3 * width) ** -0.5)
        p = F.pad(masked, (0, more), value=-math.inf).softmax(dim=-1)[..., :length].to(qkv.dtype).reshape(scores.shape)
        into = context[group.begin : group.end].view(-1, length, heads, width)
        into.copy_(torch.bmm(p, v).view(heads, -1, length, width).permute(1, 2, 0, 3))
        kept += [own, p]
    return context, kept


def _of_positions(qkv: Tensor, heads: int) -> Tensor:
    """Gives q and k, (2, H, R, d), of rows (R, 3·H·d)."""
    return qkv.view(len(qkv), 3, heads, -1)[:, :2].permute(1, 2, 0, 3).contiguous()


def _longest(groups: list[Group]) -> int:
    return max(group.mask.shape[-1] for group in groups)


def _rows(longest: int) -> int:
    return -(-(2 * longest - 1) // BLOCK) * BLOCK


def _far(length: int, longest: int) -> slice:
    """Finds the distances of posts of T places among those from `longest` − 1 down."""
    return slice(longest - length, longest + length - 1)


def _aslant(x: Tensor, length: int) -> Tensor:
    """Gives what stands at (i, j − i + T − 1) of (H, n·T, 2·T − 1) at (i, j), (H·n, T, T), in the same memory."""
    wide = 2 * length - 1
    return x.as_strided((x.numel() // (length * wide), length, length), (length * wide, wide - 1, 1), length - 1)


def _aslant_back(x: Tensor, heads: int) -> Tensor:
    """Gives (H, n·T, 2·T − 1) of which `_aslant` gives x, (H·n, T, T), zero elsewhere."""
    length = x.shape[-1]
    wide = x.new_zeros(heads, x.shape[0] // heads * length, 2 * length - 1)
    _aslant(wide, length).copy_(x)
    return wide
