"""How two updates of one layer stand to each other, and what their mean keeps: angles, signs, energy."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from loras import LoRA, Matrix

NOISE = 1e-6  # of the largest singular value: what lies below is the rounding of float32
NOTHING = 1e-20  # of the energy: what a sum of updates that cancel leaves by rounding


class Update(NamedTuple):
    """A source's update of a layer: its factors, ΔW, |ΔW|, and orthonormal bases of its columns and its rows."""

    lora: LoRA
    dense: Matrix
    magnitude: Matrix
    columns: Matrix
    rows: Matrix


class Angles(NamedTuple):
    """Principal angles between two subspaces, in degrees; None where one of them is empty."""

    smallest: float | None
    mean: float | None
    largest: float | None


class Pair(NamedTuple):
    """Two sources on one layer; None where an update is zero, or no entry is moved by both."""

    layer: str
    first: str
    second: str
    cosine: float | None
    inner_product: float
    norm_first: float
    norm_second: float
    rank_first: int
    rank_second: int
    columns: Angles
    rows: Angles
    conflicts: float | None
    conflicts_by_magnitude: float | None


class Mean(NamedTuple):
    """The mean of all sources on one layer.

    sources: how many adapt it. energy: their mean ‖ΔW‖², those that do not adapt it counted as 0. spectrum: the squared
    singular values of the mean, from the largest.
    """

    layer: str
    sources: int
    energy: float
    spectrum: Matrix


def take_apart(lora: LoRA) -> Update:
    """What the comparisons of an update need, from the SVD in the small basis of its factors."""
    Qb, Rb = np.linalg.qr(lora.B)
    Qa, Ra = np.linalg.qr(lora.A.T)
    U, S, Vh = np.linalg.svd(Rb @ Ra.T, full_matrices=False)
    kept = NOISE * S.max(initial=0.0) < S  # none of an update of zero
    dense = lora.dense()
    return Update(lora, dense, np.abs(dense), Qb @ U[:, kept], Qa @ Vh[kept].T)


def inner_product(a: LoRA, b: LoRA) -> float:
    """⟨ΔW₁, ΔW₂⟩ = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ), Frobenius, without either ΔW."""
    return float(((a.B.T @ b.B) * (a.A @ b.A.T)).sum())


def norm(lora: LoRA) -> float:
    """‖ΔW‖, Frobenius."""
    return math.sqrt(max(inner_product(lora, lora), 0.0))


def principal_angles(P: Matrix, Q: Matrix) -> Matrix:
    """The angles between the spans of orthonormal columns, in degrees, from the smallest: as many as the smaller span has.

    Small ones come from sines, large ones from cosines, for the arc cosine is blind near 0 (Björck & Golub 1973).
    """
    if P.shape[1] < Q.shape[1]:
        P, Q = Q, P
    common = P.T @ Q
    cosines = np.linalg.svd(common, compute_uv=False)
    sines = np.linalg.svd(Q - P @ common, compute_uv=False)[::-1]
    radians = np.where(cosines**2 < 0.5, np.arccos(np.clip(cosines, 0, 1)), np.arcsin(np.clip(sines, 0, 1)))
    degrees: Matrix = np.degrees(radians)
    return degrees


def angles(P: Matrix, Q: Matrix) -> Angles:
    """Smallest, mean and largest principal angle."""
    if not P.shape[1] or not Q.shape[1]:
        return Angles(None, None, None)
    found = principal_angles(P, Q)
    return Angles(float(found.min()), float(found.mean()), float(found.max()))


def sign_conflicts(a: Update, b: Update) -> tuple[float | None, float | None]:
    """The share of entries with opposite signs among those that neither leaves alone: of their number, of their magnitude.

    An entry's magnitude is the smaller of the two, which is what cancels where they are opposed.
    """
    product = a.dense * b.dense
    opposed, count = product < 0, int(np.count_nonzero(product))
    smaller = np.minimum(a.magnitude, b.magnitude)
    if not count:
        return None, None
    return int(np.count_nonzero(opposed)) / count, float(smaller.sum(where=opposed) / smaller.sum())


def compare(layer: str, first: str, second: str, a: Update, b: Update) -> Pair:
    """Two sources on one layer."""
    norm_first, norm_second, inner = norm(a.lora), norm(b.lora), inner_product(a.lora, b.lora)
    conflicts, by_magnitude = sign_conflicts(a, b)
    return Pair(
        layer=layer,
        first=first,
        second=second,
        cosine=inner / (norm_first * norm_second) if norm_first and norm_second else None,
        inner_product=inner,
        norm_first=norm_first,
        norm_second=norm_second,
        rank_first=a.columns.shape[1],
        rank_second=b.columns.shape[1],
        columns=angles(a.columns, b.columns),
        rows=angles(a.rows, b.rows),
        conflicts=conflicts,
        conflicts_by_magnitude=by_magnitude,
    )


def mean_of(layer: str, loras: Sequence[LoRA], sources: int) -> Mean:
    """The mean over `sources` of which these adapt the layer, in the small basis of all their factors."""
    energy = sum(inner_product(lora, lora) for lora in loras) / sources
    _, Rb = np.linalg.qr(np.hstack([lora.B for lora in loras]))
    _, Ra = np.linalg.qr(np.vstack([lora.A for lora in loras]).T)
    spectrum = np.square(np.linalg.svd(Rb @ Ra.T, compute_uv=False) / sources)
    return Mean(layer, len(loras), energy, np.where(spectrum > NOTHING * energy, spectrum, 0.0))


def kept(means: Iterable[Mean]) -> float | None:
    """‖mean‖² over the mean of ‖ΔW‖², summed over these layers: what does not cancel; None where all updates are zero."""
    energy, left = (sum(values) for values in zip(*((mean.energy, mean.spectrum.sum()) for mean in means), strict=True))
    return float(left / energy) if energy > 0 else None


def lost(means: Iterable[Mean], rank: int) -> float:
    """The share of the energy of the mean that its best approximation of a rank lacks (Eckart & Young 1936)."""
    tail, total = (sum(values) for values in zip(*((m.spectrum[rank:].sum(), m.spectrum.sum()) for m in means), strict=True))
    return float(tail / total) if total > 0 else 0.0
