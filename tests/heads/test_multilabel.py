import numpy as np
import pytest
import torch
from figures import by_key
from sklearn.metrics import f1_score, multilabel_confusion_matrix
from torch.nn import functional as F

from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.labels import LabelSpace

NAMES = ("women", "jewish", "islam", "never")


def head(
    *, balance: float = 0.0, threshold: float = 0.5, label_smoothing: float = 0.0, names: tuple[str, ...] = NAMES
) -> MultilabelHead:
    return MultilabelHead(
        hidden_size=8,
        space=LabelSpace("multilabel", names),
        pooling="mean",
        layers=1,
        dropout=0.0,
        threshold=threshold,
        balance=balance,
        label_smoothing=label_smoothing,
    )


def shown(posts: int, *carried: int) -> torch.Tensor:
    """The labels of so many posts, of which so many carry each."""
    return (torch.arange(posts)[:, None] < torch.tensor(carried)).float()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(2))
def test_rows_are_scikit_learns_on_the_annotated_posts(seed: int, threshold: float) -> None:
    draw = np.random.default_rng(seed)
    scores = torch.from_numpy(draw.random((200, 4))).float()
    targets = torch.from_numpy(draw.random((200, 4)) < [0.5, 0.2, 0.05, 0.0]).float()
    scores[:, 3] = 0.1  # neither there nor predicted
    has = torch.from_numpy(draw.random(200) < 0.6)
    some = head(threshold=threshold)
    metric = some.metric()
    for batch in torch.arange(200).split(33):
        metric.update(scores[batch], targets[batch], has[batch])
    rows = by_key(some.rows(metric.compute()))
    truth, given = targets[has].int().numpy(), (scores[has] >= threshold).int().numpy()
    each = f1_score(truth, given, average=None, zero_division=0)
    assert [rows[f"f1_{name}"] for name in NAMES] == pytest.approx(each.tolist())
    assert rows["f1_never"] == 0
    assert rows["macro_f1"] == pytest.approx(each.mean())
    assert rows["micro_f1"] == pytest.approx(f1_score(truth, given, average="micro"))
    for name, ((_, fp), (fn, tp)) in zip(NAMES, multilabel_confusion_matrix(truth, given), strict=True):
        assert (rows[f"tp_{name}"], rows[f"fp_{name}"], rows[f"fn_{name}"]) == (tp, fp, fn)


def test_a_single_label_is_counted() -> None:
    some = head(names=("women",))
    metric = some.metric()
    scores, targets = torch.tensor([[0.9], [0.2], [0.7], [0.1]]), torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    metric.update(scores, targets, torch.ones(4, dtype=torch.bool))
    rows = by_key(some.rows(metric.compute()))
    assert (rows["tp_women"], rows["fp_women"], rows["fn_women"], rows["macro_f1"]) == (1, 1, 1, 0.5)


def test_micro_f1_can_be_rebuilt_over_parts_from_the_count_rows() -> None:
    draw = np.random.default_rng(0)
    scores, targets = draw.random((100, 4)), draw.random((100, 4)) < 0.3
    everything, tps, errors = torch.ones(100, dtype=torch.bool), 0.0, 0.0
    for part in ([0, 2], [1, 3]):
        some = head(names=tuple(NAMES[i] for i in part))
        metric = some.metric()
        metric.update(torch.from_numpy(scores[:, part]), torch.from_numpy(targets[:, part]).float(), everything)
        rows = by_key(some.rows(metric.compute()))
        tps += sum(value for name, value in rows.items() if name.startswith("tp_"))
        errors += sum(value for name, value in rows.items() if name.startswith(("fp_", "fn_")))
    assert 2 * tps / (2 * tps + errors) == pytest.approx(f1_score(targets, scores >= 0.5, average="micro"))


