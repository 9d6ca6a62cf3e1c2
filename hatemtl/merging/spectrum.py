"""Finds singular vectors of updates from their factors: the cost grows with their rank; no matrix of (out, in) is made."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hatemtl.merging.lora import LoRAUpdate

EXACT = 1e-12  # of an update's norm: a singular value below it is rounding in double precision
FAINT = 1e-6  # of an update's norm: a singular value below it may be rounding of factors kept in single precision


def norm(update: LoRAUpdate) -> float:
    """Computes ‖ΔW‖, the Frobenius norm."""
    A, B = update.A.double(), update.B.double()
    return abs(update.scale) * float(((B.T @ B) * (A @ A.T)).sum().clamp(min=0).sqrt())


def canonical(updates: Sequence[LoRAUpdate]) -> list[int]:
    """Sorts the places of the updates by what they hold: so a basis is the same to the last digit in any order of them.

    A merge of entries that draws by lot needs that: what it draws depends on every digit.
    """
    return sorted(range(len(updates)), key=lambda i: (norm(updates[i]), _sum(updates[i])))


def _sum(update: LoRAUpdate) -> float:
    """The sum of all entries of ΔW."""
    return update.scale * float(update.B.double().sum(dim=0) @ update.A.double().sum(dim=1))


def svd(update: LoRAUpdate, *, above: float) -> tuple[Tensor, Tensor, Tensor]:
    """Computes U (out, k), σ (k,) falling, Vᵀ (k, in) of ΔW = U·diag(σ)·Vᵀ in double precision: k values over `above`.

    The vectors of singular values that are zero but for rounding are arbitrary, and no formula may depend on them.
    """
    Q_out, R_out = torch.linalg.qr(update.B.double())
    Q_in, R_in = torch.linalg.qr(update.A.double().T)
    U, S, Vt = torch.linalg.svd(update.scale * R_out @ R_in.T, full_matrices=False)
    k = int(S.gt(above).sum())
    return Q_out @ U[:, :k], S[:k], Vt[:k] @ Q_in.T


def cleared(values: Tensor) -> Tensor:
    """Clears values that are rounding beside the greatest to 0, lest they have a vote where entries are merged."""
    return torch.where(values.abs() > EXACT * values.abs().amax(), values, 0.0)


def decorrelated(columns: Tensor) -> Tensor:
    """Finds the orthonormal columns (d, k) nearest to unit ones (d, k): P·Qᵀ of their SVD P·D·Qᵀ (orthogonal Procrustes).

    Where columns depend on each other none are orthonormal, and P·Qᵀ is taken of the directions that are there: equal
    columns share one direction evenly.
    """
    P, D, Qt = torch.linalg.svd(columns, full_matrices=False)
    k = int(D.gt(FAINT).sum())
    return P[:, :k] @ Qt[:k]
