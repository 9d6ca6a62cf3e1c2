"""Merges beside their papers' formulas, written again entry by entry in plain Python; each of conf/merge has one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import update, whole

from hatemtl.merging.base import Merge
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.merging.mean import Linear, Mean, TaskArithmetic
from hatemtl.merging.trimmed import DARE, DELLA, TIES, Breadcrumbs, Election, Magnitude, lots

Matrix = list[list[float]]
HERE = Path(__file__).parent
# Where the reference of the others stands: dense, and from the paper as well.
ELSEWHERE = {
    "core_space": "test_core_space.py::test_it_is_the_formula_over_dense_updates",
    "fisher": "test_fisher.py::test_it_is_the_formula_over_dense_updates",
    "iso_c": "test_iso.py::test_the_common_formula_over_dense_updates",
    "iso_cts": "test_iso.py::test_the_common_and_own_formula_over_dense_updates",
    "knots": "test_knots.py::test_it_is_the_formula_over_dense_updates",
    "learned": "test_learned.py::test_it_is_the_weighted_sum_whatever_the_order_of_the_sources",
    "lego": "test_lego.py::test_sources_that_started_alike_give_the_mean_of_like_units",
    "regmean": "test_regmean.py::test_it_is_the_formula_over_dense_updates",
    "tsv_m": "test_tsv.py::test_it_is_the_formula_over_dense_updates",
}


def rows_of(sources: Sequence[LoRAUpdate]) -> list[Matrix]:
    """Each source's scale·B·A, by the sum that a product of matrices is."""
    found = []
    for one in sources:
        A, B = one.A.double().tolist(), one.B.double().tolist()
        found.append(
            [[one.scale * sum(b[k] * A[k][j] for k in range(len(A))) for j in range(len(A[0]))] for b in B]
        )  # fmt: skip
    return found


def each(of: Callable[[list[float]], float], sources: Sequence[Matrix]) -> Matrix:
    """A function of an entry's values in all sources, entry by entry."""
    return [[of([one[i][j] for one in sources]) for j in range(len(sources[0][0]))] for i in range(len(sources[0]))]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def ranked(matrix: Matrix, least: float, most: float) -> Matrix:
    """The matrix without those shares of its entries that are least and most in magnitude."""
    entries = sorted((abs(x), i, j) for i, row in enumerate(matrix) for j, x in enumerate(row))
    stay = {(i, j) for _, i, j in entries[round(least * len(entries)) : len(entries) - round(most * len(entries))]}
    return [[x if (i, j) in stay else 0.0 for j, x in enumerate(row)] for i, row in enumerate(matrix)]


def elected(by: Election | None) -> Callable[[list[float]], float]:
    """The mean of those values that have the sign of the sum, or of most; of all where nothing is elected."""

    def of(values: list[float]) -> float:
        lead = sum(values)
        if by == "count":
            lead = sum((x > 0) - (x < 0) for x in values) or lead
        agree = [x for x in values if x * lead > 0]
        return mean(agree) if agree else 0.0

    return of if by else mean


def kept(matrix: Matrix, lot: torch.Generator, density: float, width: float) -> Matrix:
    """Entries kept by the same lots: of a row's n, the k-th least has the chance p - ε/2 + ε·k/(n - 1)."""
    n = len(matrix[0])
    drawn = torch.rand(len(matrix), n, generator=lot).tolist()
    found = []
    for row, numbers in zip(matrix, drawn, strict=True):
        rank = {j: k for k, j in enumerate(sorted(range(n), key=lambda j: abs(row[j])))}
        chances = [density - width / 2 + width * rank[j] / (n - 1) for j in range(n)]
        found.append([x / p if u < p else 0.0 for x, u, p in zip(row, numbers, chances, strict=True)])
    return found


def linear(sources: Sequence[LoRAUpdate]) -> Matrix:
    A, B = (each(mean, [getattr(one, name).double().tolist() for one in sources]) for name in "AB")
    return rows_of([LoRAUpdate(torch.tensor(A).double(), torch.tensor(B).double(), sources[0].scale)])[0]


def by_lot(merge: Any, sources: Sequence[LoRAUpdate], width: float) -> Matrix:
    draws = lots(sources, seed=merge.seed, layer="x")
    left = [kept(one, lot, merge.density, width) for one, lot in zip(rows_of(sources), draws, strict=True)]
    return [[merge.scale * x for x in row] for row in each(elected(merge.elect), left)]


def scaled(factor: float, of: Callable[[list[float]], float], sources: Sequence[Matrix]) -> Matrix:
    return [[factor * x for x in row] for row in each(of, sources)]


Reference = Callable[[Any, Sequence[LoRAUpdate]], Matrix]
WEIGHTS = [0.5, -1.0, 2.0]
HERE_TESTED: dict[str, tuple[Merge, Reference]] = {
    "mean": (Mean(weights=None), lambda _, given: each(mean, rows_of(given))),
    "task_arithmetic": (
        TaskArithmetic(scale=0.4, weights=WEIGHTS),
        lambda _, given: scaled(0.4, lambda v: sum(w * x for w, x in zip(WEIGHTS, v, strict=True)), rows_of(given)),
    ),
    "linear": (Linear(), lambda _, given: linear(given)),
    "magnitude": (
        Magnitude(density=0.3, scale=1.5),
        lambda m, given: scaled(1.5, mean, [ranked(one, 1 - m.density, 0) for one in rows_of(given)]),
    ),
    "breadcrumbs": (
        Breadcrumbs(smallest=0.6, greatest=0.05, scale=0.7),
        lambda m, given: scaled(0.7, mean, [ranked(one, m.smallest, m.greatest) for one in rows_of(given)]),
    ),
    "ties": (
        TIES(density=0.4, elect="total", scale=2.0),
        lambda m, given: scaled(2.0, elected("total"), [ranked(one, 1 - m.density, 0) for one in rows_of(given)]),
    ),
    "ties by count": (
        TIES(density=0.7, elect="count", scale=1.0),
        lambda m, given: scaled(1.0, elected("count"), [ranked(one, 1 - m.density, 0) for one in rows_of(given)]),
    ),
    "dare_linear": (DARE(density=0.5, elect=None, scale=1.2, seed=3), lambda m, given: by_lot(m, given, 0)),
    "dare_ties": (DARE(density=0.6, elect="total", scale=1.0, seed=4), lambda m, given: by_lot(m, given, 0)),
    "della": (
        DELLA(density=0.5, epsilon=0.4, elect="total", scale=0.9, seed=5),
        lambda m, given: by_lot(m, given, m.epsilon),
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", HERE_TESTED)
def test_it_is_the_papers_formula_entry_by_entry(name: str, seed: int) -> None:
    merge, reference = HERE_TESTED[name]
    scale = [2.0, -0.5, 1.0]
    given = [update(3, 2.0 if name == "linear" else scale[i], seed=10 * seed + i, out=9, into=8) for i in range(3)]
    expected = torch.tensor(reference(merge, given), dtype=torch.float64)
    assert expected.norm() > 0.1
    torch.testing.assert_close(whole(merge(given, layer="x")).double(), expected, rtol=1e-5, atol=1e-6)


def test_every_merge_has_a_reference() -> None:
    names = {path.stem for path in (HERE.parents[1] / "conf" / "merge").glob("*.yaml")}
    assert names == {*ELSEWHERE} | {name for name in HERE_TESTED if " " not in name}
    for place in ELSEWHERE.values():
        file, _, test = place.partition("::")
        assert f"def {test}(" in (HERE / file).read_text(encoding="utf-8"), place
