"""Merges that weigh sources by what posts tell of their layers, and what is gathered for it: RegMean, Fisher.

As the weights Wᵢ = W₀ + ΔWᵢ start from the same W₀, a formula for them is the one for the updates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Needs, Update, average, dense, factored
from hatemtl.merging.lora import LoRAUpdate

ROWS = 64  # of a block; to move single ones is slow


def gram(inputs: Tensor) -> Tensor:
    """Computes Xᵀ·X (in, in) of a linear layer's inputs X (..., in) without padding, in double precision."""
    X = inputs.flatten(end_dim=-2).double()
    return X.T @ X


def packed(G: Tensor) -> Tensor:
    """Packs a symmetric (n, n) in a quarter of the memory: blocks of rows from their diagonal on, in single precision."""
    return torch.cat([G[i : i + ROWS, i:].float().flatten() for i in range(0, len(G), ROWS)])


def unpacked(entries: Tensor, width: int) -> Tensor:
    """Unpacks the symmetric matrix (width, width), in double precision."""
    G = torch.empty(width, width, dtype=torch.float64, device=entries.device)
    for i, block in zip(range(0, width, ROWS), entries.split(sizes(width)), strict=True):
        rows = block.view(-1, width - i)
        G[i : i + ROWS, i:] = rows
        G[i:, i : i + ROWS] = rows.T
    return G


def sizes(width: int) -> list[int]:
    """Counts the entries of each block of a packed matrix."""
    return [min(ROWS, width - i) * (width - i) for i in range(0, width, ROWS)]


def fisher(inputs: Tensor, gradients: Tensor) -> Tensor:
    """Sums the squared gradients of a linear layer's weight over posts, (out, in), in double precision.

    inputs: what went into the layer (posts, tokens, in); gradients: of each post's own log-likelihood at what came out
    (posts, tokens, out). A post's gradient is Σ over its tokens, so padding must be zero in one of them.
    """
    total = torch.zeros(gradients.shape[-1], inputs.shape[-1], dtype=torch.float64, device=inputs.device)
    for x, g in zip(inputs.double(), gradients.double(), strict=True):
        total += (g.T @ x).square()
    return total


def _of_layer(
    layer: str, statistics: Sequence[Mapping[str, Tensor]] | None, what: str, *, sources: int, shape: tuple[int, ...]
) -> list[Tensor] | None:
    """Gives each source's statistic of a layer, in double precision; None where any source has none of it."""
    if statistics is None:
        raise UserError(f"{what} gathered from posts during a run; where no posts are at hand use merge=mean")
    if len(statistics) != sources:
        raise UserError(f"statistics of {len(statistics)} sources for {sources} sources; gather one of each")
    if not all(layer in source for source in statistics):
        return None
    found = [source[layer].double() for source in statistics]
    for number, own in enumerate(found, 1):
        if tuple(own.shape) != shape:
            raise UserError(
                f"source {number}'s statistic of {layer} has shape {tuple(own.shape)}, expected {shape}; gather it from the "
                f"encoder that the sources adapt"
            )
        if not torch.isfinite(own).all():
            raise UserError(
                f"source {number}'s statistic of {layer} holds what is no finite number; gather it in single precision, or "
                f"leave the source out"
            )
    return found


def _check(posts: int, key: str, pull: float) -> None:
    """Raises UserError where a merge reads no posts, or its pull to the mean decides nothing."""
    if not 0 < pull < float("inf"):
        raise UserError(f"merge.{key}={pull}: expected a number over 0, such as 1e-6")
    if posts < 1:
        raise UserError(f"merge.posts={posts}: expected a whole number from 1, such as 512")


