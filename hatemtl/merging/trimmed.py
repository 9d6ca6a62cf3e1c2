"""Merges that leave out entries by their magnitude: magnitude pruning, TIES, breadcrumbs."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Update, dense
from hatemtl.merging.election import Election, agreeing_mean
from hatemtl.merging.sparsity import between, check_density, check_scale


@dataclass(frozen=True, kw_only=True)
class Magnitude(Merge):
    """The mean of each source's greatest entries: λ/n·Σ top(ΔWᵢ), the other entries counting as 0.

    Pruning by magnitude is of Han et al. 2015, arXiv:1506.02626; PEFT's `magnitude_prune` with weights 1/n is this.

    density: the share of a source's entries in this layer that are kept.
    scale: λ.

    From one source: λ·ΔW, whole.
    """

    density: float
    scale: float

    def __post_init__(self) -> None:
        check_density(self.density)
        check_scale(self.scale)

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Tensor:
        return self.scale * between(dense(updates), smallest=1 - self.density, greatest=0).mean(0)


@dataclass(frozen=True, kw_only=True)
class TIES(Merge):
    """λ·(mean of those of each source's greatest entries that have the elected sign): trim, elect sign, merge.

    Yadav et al. 2023, TIES-merging, arXiv:2306.01708; trimmed by layer, as PEFT does, and not over the whole model.

    density: the share of a source's entries in this layer that are kept; 1 gives the mean wherever the sources agree.
    elect: `total`, the sign of the sum, or `count`, that of the most sources.
    scale: λ.

    Other than PEFT's `ties`: of n entries n - round((1 - density)·n) are kept, there int(density·n); where as many sources
    say plus as minus, `count` takes the sign of the sum, there plus; where nothing wins, the result is 0.

    From one source: λ·ΔW, whole.
    """

    density: float
    elect: Election
    scale: float

    def __post_init__(self) -> None:
        check_density(self.density)
        check_scale(self.scale)

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Tensor:
        return self.scale * agreeing_mean(between(dense(updates), smallest=1 - self.density, greatest=0), self.elect)


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(Merge):
    """The mean of each source's entries between two tails: λ/n·Σ mᵢ⊙ΔWᵢ, mᵢ masking outliers and what hardly moved.

    Davari & Belilovsky 2024, Model breadcrumbs, arXiv:2312.06795, whose factor of the sum is λ/n here.

    smallest, greatest: the shares of a source's entries in this layer that are left out at either end.
    scale: λ.

    From one source: λ·ΔW, whole.
    """

    smallest: float
    greatest: float
    scale: float

    def __post_init__(self) -> None:
        for key, share in (("smallest", self.smallest), ("greatest", self.greatest)):
            if not 0 <= share < 1:
                raise UserError(f"merge.{key}={share}: expected the share of the entries to leave out, from 0 and below 1")
        if self.smallest + self.greatest >= 1:
            raise UserError(
                f"merge.smallest={self.smallest} and merge.greatest={self.greatest} leave nothing; "
                f"type merge.smallest=0.85 merge.greatest=0.01"
            )
        check_scale(self.scale)

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Tensor:
        return self.scale * between(dense(updates), smallest=self.smallest, greatest=self.greatest).mean(0)
