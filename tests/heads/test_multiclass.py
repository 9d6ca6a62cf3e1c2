import numpy as np
import pytest
import torch
from figures import by_key
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.labels import LabelSpace

NAMES = ("hateful", "normal", "rude", "never")


def head(*, balance: float = 0.0, label_smoothing: float = 0.0, names: tuple[str, ...] = NAMES) -> MulticlassHead:
    return MulticlassHead(
        hidden_size=8,
        space=LabelSpace("multiclass", names),
        pooling="mean",
        layers=1,
        dropout=0.0,
        label_smoothing=label_smoothing,
        balance=balance,
    )


def shown(*counts: int) -> torch.Tensor:
    """The labels of posts of which so many carry each."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_scikit_learns_on_the_annotated_posts(seed: int) -> None:
    draw = np.random.default_rng(seed)
    scores = torch.from_numpy(draw.dirichlet(np.ones(4), 200)).float()
    targets = torch.from_numpy(draw.choice(4, 200, p=[0.5, 0.3, 0.2, 0.0]))  # "never" occurs in predictions alone
    has = torch.from_numpy(draw.random(200) < 0.6)
    targets[~has] = 0
    metric = head().metric()
    for batch in torch.arange(200).split(33):
        metric.update(scores[batch], targets[batch], has[batch])
    rows = by_key(head().rows(metric.compute()))
    truth, given = targets[has].numpy(), scores[has].argmax(1).numpy()
    each = f1_score(truth, given, labels=range(4), average=None, zero_division=0)
    assert [rows[f"f1_{name}"] for name in NAMES] == pytest.approx(each.tolist())
    assert rows["macro_f1"] == pytest.approx(each.mean())
    assert rows["accuracy"] == pytest.approx(accuracy_score(truth, given))
    assert rows["matthews"] == pytest.approx(matthews_corrcoef(truth, given))
    matrix = confusion_matrix(truth, given, labels=range(4))
    for i, name in enumerate(NAMES):
        assert rows[f"tp_{name}"] == matrix[i, i]
        assert rows[f"fp_{name}"] == matrix[:, i].sum() - matrix[i, i]
        assert rows[f"fn_{name}"] == matrix[i].sum() - matrix[i, i]


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_any_number_of_labels_is_counted(classes: int) -> None:
    draw = np.random.default_rng(classes)
    scores, targets = torch.from_numpy(draw.random((90, classes))), torch.from_numpy(draw.integers(0, classes, 90))
    some = head(names=tuple(f"l{i}" for i in range(classes)))
    metric = some.metric()
    metric.update(scores, targets, torch.ones(90, dtype=torch.bool))
    expected = f1_score(targets, scores.argmax(1), average="macro")
    assert by_key(some.rows(metric.compute()))["macro_f1"] == pytest.approx(expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_the_loss_is_torchs_on_the_annotated_posts(label_smoothing: float) -> None:
    torch.manual_seed(0)
    logits, targets, has = torch.randn(50, 4), torch.randint(4, (50,)), torch.rand(50) < 0.5
    expected = F.cross_entropy(logits[has], targets[has], label_smoothing=label_smoothing)
    torch.testing.assert_close(head(label_smoothing=label_smoothing).loss(logits, targets, has), expected)


def test_the_weighed_loss_is_torchs_on_the_annotated_posts() -> None:
    torch.manual_seed(0)
    logits, targets, has = torch.randn(50, 4), torch.randint(4, (50,)), torch.rand(50) < 0.5
    some = head(balance=1.0)
    some.observe(shown(80, 15, 4, 1))
    expected = F.cross_entropy(logits[has], targets[has], weight=torch.tensor([100 / (4 * n) for n in (80, 15, 4, 1)]))
    torch.testing.assert_close(some.loss(logits, targets, has), expected)


def test_with_smoothing_a_post_is_weighed_by_its_own_label() -> None:
    """Not as torch's `weight`, which weighs the smoothed share of every label by that label's weight."""
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 4), torch.randint(4, (50,))
    some = head(balance=1.0, label_smoothing=0.2)
    some.observe(shown(80, 15, 4, 1))
    smooth = F.one_hot(targets, 4) * 0.8 + 0.2 / 4
    each = -(smooth * logits.log_softmax(1)).sum(1)
    weights = torch.tensor([100 / (4 * n) for n in (80, 15, 4, 1)])[targets]
    expected = (weights * each).sum() / weights.sum()
    torch.testing.assert_close(some.loss(logits, targets, torch.ones(50, dtype=torch.bool)), expected)


@pytest.mark.parametrize(
    ("balance", "weights"),
    [(0.0, (1, 1, 1)), (0.5, ((11 / 24) ** 0.5, (11 / 6) ** 0.5, (11 / 3) ** 0.5)), (1.0, (11 / 24, 11 / 6, 11 / 3))],
)
def test_balance_by_hand(balance: float, weights: tuple[float, ...]) -> None:
    some = head(balance=balance, names=("often", "thrice", "rare"))
    some.observe(shown(16, 4, 2))  # 22 / (3 · 16), 22 / (3 · 4), 22 / (3 · 2)
    torch.testing.assert_close(some.weights, torch.tensor(weights, dtype=torch.float32))


def test_full_balance_is_scikit_learns_and_gives_every_label_the_same_say() -> None:
    labels = np.repeat([0, 1, 2, 3], [80, 15, 4, 1])
    some = head(balance=1.0)
    some.observe(torch.from_numpy(labels))
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(some.weights, expected, rtol=1e-6)
    np.testing.assert_allclose(some.weights.numpy() * np.bincount(labels), 25, rtol=1e-6)


def test_a_label_that_training_never_shows_keeps_the_loss_finite() -> None:
    some = head(balance=1.0)
    some.observe(shown(50, 49, 1, 0))
    assert some.weights.isfinite().all()
    assert some.loss(torch.randn(4, 4), torch.arange(4), torch.ones(4, dtype=torch.bool)).isfinite()


def test_a_corpus_without_any_annotation_to_train_on_keeps_the_loss_finite() -> None:
    some = head(balance=1.0)
    some.observe(shown())
    assert some.weights.isfinite().all()


def test_decoding_names_the_likeliest_label() -> None:
    assert head().decode([0.1, 0.2, 0.6, 0.1], ["any", "words"]) == ["rude"]
    assert head().decode([0.4, 0.1, 0.4, 0.1], []) == ["hateful"]  # the first of equals, as argmax
