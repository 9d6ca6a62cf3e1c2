"""Two updates of a layer and their mean, against numbers worked out by hand and against dense matrices."""

import math
from typing import Any

import numpy as np
import pytest
from loras import LoRA
from numpy.typing import NDArray
from overlap import Pair, compare, kept, lost, mean_of, principal_angles, take_apart
from saved_loras import draw
from scipy.linalg import subspace_angles


def outer(column: list[float], row: list[float]) -> LoRA:
    """An update of rank 1."""
    return LoRA(np.array([row], dtype=float), np.array([column], dtype=float).T)


def lora(rank: int, out: int = 12, into: int = 8, *, seed: int = 0) -> LoRA:
    A, B = draw(rank, out, into, seed=seed)
    return LoRA(A.astype(float), B.astype(float))


def pair(a: LoRA, b: LoRA) -> Pair:
    return compare("layer", "a", "b", take_apart(a), take_apart(b))


def times(factor: float, a: LoRA) -> LoRA:
    return LoRA(a.A, factor * a.B)


def basis(matrix: NDArray[Any]) -> NDArray[Any]:
    """An orthonormal basis of the columns, by the SVD of the dense matrix."""
    U, _, _ = np.linalg.svd(matrix)
    return U[:, : np.linalg.matrix_rank(matrix, rtol=1e-6)]


def test_updates_of_other_entries_meet_nowhere() -> None:
    found = pair(outer([1, 0, 0], [2, 0]), outer([0, 0, 1], [0, 5]))
    assert (found.cosine, found.norm_first, found.norm_second) == (0, 2, 5)
    assert found.columns == pytest.approx((90, 90, 90))
    assert found.rows == pytest.approx((90, 90, 90))
    assert (found.conflicts, found.conflicts_by_magnitude) == (None, None)


def test_orthogonal_updates_of_the_same_entries() -> None:
    """All ones, and ones above minus ones: half of the entries agree; they read the same and write apart."""
    found = pair(outer([1, 1], [1, 1]), outer([1, -1], [1, 1]))
    assert found.cosine == pytest.approx(0, abs=1e-15)
    assert found.columns == pytest.approx((90, 90, 90))
    assert found.rows == pytest.approx((0, 0, 0), abs=1e-6)
    assert (found.conflicts, found.conflicts_by_magnitude) == (0.5, 0.5)


@pytest.mark.parametrize("factor", [1.0, 0.25, 7.0])
def test_an_update_and_itself(factor: float) -> None:
    some = lora(3)
    found = pair(some, times(factor, some))
    assert found.cosine == pytest.approx(1, abs=1e-12)
    assert found.columns == pytest.approx((0, 0, 0), abs=1e-6)
    assert found.rows == pytest.approx((0, 0, 0), abs=1e-6)
    assert (found.conflicts, found.conflicts_by_magnitude) == (0, 0)
    assert found.norm_second == pytest.approx(factor * found.norm_first)
    assert (found.rank_first, found.rank_second) == (3, 3)


def test_the_mean_of_the_same_update_keeps_all_and_loses_nothing() -> None:
    mean = mean_of("layer", [lora(3)] * 4, 4)
    assert kept([mean]) == pytest.approx(1)
    assert lost([mean], 3) == 0
    assert lost([mean], 2) > 0


def test_opposite_updates_conflict_everywhere_and_cancel() -> None:
    some = lora(3)
    found = pair(some, times(-1, some))
    assert found.cosine == pytest.approx(-1, abs=1e-12)
    assert found.columns == pytest.approx((0, 0, 0), abs=1e-6)  # a sign turns no subspace
    assert found.rows == pytest.approx((0, 0, 0), abs=1e-6)
    assert (found.conflicts, found.conflicts_by_magnitude) == (1, 1)
    mean = mean_of("layer", [some, times(-1, some)], 2)
    assert (kept([mean]), lost([mean], 1)) == (0, 0)


def test_angles_worked_out_by_hand() -> None:
    """In three dimensions: a line at 60° to another; a plane and one turned by 30° about a common line."""
    found = pair(outer([1, 0, 0], [1, 0]), outer([0.5, 0, math.sqrt(0.75)], [1, 0]))
    assert found.cosine == pytest.approx(0.5)
    assert found.columns == pytest.approx((60, 60, 60))
    turned = [[1, 0], [0, math.cos(math.pi / 6)], [0, 0.5]]
    planes = [LoRA(np.eye(2), np.array(B, dtype=float)) for B in ([[1, 0], [0, 1], [0, 0]], turned)]
    assert pair(*planes).columns == pytest.approx((0, 15, 30), abs=1e-6)


@pytest.mark.parametrize("angle", [1e-12, 1e-8, 1e-4, 0.5, math.pi / 2 - 1e-8])
def test_the_smallest_angles_are_told_from_none(angle: float) -> None:
    line, other = np.array([[1.0], [0]]), np.array([[math.cos(angle)], [math.sin(angle)]])
    assert principal_angles(line, other) == pytest.approx(math.degrees(angle), rel=1e-6)


def test_conflicts_by_hand() -> None:
    """Entries 1, 2, 3, 0 against -4, 1, 1, 5: one conflict of three; of the smaller magnitudes 1, 1, 1 it has a third."""
    row = np.array([[1.0]])
    found = pair(LoRA(row, np.array([[1.0], [2], [3], [0]])), LoRA(row, np.array([[-4.0], [1], [1], [5]])))
    assert found.conflicts == pytest.approx(1 / 3)
    assert found.conflicts_by_magnitude == pytest.approx(1 / 3)
    heavier = pair(LoRA(row, np.array([[4.0], [2], [3], [0]])), LoRA(row, np.array([[-4.0], [1], [1], [5]])))
    assert heavier.conflicts == pytest.approx(1 / 3)
    assert heavier.conflicts_by_magnitude == pytest.approx(4 / 6)


