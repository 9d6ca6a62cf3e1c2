"""Merges by RegMean: the weights whose outputs are nearest to every source's outputs on posts, layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, Needs, Update, average, factored, statistics_of
from hatemtl.merging.lora import LoRAUpdate

ROWS = 64  # of a block; to move single ones is slow


def gram(inputs: Tensor) -> Tensor:
    """Computes Xᵀ·X (in, in) of a linear layer's inputs X (..., in), in double precision; add up over batches.

    Padding is no input: leave it out before. To weigh all sources alike divide by the number of tokens.
    """
    X = inputs.flatten(end_dim=-2).double()
    return X.T @ X


def packed(G: Tensor) -> Tensor:
    """Packs a symmetric (n, n) in a quarter of the memory: blocks of rows from their diagonal on, in single precision."""
    return torch.cat([G[i : i + ROWS, i:].float().flatten() for i in range(0, len(G), ROWS)])


def unpacked(entries: Tensor, width: int) -> Tensor:
    """Unpacks the symmetric matrix (width, width), in double precision."""
    G = torch.empty(width, width, dtype=torch.float64, device=entries.device)
    for i, block in zip(range(0, width, ROWS), entries.split(_sizes(width)), strict=True):
        rows = block.view(-1, width - i)
        G[i : i + ROWS, i:] = rows
        G[i:, i : i + ROWS] = rows.T
    return G


def _sizes(width: int) -> list[int]:
    """Counts the entries of each block."""
    return [min(ROWS, width - i) * (width - i) for i in range(0, width, ROWS)]


@dataclass(frozen=True, kw_only=True)
class RegMean(Merge):
    """ΔW = (Σ ΔWᵢ·Gᵢ)·(Σ Gᵢ)⁻¹ (Jin et al. 2023, Dataless knowledge fusion by merging weights of language models,
    arXiv:2212.09849), Gᵢ = Xᵢᵀ·Xᵢ the Gram matrix (in, in) of the layer's inputs as source i computes them.

    It minimizes Σ ‖Xᵢ·Wᵀ − Xᵢ·Wᵢᵀ‖², the distance of outputs. The weights Wᵢ = W₀ + ΔWᵢ start from the same W₀, so the
    formula for them is the one for the updates.

    alpha: what is left of the Gram matrices' entries off the diagonal, 0 to 1; the paper's 0.9 keeps them from overfitting.
    ridge: a pull to the plain mean, Gᵢ + ridge·g·I, g the mean of all diagonals: it decides where the inputs say nothing.
    With alpha 1 and fewer tokens than the layer is wide, one below 1e-4 is hardly above what packed matrices are rounded by.

    posts: how many training posts each source reads for its Gram matrices.

    One source gives that source. A layer without statistics of every source, or one that is no matrix, gets the mean.
    """

    alpha: float
    ridge: float
    posts: int
    statistics: Sequence[Mapping[str, Tensor]] | None = None  # each (in, in), or `packed`
    needs: ClassVar[Needs] = "gram"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"merge.alpha={self.alpha}: expected a number from 0 (diagonals) to 1 (whole Gram matrices)")
        if not 0 < self.ridge < float("inf"):
            raise UserError(f"merge.ridge={self.ridge}: expected a number over 0, such as 1e-6")
        if self.posts < 1:
            raise UserError(f"merge.posts={self.posts}: expected a whole number from 1, such as 512")

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        if self.statistics is None:
            raise UserError(
                "merge=regmean weighs the sources by the Gram matrices of their layers' inputs, which are gathered from "
                "posts during a run; where no posts are at hand use merge=mean"
            )
        if len(updates[0].shape) != 2:
            return average(updates)
        width = updates[0].shape[-1]
        as_packed = all(layer in source and source[layer].ndim == 1 for source in self.statistics)
        shape = (sum(_sizes(width)),) if as_packed else (width, width)
        grams = statistics_of(layer, self.statistics, sources=len(updates), shape=shape)
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
        rows = [
            row + update.A * ((1 - self.alpha) * diagonal + pull)
            for row, update, diagonal in zip(rows, factors, diagonals, strict=True)
        ]
        whole.mul_(self.alpha).diagonal().copy_(torch.stack(diagonals).sum(dim=0) + len(grams) * pull)
        factor, failed = torch.linalg.cholesky_ex(whole)
        if failed:
            raise UserError(
                f"merge.ridge={self.ridge} is too small for the Gram matrices of {layer}, which leave inputs undecided; "
                f"type merge.ridge={max(100 * self.ridge, 1e-9):g}"
            )
        A = torch.cholesky_solve(torch.cat(rows).T, factor).T
        return LoRAUpdate(A, torch.cat([update.scale * update.B for update in factors], dim=1))