def test_a_score_at_the_threshold_counts_as_predicted_in_metric_and_decoding() -> None:
    some = head(threshold=0.25, names=("women", "islam"))
    metric = some.metric()
    metric.update(torch.tensor([[0.25, 0.2]]), torch.tensor([[1.0, 1.0]]), torch.tensor([True]))
    rows = by_key(some.rows(metric.compute()))
    assert (rows["tp_women"], rows["fn_islam"]) == (1, 1)
    assert some.decode([0.25, 0.2], ["any", "words"]) == ["women"]


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7, 0.9])
def test_a_float32_score_at_the_threshold_is_decoded_as_it_counts(threshold: float) -> None:
    """As a double a score of .7 lies below .7, since float32 rounds it down."""
    some, at = head(threshold=threshold, names=("women", "islam")), torch.tensor(threshold)
    scores = torch.stack([at, torch.nextafter(at, torch.tensor(0.0))])
    metric = some.metric()
    metric.update(scores[None], torch.ones(1, 2), torch.tensor([True]))
    assert metric.compute().tolist() == [[1, 0, 0], [0, 0, 1]]
    assert some.decode(scores.tolist(), ["any"]) == ["women"]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_the_loss_is_torchs_on_the_annotated_posts(balance: float, soft: bool) -> None:
    torch.manual_seed(0)
    logits, targets, has = torch.randn(50, 4), torch.rand(50, 4), torch.rand(50) < 0.5
    if not soft:
        targets = targets.round()
    some = head(balance=balance)
    some.observe(shown(100, 50, 20, 10, 1))
    weights = torch.tensor([1.0, 4.0, 9.0, 99.0]) if balance else torch.ones(4)
    expected = F.binary_cross_entropy_with_logits(logits[has], targets[has], pos_weight=weights)
    torch.testing.assert_close(some.loss(logits, targets, has), expected)


@pytest.mark.parametrize("soft", [False, True])
def test_the_smoothed_loss_is_torchs_for_smoothed_targets_on_the_annotated_posts(soft: bool) -> None:
    torch.manual_seed(0)
    logits, targets, has = torch.randn(50, 4), torch.rand(50, 4), torch.rand(50) < 0.5
    if not soft:
        targets = targets.round()
    expected = F.binary_cross_entropy_with_logits(logits[has], targets[has] * 0.8 + 0.1)
    torch.testing.assert_close(head(label_smoothing=0.2).loss(logits, targets, has), expected)


def test_smoothing_changes_the_loss_alone() -> None:
    logits, targets, has = torch.randn(9, 4), torch.rand(9, 4).round(), torch.ones(9, dtype=torch.bool)
    rows = []
    for some in (head(), head(label_smoothing=0.5)):
        metric = some.metric()
        metric.update(some.scores(logits), targets, has)
        rows.append(by_key(some.rows(metric.compute())))
    assert rows[0] == rows[1]


def test_a_soft_target_counts_from_a_half() -> None:
    metric = head().metric()
    metric.update(torch.tensor([[0.9, 0.9, 0.1, 0.1]]), torch.tensor([[0.5, 0.4, 0.6, 0.1]]), torch.tensor([True]))
    assert metric.compute().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(("balance", "weights"), [(0.0, (1, 1, 1)), (0.5, (3, 1, 0.5)), (1.0, (9, 1, 0.25))])
def test_balance_by_hand(balance: float, weights: tuple[float, ...]) -> None:
    some = head(balance=balance, names=("rare", "even", "common"))
    some.observe(shown(100, 10, 50, 80))  # 90 / 10, 50 / 50, 20 / 80
    torch.testing.assert_close(some.weights, torch.tensor(weights, dtype=torch.float32))


def test_full_balance_gives_positives_and_negatives_the_same_say() -> None:
    some = head(balance=1.0, names=("rare",))
    some.observe(shown(100, 10))
    targets = (torch.arange(100) < 10).float()[:, None]
    logits = torch.zeros(100, 1, requires_grad=True)  # undecided: the gradients of both sides must cancel
    some.loss(logits, targets, torch.ones(100, dtype=torch.bool)).backward()
    assert logits.grad.sum().item() == pytest.approx(0, abs=1e-6)
    assert logits.grad.abs().sum().item() > 0.5


@pytest.mark.parametrize(("positives", "total"), [((0, 100), 100), ((0, 0), 0)])
def test_a_label_that_training_never_or_always_shows_keeps_a_finite_weight(positives: tuple[int, ...], total: int) -> None:
    some = head(balance=1.0, names=("never", "always"))
    some.observe(shown(total, *positives))
    assert some.weights.isfinite().all()
    assert (some.weights > 0).all()


def test_decoding_names_any_number_of_labels() -> None:
    assert head().decode([0.9, 0.1, 0.6, 0.4], ["any"]) == ["women", "islam"]
    assert head().decode([0.1, 0.1, 0.1, 0.1], ["any"]) == []
