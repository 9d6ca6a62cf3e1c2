import numpy as np
import pytest
import torch
from figures import by_key
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, root_mean_squared_error
from torch.nn import functional as F

from hatemtl.heads.score import ScoreHead
from hatemtl.labels import LabelSpace


def head(loss: str = "mse") -> ScoreHead:
    space = LabelSpace("score", ("hate",))
    return ScoreHead(hidden_size=8, space=space, pooling="mean", layers=1, dropout=0.0, loss=loss)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_scipys_and_scikit_learns_on_the_annotated_posts(seed: int) -> None:
    draw = np.random.default_rng(seed)
    true = draw.normal(-3, 2, 200).round(1).astype(np.float32)  # with ties
    given = (true + draw.normal(0, 2, 200)).astype(np.float32)
    has = draw.random(200) < 0.6
    metric = head().metric()
    for some in np.array_split(np.arange(200), 7):
        metric.update(*(torch.from_numpy(values[some]) for values in (given[:, None], np.where(has, true, 0), has)))
    rows = by_key(head().rows(metric.compute()))
    true, given = true[has], given[has]
    assert rows["mae"] == pytest.approx(mean_absolute_error(true, given), rel=1e-5)
    assert rows["rmse"] == pytest.approx(root_mean_squared_error(true, given), rel=1e-5)
    assert rows["pearson"] == pytest.approx(pearsonr(true, given).statistic, rel=1e-5)
    assert rows["spearman"] == pytest.approx(spearmanr(true, given).statistic, rel=1e-5)


@pytest.mark.parametrize(("loss", "reference"), [("mse", F.mse_loss), ("huber", F.huber_loss)])
def test_the_loss_is_torchs_in_standard_deviations_of_the_annotated_posts(loss: str, reference: object) -> None:
    torch.manual_seed(0)
    shown, some = 5 + 3 * torch.randn(500), head(loss)
    some.observe(shown)
    logits, has = torch.randn(50, 1), torch.rand(50) < 0.5
    targets = 5 + 3 * torch.randn(50)
    standard = (targets - shown.mean()) / shown.std(correction=0)
    expected = reference(logits[has, 0], standard[has])  # type: ignore[operator]
    torch.testing.assert_close(some.loss(logits, targets, has), expected)


def test_scores_are_in_the_scales_units() -> None:
    some = head()
    some.observe(torch.tensor([10.0, 14.0]))  # mean 12, deviation 2
    assert some.scores(torch.tensor([[0.0], [1.5]])).tolist() == [[12.0], [15.0]]
    assert some.loss(torch.tensor([[1.5]]), torch.tensor([15.0]), torch.tensor([True])).item() == 0


def test_the_scale_goes_with_the_weights_and_a_loaded_head_keeps_it() -> None:
    first, second = head(), head()
    first.observe(torch.tensor([10.0, 14.0]))
    second.load_state_dict(first.state_dict())
    second.observe(torch.tensor([0.0, 100.0]))
    assert second.scale.tolist() == [12, 2]


@pytest.mark.parametrize("shown", [torch.zeros(0), torch.tensor([3.0, 3.0])])
def test_a_scale_of_one_value_or_none_keeps_the_loss_finite(shown: torch.Tensor) -> None:
    some = head()
    some.observe(shown)
    assert some.loss(torch.randn(2, 1), torch.tensor([3.0, 4.0]), torch.tensor([True, True])).isfinite()


def test_where_all_predictions_are_the_same_nothing_correlates() -> None:
    rows = by_key(head().rows(torch.tensor([[1.0, 0.0, 1.0], [1.0, 2.0, 1.0]])))
    assert rows == {"mae": 1, "rmse": 1, "pearson": 0, "spearman": 0}


def test_without_an_annotated_post_all_is_nothing() -> None:
    assert by_key(head().rows(torch.zeros(1, 3))) == {"mae": 0, "rmse": 0, "pearson": 0, "spearman": 0}


def test_decoding_gives_the_number() -> None:
    assert head().decode([-1.23456], ["any"]) == ["-1.2346"]