@dataclass(frozen=True, kw_only=True)
class RegMean(Merge):
    """ΔW = (Σ ΔWᵢ·Gᵢ)·(Σ Gᵢ)⁻¹ (Jin et al. 2023, Dataless knowledge fusion by merging weights of language models,
    arXiv:2212.09849), Gᵢ = Xᵢᵀ·Xᵢ the Gram matrix (in, in) of the layer's inputs as source i computes them.

    It minimizes Σ ‖Xᵢ·Wᵀ − Xᵢ·Wᵢᵀ‖², the distance of outputs. What is no matrix gets the mean.

    alpha: what is left of the Gram matrices' entries off the diagonal; the paper's 0.9 keeps them from overfitting.
    ridge: Gᵢ + ridge·g·I, g the mean of all diagonals. With alpha 1 and fewer tokens than the layer is wide, one below 1e-4
    is hardly above what packed matrices are rounded by.
    """

    alpha: float
    ridge: float
    posts: int
    statistics: Sequence[Mapping[str, Tensor]] | None = None  # each (in, in), or `packed`
    is_mean = True
    needs: ClassVar[Needs] = "gram"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"merge.alpha={self.alpha}: expected a number from 0 (diagonals) to 1 (whole Gram matrices)")
        _check(self.posts, "ridge", self.ridge)

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        if self.statistics is not None and len(updates[0].shape) != 2:
            return average(updates)
        width = updates[0].shape[-1]
        as_packed = all(layer in source and source[layer].ndim == 1 for source in self.statistics or ())
        shape = (sum(sizes(width)),) if as_packed else (width, width)
        what = "merge=regmean weighs the sources by the Gram matrices of their layers' inputs, which are"
        grams = _of_layer(layer, self.statistics, what, sources=len(updates), shape=shape)
        if grams is None or not any(G.any() for G in grams):
            return average(updates)
        factors, rows, diagonals = factored(updates), [], []
        whole = torch.zeros(width, width, dtype=torch.float64, device=grams[0].device)
        for update, own in zip(factors, grams, strict=True):
            G = unpacked(own, width) if as_packed else own
            diagonals.append(G.diagonal().clone())
            rows.append(self.alpha * update.A @ G)
            whole += G
        pull = self.ridge * torch.stack(diagonals).mean()
        for row, update, diagonal in zip(rows, factors, diagonals, strict=True):
            row += update.A * ((1 - self.alpha) * diagonal + pull)
        whole.mul_(self.alpha).diagonal().copy_(torch.stack(diagonals).sum(dim=0) + len(grams) * pull)
        factor, failed = torch.linalg.cholesky_ex(whole)
        if failed:
            raise UserError(
                f"merge.ridge={self.ridge} is too small for the Gram matrices of {layer}, which leave inputs undecided; "
                f"type merge.ridge={max(100 * self.ridge, 1e-9):g}"
            )
        A = torch.cholesky_solve(torch.cat(rows).T, factor).T
        return LoRAUpdate(A, torch.cat([update.scale * update.B for update in factors], dim=1))


@dataclass(frozen=True, kw_only=True)
class Fisher(Merge):
    """ΔW = Σ Fᵢ ⊙ ΔWᵢ / Σ Fᵢ, entry by entry (Matena & Raffel 2022, Merging models with Fisher-weighted averaging,
    arXiv:2111.09832), Fᵢ the diagonal Fisher information of source i's weights: the mean squared gradient of its
    log-likelihood.

    It is the most likely weight if each source is a normal distribution with precision Fᵢ around its own. What nobody
    gathered, of fully trained encoders all but the weights of linear layers, gets the mean.

    normalize: divide each source's Fᵢ by its norm over all layers. floor: Fᵢ + floor · the mean of all F in the layer.
    """

    normalize: bool
    floor: float
    posts: int
    statistics: Sequence[Mapping[str, Tensor]] | None = None
    is_mean = True
    needs: ClassVar[Needs] = "fisher"

    def __post_init__(self) -> None:
        _check(self.posts, "floor", self.floor)

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        what = "merge=fisher weighs the sources by the Fisher information of their weights, which is"
        given = _of_layer(layer, self.statistics, what, sources=len(updates), shape=tuple(updates[0].shape))
        if given is None:
            return average(updates)
        shares = [1 / size if self.normalize and size > 0 else 1.0 for size in self._norms]
        pull = self.floor * torch.stack([share * own.mean() for share, own in zip(shares, given, strict=True)]).mean()
        if not pull:
            return average(updates)
        weighted, weights = torch.zeros_like(given[0]), torch.zeros_like(given[0])
        for update, own, share in zip(updates, given, shares, strict=True):  # of dense matrices, few at once
            F = share * own + pull
            weights += F
            weighted += F.mul_(dense([update])[0])
        return weighted / weights

    @cached_property
    def _norms(self) -> list[float]:
        return [sum(float(F.double().square().sum()) for F in of.values()) ** 0.5 for of in self.statistics or ()]
