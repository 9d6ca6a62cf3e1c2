"""Merges by TSV-M: the strongest singular directions of every source, made orthogonal to those of the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Update, factored
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.merging.mean import Mean
from hatemtl.merging.sparsity import check_scale
from hatemtl.merging.spectrum import FAINT, decorrelated, norm, svd


@dataclass(frozen=True, kw_only=True)
class TSVM(Merge):
    """ΔW = scale · U⊥·Σ·V⊥ᵀ (Gargiulo et al. 2025, Task singular vectors, arXiv:2412.00081).

    U, Σ and V are the sources' greatest singular values and their vectors, side by side; U⊥ and V⊥ are the orthonormal
    matrices nearest to U and V, so that no source's direction writes into another's.

    share: of the layer's min(out, in) singular vectors, how many a source gives, at least one. None is 1 / n, the paper's.
    A LoRA has only as many as its rank, so it gives all of them unless its rank exceeds min(out, in) / n. Vectors of
    singular values of zero are arbitrary and left out.

    Sources that started from one A have nearly equal V. The nearest orthonormal ones then stand on what little sets the
    sources apart, so the merge is far from their sum.

    One source gives scale · that source, and so do n equal ones where 1 / n keeps them whole: what they share is not
    counted twice. Full updates count as factors of full rank: there it is a dense SVD a source.
    """

    share: float | None
    scale: float

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share <= 1:
            raise UserError(f"merge.share={self.share}: expected a share over 0 and up to 1, or null for 1 / sources")
        check_scale(self.scale)

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        factors = factored(updates)
        if factors is None:
            return Mean(weights=None)(updates, layer=layer)
        width = min(factors[0].shape)
        most = max(1, width // len(factors) if self.share is None else int(width * self.share))
        directions = [svd(update, above=FAINT * norm(update)) for update in factors]
        U = torch.cat([U[:, :most] for U, _, _ in directions], dim=1)
        S = torch.cat([S[:most] for _, S, _ in directions])
        V = torch.cat([Vt[:most].T for _, _, Vt in directions], dim=1)
        return LoRAUpdate(decorrelated(V).T, decorrelated(U) * S, self.scale)
