"""Merges isotropically: every direction of the merged update is made equally strong, so that no source drowns another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Update, factored
from hatemtl.merging.lora import LoRAUpdate, combine
from hatemtl.merging.mean import Mean
from hatemtl.merging.sparsity import check_scale
from hatemtl.merging.spectrum import FAINT, decorrelated, norm, svd


def faint(factors: Sequence[LoRAUpdate]) -> float:
    """Gives the singular value below which a direction is rounding: to make it as strong as others would be to invent it."""
    return FAINT * max(norm(update) for update in factors)


@dataclass(frozen=True, kw_only=True)
class IsoC(Merge):
    """ΔW = scale · σ̄·U·Vᵀ, where U·Σ·Vᵀ = Σᵢ ΔWᵢ and σ̄ is the mean of Σ (Marczak et al. 2025, No task left behind,
    arXiv:2502.04959).

    The mean is over the directions that the sum has, as in the core space of Panariello et al. 2025 (arXiv:2509.17786):
    a sum of LoRAs has Σ rᵢ of them, not min(out, in), and the others would be arbitrary.
    Where sources started from one A, some are little more than what sets their A apart, and become as strong as the rest.

    One source gives itself with a flat spectrum of the same total: same directions, same sum of singular values. Full
    updates count as factors of full rank: there it is a dense SVD.
    """

    scale: float

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        factors = factored(updates)
        if factors is None:
            return Mean(weights=None)(updates, layer=layer)
        U, S, Vt = svd(combine(factors, [1.0] * len(factors)), above=faint(factors))
        return LoRAUpdate(Vt, U * S.mean(), self.scale)


@dataclass(frozen=True, kw_only=True)
class IsoCTS(Merge):
    """Iso-C whose weakest common directions give way to the sources' own (Marczak et al. 2025, No task left behind,
    arXiv:2502.04959).

    Of the R directions of Σᵢ ΔWᵢ the strongest k, about common · R, are kept. Each source adds the (R − k) / n strongest
    directions of what the common ones leave of it, ΔWᵢ − U·Uᵀ·ΔWᵢ. All are made orthonormal, and as strong as their mean.

    common: the share of common directions. k is moved so that every source adds equally many. 1 is Iso-C.

    R stands for the paper's min(out, in), as in Iso-C. One source gives what Iso-C gives. Full updates count as factors of
    full rank: there it is n + 1 dense SVDs.
    """

    common: float
    scale: float

    def __post_init__(self) -> None:
        if not 0 <= self.common <= 1:
            raise UserError(f"merge.common={self.common}: expected a share from 0 to 1; 1 is merge=iso_c")
        check_scale(self.scale)

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        factors = factored(updates)
        if factors is None:
            return Mean(weights=None)(updates, layer=layer)
        least, sources = faint(factors), len(factors)
        U, S, Vt = svd(combine(factors, [1.0] * sources), above=least)
        each = min(round((len(S) - int(len(S) * self.common)) / sources), len(S) // sources)
        k = len(S) - each * sources
        shared = U[:, :k]
        directions = [(shared, S[:k], Vt[:k])]
        for update in factors:
            own = LoRAUpdate(update.A, update.B - shared @ (shared.T @ update.B), update.scale)
            U, S, Vt = svd(own, above=least)
            directions.append((U[:, :each], S[:each], Vt[:each]))
        U = decorrelated(torch.cat([U for U, _, _ in directions], dim=1))
        V = decorrelated(torch.cat([Vt.T for _, _, Vt in directions], dim=1))
        return LoRAUpdate(V.T, U * torch.cat([S for _, S, _ in directions]).mean(), self.scale)
