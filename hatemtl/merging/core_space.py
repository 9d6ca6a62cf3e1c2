"""Merges in Core Space: entries of the small core matrices that the updates are in one common basis."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hatemtl.merging.base import Merge, Update, factored, merged_inside
from hatemtl.merging.lora import Basis, LoRAUpdate, combine
from hatemtl.merging.mean import Mean
from hatemtl.merging.spectrum import EXACT, canonical, cleared


@dataclass(frozen=True, kw_only=True)
class CoreSpace(Merge):
    """ΔW = U·inner(M₁, …, Mₙ)·Vᵀ with Mᵢ = Uᵀ·ΔWᵢ·V (Panariello et al. 2025, Accurate and efficient low-rank model merging
    in core space, arXiv:2509.17786).

    U holds the left singular vectors of [s₁B₁ … sₙBₙ], V the right ones of the stacked A's; the paper has no scale, here it
    goes with B. Both span all updates, so ΔWᵢ = U·Mᵢ·Vᵀ exactly. The paper's basis is kept, since the entries of the Mᵢ,
    and so a merge of entries, depend on it.

    inner: any merge of entries; it gets n tensors (p, q), p, q ≤ Σ rᵢ. A linear one gives its own result on the ΔWᵢ.

    Full updates count as factors of full rank: there it is a dense SVD. One source gives inner(that source).
    """

    inner: Merge

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        factors = factored(updates)
        if factors is None:
            return Mean(weights=None)(updates, layer=layer)
        stacked = combine([factors[i] for i in canonical(factors)], [1.0] * len(factors))
        left, along_out, _ = torch.linalg.svd(stacked.B, full_matrices=False)
        right, along_in, _ = torch.linalg.svd(stacked.A.T, full_matrices=False)
        # All cores are zero along a singular value of zero, whose vector is arbitrary.
        p, q = (int(S.gt(EXACT * S[:1]).sum()) for S in (along_out, along_in))
        if not p or not q:
            return factors[0].nothing()
        basis = Basis(left[:, :p], right[:, :q])
        cores = cleared(torch.stack([basis.core(update) for update in factors]))
        core = merged_inside(self.inner, list(cores), layer=layer)
        return basis.update(core) if q <= p else LoRAUpdate(core @ basis.Q_in.T, basis.Q_out)
