import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score, confusion_matrix, matthews_corrcoef

from hatemtl.heads.figures import confusion, likeliest
from hatemtl.heads.multiclass import matthews
from hatemtl.heads.ordinal import quadratic_kappa, spearman
from hatemtl.heads.score import correlation, ranks


def drawn(seed: int, labels: int = 4, posts: int = 150) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """True labels, predicted ones that often agree, and their matrix; the last label is never true."""
    draw = np.random.default_rng(seed)
    true = draw.integers(0, labels - 1, posts)
    given = np.where(draw.random(posts) < 0.4, true, draw.integers(0, labels, posts))
    return true, given, torch.from_numpy(confusion_matrix(true, given, labels=range(labels)))


@pytest.mark.parametrize("seed", range(4))
def test_the_matrix_is_scikit_learns_over_annotated_posts(seed: int) -> None:
    true, given, _ = drawn(seed)
    has = np.random.default_rng(seed).random(len(true)) < 0.6
    metric = confusion(4, likeliest)
    for some in np.array_split(np.arange(len(true)), 7):
        scores = torch.nn.functional.one_hot(torch.from_numpy(given[some]), 4).float()
        metric.update(scores, torch.from_numpy(true[some]), torch.from_numpy(has[some]))
    assert metric.compute().tolist() == confusion_matrix(true[has], given[has], labels=range(4)).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_coefficients_are_those_of_scikit_learn_and_scipy(seed: int) -> None:
    true, given, matrix = drawn(seed)
    assert matthews(matrix) == pytest.approx(matthews_corrcoef(true, given))
    assert quadratic_kappa(matrix) == pytest.approx(cohen_kappa_score(true, given, weights="quadratic"))
    assert spearman(matrix) == pytest.approx(spearmanr(true, given).statistic)


@pytest.mark.parametrize("cells", [[[5, 0], [0, 0]], [[0, 0], [0, 0]], [[3, 0], [4, 0]]])
def test_where_nothing_can_agree_beyond_chance_a_coefficient_is_zero(cells: list[list[int]]) -> None:
    matrix = torch.tensor(cells)
    assert matthews(matrix) == spearman(matrix) == quadratic_kappa(matrix) == 0


def test_a_million_posts_do_not_overflow() -> None:
    matrix = torch.tensor([[3_000_000_000, 10], [10, 3_000_000_000]])
    assert matthews(matrix) == pytest.approx(1, abs=1e-6)


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]


def test_values_that_are_all_the_same_correlate_with_nothing() -> None:
    assert correlation(torch.ones(3), torch.arange(3)) == 0
    assert correlation(torch.zeros(0), torch.zeros(0)) == 0
