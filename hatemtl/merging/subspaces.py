"""Merges in bases of singular vectors, found from the updates' factors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Update, merged_inside, of_factors
from hatemtl.merging.lora import LoRAUpdate, combine, norm, svd

EXACT = 1e-12  # of an update's norm: a singular value below it is rounding in double precision
FAINT = 1e-6  # of an update's norm: one below it may be rounding of factors kept in single precision, and is no direction


@dataclass(frozen=True, kw_only=True)
class CoreSpace(Merge):
    """ΔW = U·inner(M₁, …, Mₙ)·Vᵀ with Mᵢ = Uᵀ·ΔWᵢ·V (Panariello et al. 2025, Accurate and efficient low-rank model merging
    in core space, arXiv:2509.17786).

    U holds the left singular vectors of [s₁B₁ … sₙBₙ], V the right ones of the stacked A's; the paper has no scale, here it
    goes with B. Both span all updates, so ΔWᵢ = U·Mᵢ·Vᵀ exactly. inner gets n tensors (p, q), p, q ≤ Σ rᵢ; a linear one
    gives its own result on the ΔWᵢ.
    """

    inner: Merge

    @of_factors
    def __call__(self, updates: Sequence[LoRAUpdate], *, layer: str) -> Update:
        stacked = combine([updates[i] for i in canonical(updates)])
        left, along_out, _ = torch.linalg.svd(stacked.B, full_matrices=False)
        right, along_in, _ = torch.linalg.svd(stacked.A.T, full_matrices=False)
        # All cores are zero along a singular value of zero, whose vector is arbitrary.
        p, q = (int(S.gt(EXACT * S[:1]).sum()) for S in (along_out, along_in))
        if not p or not q:
            return updates[0].nothing()
        U, V = left[:, :p], right[:, :q]
        cores = cleared(torch.stack([one.scale * (U.T @ one.B) @ (one.A @ V) for one in updates]))
        core = merged_inside(self.inner, list(cores), layer=layer)
        return LoRAUpdate(V.T, U @ core) if q <= p else LoRAUpdate(core @ V.T, U)


@dataclass(frozen=True, kw_only=True)
class KnOTS(Merge):
    """[ΔW₁ … ΔWₙ] = U·Σ·[V₁ᵀ … Vₙᵀ], then ΔW = U·Σ·inner(V₁ᵀ, …, Vₙᵀ) (Stoica et al. 2025, Model merging with SVD to tie
    the knots, arXiv:2410.19735).

    inner gets n tensors (k, in), k the rank of all updates together; a linear one gives its own result on the ΔWᵢ.
    sigma_inside: merge the Σ·Vᵢᵀ in place of the Vᵢᵀ, as the authors' code does.
    """

    inner: Merge
    sigma_inside: bool

    @of_factors
    def __call__(self, updates: Sequence[LoRAUpdate], *, layer: str) -> Update:
        order = canonical(updates)
        abreast = LoRAUpdate(
            torch.block_diag(*(updates[i].A for i in order)),
            torch.cat([updates[i].scale * updates[i].B for i in order], dim=1),
        )
        U, S, Vt = svd(abreast, above=EXACT * norm(abreast))
        if not len(S):
            return updates[0].nothing()
        rows = cleared(S[:, None] * Vt if self.sigma_inside else Vt)
        parts = dict(zip(order, rows.chunk(len(updates), dim=1), strict=True))
        merged = merged_inside(self.inner, [parts[i] for i in range(len(updates))], layer=layer)
        return LoRAUpdate(merged, U if self.sigma_inside else U * S)


@dataclass(frozen=True, kw_only=True)
class IsoC(Merge):
    """ΔW = scale · σ̄·U·Vᵀ, where U·Σ·Vᵀ = Σᵢ ΔWᵢ and σ̄ is the mean of Σ (Marczak et al. 2025, No task left behind,
    arXiv:2502.04959): all directions equally strong, so that no source drowns another.

    The mean is over the Σ rᵢ directions that a sum of LoRAs has, as Panariello et al. 2025 (arXiv:2509.17786) take it.
    Where sources started from one A, some are little more than what sets their A apart, and become as strong as the rest.
    """

    scale: float

    @of_factors
    def __call__(self, updates: Sequence[LoRAUpdate], *, layer: str) -> Update:
        U, S, Vt = svd(combine(updates), above=FAINT * max(map(norm, updates)))
        return LoRAUpdate(Vt, U * S.mean(), self.scale)


@dataclass(frozen=True, kw_only=True)
class IsoCTS(Merge):
    """Iso-C whose weakest common directions give way to the sources' own (Marczak et al. 2025, as `IsoC`).

    Of the R directions of Σᵢ ΔWᵢ, R for the paper's min(out, in), the strongest k, about common · R, are kept. Each source
    adds the (R − k) / n strongest directions of what the common ones leave of it, ΔWᵢ − U·Uᵀ·ΔWᵢ. All are made orthonormal,
    and as strong as their mean. k is moved so that every source adds equally many.
    """

    common: float
    scale: float

    def __post_init__(self) -> None:
        if not 0 <= self.common <= 1:
            raise UserError(f"merge.common={self.common}: expected a share from 0 to 1; 1 is merge=iso_c")
        super().__post_init__()

    @of_factors
    def __call__(self, updates: Sequence[LoRAUpdate], *, layer: str) -> Update:
        least = FAINT * max(map(norm, updates))
        U, S, Vt = svd(combine(updates), above=least)
        each = min(round((len(S) - int(len(S) * self.common)) / len(updates)), len(S) // len(updates))
        k = len(S) - each * len(updates)
        shared = U[:, :k]
        directions = [(shared, S[:k], Vt[:k])]
        for update in updates:
            own = LoRAUpdate(update.A, update.B - shared @ (shared.T @ update.B), update.scale)
            U, S, Vt = svd(own, above=least)
            directions.append((U[:, :each], S[:each], Vt[:each]))
        U, S, V = _abreast(directions)
        return LoRAUpdate(decorrelated(V).T, decorrelated(U) * S.mean(), self.scale)


@dataclass(frozen=True, kw_only=True)
class TSVM(Merge):
    """ΔW = scale · U⊥·Σ·V⊥ᵀ (Gargiulo et al. 2025, Task singular vectors, arXiv:2412.00081).

    U, Σ and V are the sources' greatest singular values and their vectors, side by side; U⊥ and V⊥ are the orthonormal
    matrices nearest to U and V, so that no source's direction writes into another's, and what equal ones share is not
    counted twice. A source gives one at least, and a LoRA no more than its rank.

    Sources that started from one A have nearly equal V. The nearest orthonormal ones then stand on what little sets the
    sources apart, so the merge is far from their sum.
    """

    share: float | None
    scale: float

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share <= 1:
            raise UserError(f"merge.share={self.share}: expected a share over 0 and up to 1, or null for 1 / sources")
        super().__post_init__()

    @of_factors
    def __call__(self, updates: Sequence[LoRAUpdate], *, layer: str) -> Update:
        width = min(updates[0].shape)
        most = max(1, width // len(updates) if self.share is None else int(width * self.share))
        found = [svd(update, above=FAINT * norm(update)) for update in updates]
        U, S, V = _abreast([(U[:, :most], S[:most], Vt[:most]) for U, S, Vt in found])
        return LoRAUpdate(decorrelated(V).T, decorrelated(U) * S, self.scale)


def canonical(updates: Sequence[LoRAUpdate]) -> list[int]:
    """Sorts the places of the updates by their norm and sum: so a basis is the same to the last digit in any order of them.

    A merge of entries that draws by lot needs that: what it draws depends on every digit.
    """
    content = [(norm(some), some.scale * float(some.B.sum(dim=0) @ some.A.sum(dim=1))) for some in updates]
    return sorted(range(len(updates)), key=content.__getitem__)


def cleared(values: Tensor) -> Tensor:
    """Clears values that are rounding beside the greatest to 0, lest they have a vote where entries are merged."""
    return torch.where(values.abs() > EXACT * values.abs().amax(), values, 0.0)


def decorrelated(columns: Tensor) -> Tensor:
    """Finds the orthonormal columns (d, k) nearest to unit ones (d, k): P·Qᵀ of their SVD P·D·Qᵀ (orthogonal Procrustes).

    Where columns depend on each other P·Qᵀ is of the directions that are there: equal columns share one evenly.
    """
    P, D, Qt = torch.linalg.svd(columns, full_matrices=False)
    k = int(D.gt(FAINT).sum())
    return P[:, :k] @ Qt[:k]


def _abreast(directions: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Puts U (out, k), σ (k,) and Vᵀ (k, in) of several side by side: U (out, Σ k), σ (Σ k,), V (in, Σ k)."""
    U, S, Vt = zip(*directions, strict=True)
    return torch.cat(U, dim=1), torch.cat(S), torch.cat([some.T for some in Vt], dim=1)
