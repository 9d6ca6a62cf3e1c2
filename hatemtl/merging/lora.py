"""Holds a LoRA update of one layer, ΔW = s·B·A, and the arithmetic on it that needs no dense matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Updates = Mapping[str, "LoRAUpdate"]  # by layer


@dataclass(frozen=True)
class LoRAUpdate:
    """ΔW = scale · B · A, with A (r, in) and B (out, r) (Hu et al. 2022, LoRA, arXiv:2106.09685).

    scale is alpha / r, or alpha / √r for rsLoRA; it may be of either sign. r may be 0: the update of a layer left alone.
    """

    A: Tensor
    B: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Gives r."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Gives (out, in), of the layer's weight."""
        return self.B.shape[0], self.A.shape[1]

    def dense(self) -> Tensor:
        """Computes ΔW itself, (out, in), in double precision."""
        return self.scale * self.B.double() @ self.A.double()

    def nothing(self) -> "LoRAUpdate":
        """Gives the update of zero on this layer, of rank 0."""
        return LoRAUpdate(self.A[:0], self.B[:, :0])


def combine(updates: Sequence[LoRAUpdate], weights: Sequence[float] | None = None) -> LoRAUpdate:
    """Computes Σ wᵢ·ΔWᵢ, or Σ ΔWᵢ, exactly: the A's stacked, the scaled B's side by side, in float32 or better."""
    weighted = zip(updates, weights or [1.0] * len(updates), strict=True)
    B = torch.cat([_precise(update.B) * (weight * update.scale) for update, weight in weighted], dim=1)
    return LoRAUpdate(torch.cat([_precise(update.A) for update in updates]), B)


def _precise(factor: Tensor) -> Tensor:
    """In single precision or better: bfloat16 would round each product with a weight to three digits."""
    return factor.to(torch.promote_types(factor.dtype, torch.float32))


def norm(update: LoRAUpdate) -> float:
    """Computes ‖ΔW‖, the Frobenius norm."""
    A, B = update.A.double(), update.B.double()
    return abs(update.scale) * float(((B.T @ B) * (A @ A.T)).sum().clamp(min=0).sqrt())


def _core(update: LoRAUpdate) -> tuple[Tensor, Tensor, Tensor]:
    """Q_out (out, r), M (r, r), Q_in (in, r) of ΔW = Q_out·M·Q_inᵀ in double precision; an SVD of M costs no out·in."""
    Q_out, R_out = torch.linalg.qr(update.B.double())
    Q_in, R_in = torch.linalg.qr(update.A.double().T)
    return Q_out, update.scale * R_out @ R_in.T, Q_in


def svd(update: LoRAUpdate, *, above: float) -> tuple[Tensor, Tensor, Tensor]:
    """Computes U (out, k), σ (k,) falling, Vᵀ (k, in) of ΔW = U·diag(σ)·Vᵀ in double precision: k values over `above`."""
    Q_out, core, Q_in = _core(update)
    U, S, Vt = torch.linalg.svd(core, full_matrices=False)
    k = int(S.gt(above).sum())
    return Q_out @ U[:, :k], S[:k], Vt[:k] @ Q_in.T


def truncate(update: LoRAUpdate, rank: int) -> tuple[LoRAUpdate, float]:
    """Cuts an update to the best of rank `rank` in the Frobenius norm (Eckart & Young 1936); gives the share of ‖ΔW‖² lost.

    The singular values are split evenly between the new factors, so that both learn at one rate afterwards.
    """
    Q_out, core, Q_in = _core(update)
    U, S, Vt = torch.linalg.svd(core)
    total = S.square().sum()
    lost = float(S[rank:].square().sum() / total) if total > 0 else 0.0
    root = S[:rank].sqrt()
    A, B = (Q_in @ Vt[:rank].T * root).T, Q_out @ U[:, :rank] * root
    return LoRAUpdate(A.to(update.A.dtype).contiguous(), B.to(update.B.dtype).contiguous()), lost


def factorise(matrix: Tensor, rank: int) -> tuple[LoRAUpdate, float]:
    """Finds the best approximation of rank `rank` of a dense ΔW (out, in), and the share of ‖ΔW‖² lost.

    From the eigenvectors of the smaller Gram matrix, in double precision, and no full SVD: singular values below 1e-8 of the
    greatest are inexact, which no rank that matters keeps.
    """
    wide = matrix.double()
    if turned := wide.shape[0] < wide.shape[1]:
        wide = wide.T
    gram = wide.T @ wide
    _, vectors = torch.linalg.eigh(gram)
    V = vectors[:, -rank:]
    left = wide @ V
    total = gram.trace()
    lost = float((1 - left.square().sum() / total).clamp(min=0)) if total > 0 else 0.0
    root = left.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    tall, short = left / root, (V * root).T  # left has columns of length σ: evenly split, as in truncate
    A, B = (tall.T, short.T) if turned else (short, tall)
    return LoRAUpdate(A.float().contiguous(), B.float().contiguous()), lost
