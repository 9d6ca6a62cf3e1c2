import numpy as np
import pytest
import torch
from figures import by_key
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, mean_absolute_error

from hatemtl.errors import UserError
from hatemtl.heads.ordinal import OrdinalHead, log_probabilities, median
from hatemtl.labels import LabelSpace

LEVELS = ("never", "rarely", "often", "always")


def head(*, balance: float = 0.0, levels: tuple[str, ...] = LEVELS) -> OrdinalHead:
    space = LabelSpace("ordinal", levels)
    return OrdinalHead(hidden_size=8, space=space, pooling="mean", layers=1, dropout=0.0, balance=balance)


def test_probabilities_are_the_differences_of_the_cumulative_ones_by_hand() -> None:
    s, thresholds = torch.randn(9, 1, dtype=torch.float64), torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    above = torch.cat([torch.ones(9, 1), torch.sigmoid(s - thresholds), torch.zeros(9, 1)], dim=1)  # P(y > k), k from -1
    torch.testing.assert_close(log_probabilities(s - thresholds).exp(), above[:, :-1] - above[:, 1:])


@pytest.mark.parametrize("s", [-500.0, -40.0, 0.0, 40.0, 500.0, 1e5])
def test_loss_and_gradient_stay_finite_however_sure_the_head_is(s: float) -> None:
    some = head()
    score = torch.tensor([[s]] * 4, requires_grad=True)
    some.loss(score - some.thresholds, torch.arange(4), torch.ones(4, dtype=torch.bool)).backward()
    assert score.grad.isfinite().all()
    assert some.first_and_gaps.grad.isfinite().all()
    assert log_probabilities(score - some.thresholds).exp().sum(dim=1).tolist() == pytest.approx([1] * 4)


@pytest.mark.parametrize("levels", [2, 3, 7])
def test_at_the_start_every_level_is_as_likely(levels: int) -> None:
    some = head(levels=tuple(map(str, range(levels))))
    assert some.scores(-some.thresholds[None])[0].tolist() == pytest.approx([1 / levels] * levels, abs=1e-4)


def test_thresholds_rise_whatever_is_learned() -> None:
    some = head()
    with torch.no_grad():
        some.first_and_gaps.copy_(torch.tensor([3.0, -50.0, 4.0]))
    assert (some.thresholds.diff() > 0).all()
    above = torch.sigmoid(torch.randn(20, 1) - some.thresholds)
    assert (above.diff(dim=1) <= 0).all()


def test_the_median_is_as_many_levels_up_as_are_likelier_than_not() -> None:
    logits = torch.tensor([[-1.0, -2, -3], [1, -1, -2], [3, 2, -1], [3, 2, 1]])
    assert median(log_probabilities(logits).exp()).tolist() == (logits > 0).sum(dim=1).tolist() == [0, 1, 2, 3]
    assert head().decode([0.1, 0.3, 0.3, 0.3], []) == ["often"]


def test_two_levels_are_logistic_regression() -> None:
    torch.manual_seed(0)
    some, logits, targets = head(levels=("no", "yes")), torch.randn(30, 1), torch.randint(2, (30,))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], targets.float())
    torch.testing.assert_close(some.loss(logits, targets, torch.ones(30, dtype=torch.bool)), expected)


def test_balance_weighs_levels_as_multiclass_does() -> None:
    some = head(balance=1.0)
    some.observe(torch.arange(4).repeat_interleave(torch.tensor([40, 4, 4, 2])))
    assert some.weights.tolist() == pytest.approx([50 / (4 * n) for n in (40, 4, 4, 2)])


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_scikit_learns_and_scipys_on_the_annotated_posts(seed: int) -> None:
    draw = np.random.default_rng(seed)
    true, has = draw.integers(0, 4, 200), draw.random(200) < 0.6
    scores = torch.from_numpy(draw.dirichlet(np.ones(4), 200))
    metric = head().metric()
    for some in torch.arange(200).split(33):
        metric.update(scores[some], torch.from_numpy(true)[some], torch.from_numpy(has)[some])
    rows = by_key(head().rows(metric.compute()))
    true, given = true[has], median(scores).numpy()[has]
    assert rows["mae"] == pytest.approx(mean_absolute_error(true, given))
    assert rows["accuracy"] == pytest.approx(accuracy_score(true, given))
    assert rows["macro_f1"] == pytest.approx(f1_score(true, given, average="macro"))
    assert rows["quadratic_kappa"] == pytest.approx(cohen_kappa_score(true, given, weights="quadratic"))
    assert rows["spearman"] == pytest.approx(spearmanr(true, given).statistic)
    assert sum(rows[f"tp_{level}"] + rows[f"fn_{level}"] for level in LEVELS) == has.sum()


def test_levels_that_follow_one_number_are_learned() -> None:
    torch.manual_seed(0)
    some, x = head(), torch.randn(300, 1, 8)
    targets = torch.bucketize(x[:, 0, 0].contiguous(), torch.tensor([-1.0, 0.0, 1.5]))
    has, mask = torch.ones(300, dtype=torch.bool), torch.ones(300, 1, dtype=torch.long)
    optimizer = torch.optim.Adam(some.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        some.loss(some(x, mask), targets, has).backward()
        optimizer.step()
    assert (median(some.scores(some(x, mask))) == targets).float().mean() > 0.95


def test_one_level_is_nothing_to_order() -> None:
    with pytest.raises(UserError, match="two levels or more, given only"):
        head(levels=("only",))