def test_the_loss_at_a_rank_by_hand() -> None:
    """Two orthogonal updates of norm 4 and 3: the mean has the singular values 2 and 3/2."""
    mean = mean_of("layer", [outer([4, 0, 0], [1, 0]), outer([0, 3, 0], [0, 1])], 2)
    assert mean.energy == pytest.approx(12.5)
    assert mean.spectrum[:2] == pytest.approx([4, 2.25])
    assert kept([mean]) == pytest.approx(0.5)
    assert lost([mean], 1) == pytest.approx(2.25 / 6.25)
    assert lost([mean], 2) == 0


def test_layers_count_by_their_energy() -> None:
    small, large = (mean_of("layer", [outer([4 * f, 0], [1, 0]), outer([0, 3 * f], [0, 1])], 2) for f in (1, 10))
    single = mean_of("layer", [outer([10, 0], [10, 0])] * 2, 2)  # of energy 10,000, of rank 1
    assert lost([small, large], 1) == pytest.approx(2.25 / 6.25)
    assert lost([large, single], 1) == pytest.approx(225 / (625 + 10_000))
    assert kept([large, single]) == pytest.approx((625 + 10_000) / (1250 + 10_000))


def test_a_source_without_the_layer_is_an_update_of_zero() -> None:
    some = lora(3)
    found = pair(some.nothing(), some)
    assert (found.cosine, found.norm_first, found.inner_product, found.rank_first) == (None, 0, 0, 0)
    assert found.columns == found.rows == (None, None, None)
    mean = mean_of("layer", [some], 4)  # three others have none
    assert kept([mean]) == pytest.approx(1 / 4)
    assert mean.sources == 1


def test_an_untrained_update_has_no_direction() -> None:
    fresh = LoRA(lora(3).A, np.zeros((12, 3)))
    found = pair(fresh, lora(2))
    assert (found.cosine, found.norm_first, found.rank_first, found.conflicts) == (None, 0, 0, None)
    assert found.columns == (None, None, None)
    mean = mean_of("layer", [fresh, fresh], 2)
    assert (kept([mean]), lost([mean], 1)) == (None, 0)


def test_rows_of_A_that_B_leaves_unused_are_no_direction() -> None:
    """As a merge leaves them that is padded to a rank."""
    low = lora(2)
    padded = LoRA(np.vstack([low.A, lora(3, seed=9).A]), np.hstack([low.B, np.zeros((12, 3))]))
    found = pair(padded, low)
    assert (found.rank_first, found.rank_second) == (2, 2)
    assert found.rows == pytest.approx((0, 0, 0), abs=1e-6)


@pytest.mark.parametrize("seed", range(30))
def test_agrees_with_dense_matrices(seed: int) -> None:
    random = np.random.default_rng(seed)
    out, into = (int(n) for n in random.integers(2, 20, 2))
    ranks = [int(n) for n in random.integers(1, 24, 2)]  # greater than the layer, too
    a, b = (times(float(random.normal()), lora(rank, out, into, seed=100 * seed + i)) for i, rank in enumerate(ranks))
    found, x, y = pair(a, b), a.dense(), b.dense()
    size = np.linalg.norm(x) * np.linalg.norm(y)
    assert found.inner_product == pytest.approx(float((x * y).sum()), abs=1e-10 * size)
    assert found.cosine == pytest.approx(float((x * y).sum() / size), abs=1e-10)
    assert (found.norm_first, found.norm_second) == pytest.approx((np.linalg.norm(x), np.linalg.norm(y)))
    assert found.conflicts == pytest.approx(float((np.sign(x) != np.sign(y)).mean()))
    for angles, p, q in ((found.columns, x, y), (found.rows, x.T, y.T)):
        expected = np.degrees(subspace_angles(basis(p), basis(q)))
        assert angles == pytest.approx((expected.min(), expected.mean(), expected.max()), abs=1e-4)

    mean = mean_of("layer", [a, b], 3)
    S = np.linalg.svd((x + y) / 3, compute_uv=False) ** 2
    assert kept([mean]) == pytest.approx(S.sum() / ((np.linalg.norm(x) ** 2 + np.linalg.norm(y) ** 2) / 3))
    for rank in range(1, min(out, into) + 1):
        assert lost([mean], rank) == pytest.approx(S[rank:].sum() / S.sum(), abs=1e-10)


@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_a_pair_does_not_matter(seed: int) -> None:
    a, b = lora(1 + seed % 4, seed=seed), lora(1 + seed % 3, seed=seed + 50)
    there, back = pair(a, b), pair(b, a)
    for name in ("cosine", "inner_product", "columns", "rows", "conflicts", "conflicts_by_magnitude"):
        assert getattr(there, name) == pytest.approx(getattr(back, name), abs=1e-9)
    assert (there.norm_first, there.rank_first) == (back.norm_second, back.rank_second)


@pytest.mark.parametrize("factor", [-3.0, 0.01])
def test_a_scale_turns_no_subspace_and_a_sign_turns_the_cosine(factor: float) -> None:
    a, b = lora(2), lora(3, seed=1)
    plain, scaled = pair(a, b), pair(times(factor, a), b)
    assert scaled.columns == pytest.approx(plain.columns)
    assert scaled.rows == pytest.approx(plain.rows)
    assert scaled.cosine == pytest.approx(math.copysign(1, factor) * (plain.cosine or 0))
    expected = plain.conflicts if factor > 0 else 1 - (plain.conflicts or 0)
    assert scaled.conflicts == pytest.approx(expected)
