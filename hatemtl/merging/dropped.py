"""Merges that leave out entries by lot and make the others greater for it: DARE, DELLA."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Update, dense
from hatemtl.merging.election import Election, agreeing_mean
from hatemtl.merging.sparsity import by_lot, check_density, check_scale, lots


@dataclass(frozen=True, kw_only=True)
class DARE(Merge):
    """λ times the mean, or the TIES merge, of sources of which a share of entries is dropped, the others divided by density.

    Yu et al. 2024, Language models are Super Mario, arXiv:2311.03099.

    density: the chance of an entry to be kept.
    elect: None takes the mean, whose expectation is the sources' mean; `total` or `count` the mean of those that have the
    elected sign, which is too great by up to 1/density, for it counts the kept ones alone.
    scale: λ.
    seed: of the lots, which belong to what a source holds: equal sources draw alike, in any order.

    From one source: λ·ΔW, whole.
    """

    density: float
    elect: Election | None
    scale: float
    seed: int

    def __post_init__(self) -> None:
        check_density(self.density)
        check_scale(self.scale)

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Tensor:
        drawn = lots(updates, seed=self.seed, layer=layer)
        kept = by_lot(dense(updates), drawn, density=self.density, epsilon=0)
        return self.scale * (kept.mean(0) if self.elect is None else agreeing_mean(kept, self.elect))


@dataclass(frozen=True, kw_only=True)
class DELLA(Merge):
    """Drop, elect, fuse: as DARE, but the greater an entry among those of its row, the better its chance to be kept.

    Deep et al. 2024, DELLA-merging, arXiv:2406.11617 (MAGPRUNE). The chance rises with the rank of the magnitude in the row,
    in equal steps from density - epsilon / 2 to density + epsilon / 2, and what is kept is divided by it.

    epsilon: how far the chances lie apart; 0 makes it DARE. The other keywords and what one source gives: as DARE's.
    """

    density: float
    epsilon: float
    elect: Election | None
    scale: float
    seed: int

    def __post_init__(self) -> None:
        check_density(self.density)
        half = self.epsilon / 2
        if not (0 <= half < self.density and self.density + half <= 1):
            raise UserError(
                f"merge.epsilon={self.epsilon} with merge.density={self.density}: expected a width from 0 that leaves the "
                f"chances density ± epsilon / 2 above 0 and up to 1; type merge.epsilon="
                f"{min(self.density, 1 - self.density):g}"
            )
        check_scale(self.scale)

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Tensor:
        drawn = lots(updates, seed=self.seed, layer=layer)
        kept = by_lot(dense(updates), drawn, density=self.density, epsilon=self.epsilon)
        return self.scale * (kept.mean(0) if self.elect is None else agreeing_mean(kept, self.elect))
