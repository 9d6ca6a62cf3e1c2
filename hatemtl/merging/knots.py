"""Merges by KnOTS: entries, after the sources are turned into one basis of the outputs, the SVD of all updates abreast."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hatemtl.merging.base import Merge, Update, factored, merged_inside
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.merging.mean import Mean
from hatemtl.merging.spectrum import EXACT, canonical, cleared, norm, svd


@dataclass(frozen=True, kw_only=True)
class KnOTS(Merge):
    """[ΔW₁ … ΔWₙ] = U·Σ·[V₁ᵀ … Vₙᵀ], then ΔW = U·Σ·inner(V₁ᵀ, …, Vₙᵀ) (Stoica et al. 2025, Model merging with SVD to tie
    the knots, arXiv:2410.19735).

    inner: any merge of entries; it gets n tensors (k, in), k the rank of all updates together.
    sigma_inside: merge the Σ·Vᵢᵀ in place of the Vᵢᵀ, as the authors' code does. Then a formula that trims small entries
    (TIES) keeps what changes the weights most. A linear inner merge gives the same either way: its own result on the ΔWᵢ.

    The SVD is taken of the factors. Full updates count as factors of full rank: there it is a dense SVD of (out, n·in).
    One source gives inner(that source).
    """

    inner: Merge
    sigma_inside: bool

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        factors = factored(updates)
        if factors is None:
            return Mean(weights=None)(updates, layer=layer)
        order = canonical(factors)
        abreast = LoRAUpdate(
            torch.block_diag(*(factors[i].A for i in order)),
            torch.cat([factors[i].scale * factors[i].B for i in order], dim=1),
        )
        U, S, Vt = svd(abreast, above=EXACT * norm(abreast))
        if not len(S):
            return factors[0].nothing()
        rows = cleared(S[:, None] * Vt if self.sigma_inside else Vt)
        parts = dict(zip(order, rows.chunk(len(factors), dim=1), strict=True))
        merged = merged_inside(self.inner, [parts[i] for i in range(len(factors))], layer=layer)
        return LoRAUpdate(merged, U if self.sigma_inside else U * S)
