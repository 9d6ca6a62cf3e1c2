"""Computes what places add to attention in ModernBERT, by turning, and in DeBERTa-v3, by how far apart they are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hatemtl.encoders.fast.tape import Step, Tape


class Turn(Step):
    """Turns pairs of dimensions of q and k by angles that grow with their place (Su et al. 2021, arXiv:2104.09864, eq. 34).

    It turns (M, 3·H·d) in place. window: of the layer's attention; layers of one window have one base of angles.
    """

    def __init__(self, layer: Any, model: Any) -> None:
        if kind := getattr(layer, "attention_type", None):  # transformers 5 keeps the angles of all layers in the model
            self.rotary, self.frequencies = model.rotary_emb, f"{kind}_inv_freq"
            self.window = model.config.sliding_window if kind == "sliding_attention" else -1
        else:
            self.rotary, self.frequencies, self.window = layer.attn.rotary_emb, "inv_freq", layer.attn.local_attention[0]

    def forward(self, x: Tensor, tape: Tape, dx: bool) -> tuple[Tensor, Sequence[Tensor]]:
        return self._turn(x, tape), ()

    def backward(self, dy: Tensor, kept: Sequence[Tensor], tape: Tape, dx: bool) -> Any:
        return self._turn(dy, tape, back=True)  # dy is the attention's alone

    def _turn(self, qkv: Tensor, tape: Tape, *, back: bool = False) -> Tensor:
        cos, sin = tape.once(("angles", self.window), lambda: self._angles(tape, qkv))
        heads, half = qkv.shape[1] // (6 * cos.shape[-1]), cos.shape[-1]
        for group in tape.groups:
            length = group.length
            halves = qkv[group.begin : group.end].view(-1, length, 3, heads, 2, half)[:, :, :2].unbind(4)
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


class Distances(Step):
    """Adds distances r = i − j to scores: (qᵢ·kⱼ + qᵢ·Kᵣ + kⱼ·Qᵣ)/√(3d) (He et al. 2021, arXiv:2006.03654, eq. 4).

    Kᵣ and Qᵣ are what the layer's own k and q make of an embedding of the distance r. As a step before their product it puts
    the embeddings of the distances c − 1, c − 2, …, −c behind the posts' rows, so that LoRAs learn from them too; c is the
    number T of places of the longest post, or one more, so that oneDNN, which takes four rows at once, gets fours.
    merged: Qᵣ and Kᵣ, (2, H, 2c, d), as far as they are known.
    """

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    def merge(self, dtype: torch.dtype, *, int8: bool) -> None:
        self.merged = torch.empty(2, 0, 0, 0)

    def forward(self, x: Tensor, tape: Tape, dx: bool) -> tuple[Tensor, Sequence[Tensor]]:
        if self._known(tape):
            return x, ()
        return torch.cat([x, tape.once(Distances, lambda: self._embedded(_rows(tape)).to(x.dtype))]), ()

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

    def split(self, qkv: Tensor, tape: Tape, heads: int) -> tuple[Tensor, Tensor]:
        """Gives q, k and v of posts, and Qᵣ and Kᵣ."""
        if self._known(tape):
            return qkv, self.merged
        rows = _rows(tape)
        positions = qkv[-rows:].view(rows, 3, heads, -1)[:, :2].permute(1, 2, 0, 3).contiguous()
        if self.merged is not None:
            self.merged = positions
        return qkv[:-rows], positions

    @staticmethod
    def add(scores: Tensor, q: Tensor, k: Tensor, positions: Tensor) -> None:
        """Adds to the scores (H·n, T, K) of a group's q and k."""
        length, (Q, K) = q.shape[1], _far(positions, q.shape[1])
        all_q, all_k = (x.reshape(len(Q), -1, x.shape[-1]) for x in (q, k[:, :length]))
        of_posts = scores[..., :length]
        of_posts += _aslant(torch.bmm(all_q, K.mT), length)
        of_posts += _aslant(torch.bmm(all_k, Q.flip(1).mT), length).mT

    @staticmethod
    def back(ds: Tensor, q: Tensor, k: Tensor, dq: Tensor, dk: Tensor, positions: Tensor, into: Tensor) -> None:
        """Adds to the gradients of q, of k, and of the distances' rows, that of the scores."""
        length, (Q, K) = q.shape[1], _far(positions, q.shape[1])
        all_q, all_k = (x.reshape(len(Q), -1, x.shape[-1]) for x in (q, k[:, :length]))
        of_K, of_Q = (_aslant_back(x, len(Q)) for x in (ds[..., :length], ds[..., :length].mT))  # of q·Kᵣ and k·Q₋ᵣ
        dq += torch.bmm(of_K, K).view(q.shape)
        dk[:, :length] += torch.bmm(of_Q, Q.flip(1)).view(q.shape)
        of_positions = _far(into.view(len(into), 3, len(Q), -1)[:, :2].permute(1, 2, 0, 3), length)
        of_positions[0] += torch.bmm(of_Q.mT, all_k).flip(1)
        of_positions[1] += torch.bmm(of_K.mT, all_q)


def _rows(tape: Tape) -> int:
    """Counts the distances, 2c."""
    return -(-max(group.length for group in tape.groups) // 2) * 4


def _far(positions: Tensor, length: int) -> Tensor:
    """Finds the distances of posts of T places, from T − 1 down, among (2, H, 2c, d)."""
    c = positions.shape[2] // 2
    return positions[:, :, c - length : c + length - 1]


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
