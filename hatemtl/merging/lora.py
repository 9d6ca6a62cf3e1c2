"""A LoRA update of one layer, ΔW = s·B·A, and the arithmetic on it that needs no dense matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Updates = Mapping[str, "LoRAUpdate"]  # by layer


@dataclass(frozen=True)
class LoRAUpdate:
    """ΔW = scale · B · A, with A (r, in) and B (out, r) (Hu et al. 2022, LoRA, arXiv:2106.09685; scale = alpha / r)."""

    A: Tensor
    B: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """r, the width of the factors."""
        return self.A.shape[0]

    def dense(self) -> Tensor:
        """ΔW itself, (out, in), in double precision."""
        return self.scale * self.B.double() @ self.A.double()


def combine(updates: Sequence[LoRAUpdate], weights: Sequence[float]) -> LoRAUpdate:
    """Σ wᵢ·ΔWᵢ exactly, of rank Σ rᵢ: the A's stacked, the scaled B's side by side."""
    A = torch.cat([update.A for update in updates])
    B = torch.cat([update.B * (weight * update.scale) for update, weight in zip(updates, weights, strict=True)], dim=1)
    return LoRAUpdate(A, B)


def truncate(update: LoRAUpdate, rank: int) -> tuple[LoRAUpdate, float]:
    """The best approximation of rank `rank` in the Frobenius norm (Eckart & Young 1936), and the share of ‖ΔW‖² lost.

    The SVD is taken in the basis of the factors (QR of B and of Aᵀ), so its cost grows with r², never with out·in.
    The singular values are split evenly between the new factors, so that both learn at one rate afterwards.
    """
    Qb, Rb = torch.linalg.qr(update.B.double())
    Qa, Ra = torch.linalg.qr(update.A.double().T)
    U, S, Vh = torch.linalg.svd(update.scale * Rb @ Ra.T)
    total = S.square().sum()
    lost = float(S[rank:].square().sum() / total) if total > 0 else 0.0
    root = S[:rank].sqrt()
    A, B = (Qa @ Vh[:rank].T * root).T, Qb @ U[:, :rank] * root
    return LoRAUpdate(A.to(update.A.dtype).contiguous(), B.to(update.B.dtype).contiguous()), lost
