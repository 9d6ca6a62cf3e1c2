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
        """Gives r, the width of the factors."""
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


def combine(updates: Sequence[LoRAUpdate], weights: Sequence[float]) -> LoRAUpdate:
    """Computes Σ wᵢ·ΔWᵢ exactly, of rank Σ rᵢ: the A's stacked, the scaled B's side by side, in float32 or better."""
    A = torch.cat([_precise(update.A) for update in updates])
    weighted = zip(updates, weights, strict=True)
    B = torch.cat([_precise(update.B) * (weight * update.scale) for update, weight in weighted], dim=1)
    return LoRAUpdate(A, B)


def _precise(factor: Tensor) -> Tensor:
    """In single precision or better: bfloat16 would round each product with a weight to three digits."""
    return factor.to(torch.promote_types(factor.dtype, torch.float32))


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis in which several updates of one layer are small: ΔWᵢ = Q_out · Mᵢ · Q_inᵀ, exactly.

    Q_out (out, p) spans the columns of all B's and Q_in (in, q) the rows of all A's, so p, q ≤ Σ rᵢ. Frobenius norms, inner
    products and singular values of any linear combination of the updates are those of the same combination of the Mᵢ.
    """

    Q_out: Tensor
    Q_in: Tensor

    @classmethod
    def of(cls, updates: Sequence[LoRAUpdate]) -> "Basis":
        """Finds the basis of these updates, in double precision: two QR decompositions, no matrix of (out, in)."""
        Q_out, _ = torch.linalg.qr(torch.cat([update.B for update in updates], dim=1).double())
        Q_in, _ = torch.linalg.qr(torch.cat([update.A for update in updates]).double().T)
        return cls(Q_out, Q_in)

    def core(self, update: LoRAUpdate) -> Tensor:
        """Computes M (p, q) of an update whose factors lie in this basis."""
        return update.scale * (self.Q_out.T @ update.B.double()) @ (update.A.double() @ self.Q_in)

    def update(self, core: Tensor) -> LoRAUpdate:
        """Gives the update whose core is M (p, q), of rank q."""
        return LoRAUpdate(self.Q_in.T, self.Q_out @ core)


def truncate(update: LoRAUpdate, rank: int) -> tuple[LoRAUpdate, float]:
    """Cuts an update to the best of rank `rank` in the Frobenius norm (Eckart & Young 1936); gives the share of ‖ΔW‖² lost.

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


def factorise(matrix: Tensor, rank: int) -> tuple[LoRAUpdate, float]:
    """Finds the best approximation of rank `rank` of a dense ΔW (out, in), and the share of ‖ΔW‖² lost.

    From the eigenvectors of the smaller Gram matrix, in double precision: min(out, in)³ and not a full SVD. What that
    costs in accuracy concerns singular values below 1e-8 of the greatest, which no rank that matters keeps.
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
