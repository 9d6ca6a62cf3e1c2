"""Computes what places add to attention in ModernBERT, by turning, and in DeBERTa-v3, by how far apart they are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hatemtl.encoders.fast.attention import Positions
from hatemtl.encoders.fast.posts import Group
from hatemtl.encoders.fast.tape import Step, Tape


class Rotary(Positions):
    """Turns pairs of dimensions of q and k by angles that grow with their place (Su et al. 2021, arXiv:2104.09864, eq. 34).

    A place of a local layer reads those at most `window` away, one of a global layer, where it is -1, all. Layers of one
    window have one base of angles.
    """

    def __init__(self, layer: Any, model: Any) -> None:
        if kind := getattr(layer, "attention_type", None):  # transformers 5 keeps the angles of all layers in the model
            self.rotary, self.frequencies = model.rotary_emb, f"{kind}_inv_freq"
            self.window = model.config.sliding_window if kind == "sliding_attention" else -1
        else:
            self.rotary, self.frequencies, self.window = layer.attn.rotary_emb, "inv_freq", layer.attn.local_attention[0]

    def enter(self, qkv: Tensor, tape: Tape, heads: int) -> tuple[Tensor, Sequence[Tensor]]:
        return self._turn(qkv, tape, heads), ()

    def leave(self, dqkv: Tensor, tape: Tape, heads: int) -> Tensor:
        return self._turn(dqkv, tape, heads, back=True)

    def groups(self, tape: Tape) -> list[Group]:
        """Gives the groups with masks (n, 1, T, T) of what is near, where posts are long enough for it to matter."""
        return tape.once(("near", self.window), lambda: [self._near(group) for group in tape.groups])

    def _near(self, group: Group) -> Group:
        if not 0 <= self.window < group.length - 1:
            return group
        places = torch.arange(group.length, device=group.mask.device)
        far = (places[:, None] - places).abs() > self.window
        return Group(group.begin, group.end, group.mask.masked_fill(far, torch.finfo(group.mask.dtype).min))

    def _turn(self, qkv: Tensor, tape: Tape, heads: int, *, back: bool = False) -> Tensor:
        """Turns q and k of (M, 3·H·d), in place."""
        cos, sin = tape.once(("angles", self.window), lambda: self._angles(tape, qkv))
        for group in tape.groups:
            length = group.length
            halves = qkv[group.begin : group.end].view(-1, length, 3, heads, 2, cos.shape[-1])[:, :, :2].unbind(4)
            x, y = reversed(halves) if back else halves
            across = y * sin[:length]
            y.mul_(cos[:length]).addcmul_(x, sin[:length])
            x.mul_(cos[:length]).sub_(across)
        return qkv

    def _angles(self, tape: Tape, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """Gives cosines and sines, (T, 1, 1, d / 2), in the type of qkv."""
        places = torch.arange(max(group.length for group in tape.groups), device=qkv.device, dtype=torch.float32)
        angles = torch.outer(places, getattr(self.rotary, self.frequencies).float())[:, None, None]
        return angles.cos().to(qkv.dtype), angles.sin().to(qkv.dtype)


class Disentangled(Step, Positions):
    """Adds distances r = i − j to scores: (qᵢ·kⱼ + qᵢ·Kᵣ + kⱼ·Qᵣ)/√(3d) (He et al. 2021, arXiv:2006.03654, eq. 4).

    Kᵣ and Qᵣ are what the layer's own k and q make of an embedding of the distance r. As a step before their product it puts
    the embeddings of the distances c − 1, c − 2, …, −c behind the posts' rows, so that LoRAs learn from them too; c is the
    number T of places of the longest post, or one more, so that oneDNN, which takes four rows at once, gets fours.
    merged: Qᵣ and Kᵣ, (2, H, 2c, d), as far as they are known.
    """

    terms = 3

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    def merge(self, dtype: torch.dtype, *, int8: bool) -> None:
        self.merged = torch.empty(2, 0, 0, 0)

    def forward(self, x: Tensor, tape: Tape, dx: bool) -> tuple[Tensor, Sequence[Tensor]]:
        if self._known(tape):
            return x, ()
        return torch.cat([x, tape.once(Disentangled, lambda: self._embedded(_rows(tape)).to(x.dtype))]), ()

    def backward(self, dy: Tensor, kept: Sequence[Tensor], tape: Tape, dx: bool) -> Any:
        return dy[: -_rows(tape)]

    def _known(self, tape: Tape) -> bool:
        return self.merged is not None and self.merged.shape[2] >= _rows(tape)

    def _embedded(self, rows: int) -> Tensor:
        """Gives the embeddings (2c, D) of the distances from c − 1 down."""
        encoder = self.encoder
        span, table = encoder.rel_embeddings.num_embeddings // 2, encoder.get_rel_embedding().detach()
        distances = torch.arange(rows // 2 - 1, -rows // 2 - 1, -1, device=table.device)
        if encoder.position_buckets > 0:
            # its module compiles functions as it is imported, and warns of it: only where it is there anyway
            from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

            distances = make_log_bucket_position(distances, encoder.position_buckets, encoder.max_relative_positions)
        return table[(distances.long() + span).clamp_(0, 2 * span - 1)]

    def enter(self, qkv: Tensor, tape: Tape, heads: int) -> tuple[Tensor, Sequence[Tensor]]:
        if self._known(tape):
            return qkv, (self.merged,)
        rows = _rows(tape)
        positions = qkv[-rows:].view(rows, 3, heads, -1)[:, :2].permute(1, 2, 0, 3).contiguous()
        if self.merged is not None:
            self.merged = positions
        return qkv[:-rows], (positions,)

    def add(self, scores: Tensor, q: Tensor, k: Tensor, given: Sequence[Tensor]) -> None:
        length = q.shape[1]
        all_q, all_k, (Q, K) = _by_head(q, given), _by_head(k[:, :length], given), _far(given[0], length)
        of_posts = scores[..., :length]
        of_posts += _aslant(torch.bmm(all_q, K.mT), length)
        of_posts += _aslant(torch.bmm(all_k, Q.flip(1).mT), length).mT

    def back(self, ds: Tensor, q: Tensor, k: Tensor, dq: Tensor, dk: Tensor, given: Sequence[Tensor], into: Tensor) -> None:
        length, (heads, _, width) = q.shape[1], given[0].shape[1:]
        all_q, all_k, (Q, K) = _by_head(q, given), _by_head(k[:, :length], given), _far(given[0], length)
        ds = ds[..., :length]
        of_K, of_Q = _aslant_back(ds, heads), _aslant_back(ds.mT, heads)  # the gradients of q·Kᵣ and k·Q₋ᵣ
        dq += torch.bmm(of_K, K).view(q.shape)
        dk[:, :length] += torch.bmm(of_Q, Q.flip(1)).view(q.shape)
        of_positions = _far(into.view(-1, 3, heads, width)[:, :2].permute(1, 2, 0, 3), length)
        of_positions[0] += torch.bmm(of_Q.mT, all_k).flip(1)
        of_positions[1] += torch.bmm(of_K.mT, all_q)


def _rows(tape: Tape) -> int:
    """Counts the distances, 2c."""
    return -(-max(group.length for group in tape.groups) // 2) * 4


def _far(positions: Tensor, length: int) -> Tensor:
    """Finds the distances of posts of T places, from T − 1 down, among (2, H, 2c, d)."""
    c = positions.shape[2] // 2
    return positions[:, :, c - length : c + length - 1]


def _by_head(x: Tensor, given: Sequence[Tensor]) -> Tensor:
    """Gives (H, n·T, d) of (H·n, T, d)."""
    return x.reshape(given[0].shape[1], -1, x.shape[-1])


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
