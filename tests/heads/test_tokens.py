import numpy as np
import pytest
import torch
from figures import by_key
from sklearn.metrics import f1_score, precision_recall_fscore_support
from torch.nn import functional as F

from hatemtl.heads.tokens import TokensHead
from hatemtl.labels import IGNORED, LabelSpace


def head(*, balance: float = 0.0, threshold: float = 0.5, label_smoothing: float = 0.0) -> TokensHead:
    return TokensHead(
        hidden_size=8,
        space=LabelSpace("tokens", ("marked",)),
        layers=1,
        dropout=0.0,
        threshold=threshold,
        balance=balance,
        label_smoothing=label_smoothing,
    )


def some_posts(seed: int, *, soft: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (60, 12), targets with a third of the tokens not counted, and which posts are annotated."""
    draw = torch.Generator().manual_seed(seed)
    targets = torch.rand(60, 12, generator=draw)
    if not soft:
        targets = (targets > 0.7).float()
    targets[torch.rand(60, 12, generator=draw) < 0.33] = IGNORED
    return torch.randn(60, 12, generator=draw), targets, torch.rand(60, generator=draw) < 0.6


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(2))
def test_rows_are_scikit_learns_on_the_words_of_annotated_posts(seed: int, threshold: float) -> None:
    logits, targets, has = some_posts(seed)
    some = head(threshold=threshold)
    metric = some.metric()
    for batch in torch.arange(60).split(17):
        metric.update(some.scores(logits[batch]), targets[batch], has[batch])
    rows = by_key(some.rows(metric.compute()))
    words = (targets >= 0) & has[:, None]
    truth, given = targets[words].int().numpy(), (logits.sigmoid()[words] >= threshold).int().numpy()
    precision, recall, f1, _ = precision_recall_fscore_support(truth, given, average="binary")
    assert (rows["precision"], rows["recall"], rows["f1"]) == pytest.approx((precision, recall, f1))
    assert rows["tp_marked"] == (truth & given).sum()
    assert rows["fp_marked"] == (given & ~truth & 1).sum()
    assert rows["fn_marked"] == (truth & ~given & 1).sum()


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7, 0.9])
def test_a_float32_score_at_the_threshold_is_decoded_as_it_counts(threshold: float) -> None:
    some, at = head(threshold=threshold), torch.tensor(threshold)
    scores = torch.stack([at, torch.nextafter(at, torch.tensor(0.0))])
    metric = some.metric()
    metric.update(scores[None], torch.ones(1, 2), torch.tensor([True]))
    assert metric.compute()[:, :3].sum(dim=0).tolist() == [1, 0, 1]
    assert some.decode(scores.tolist(), ["cake", "soup"]) == ["cake"]
    assert some.decode([float("nan"), 0.95], ["", "soup"]) == ["soup"]  # a word that makes no token


@pytest.mark.parametrize("seed", range(2))
def test_the_mean_over_posts_is_of_scikit_learns_f1_where_a_word_is_marked_or_predicted(seed: int) -> None:
    logits, targets, has = some_posts(seed)
    targets[::7] = targets[::7].clamp(max=0)
    logits[::7] = -1  # in these nothing is marked or predicted
    some, f1s = head(), []
    for said, true in zip(logits[has], targets[has], strict=True):
        words = true >= 0
        truth, given = true[words].numpy() > 0, said[words].numpy() >= 0
        if (truth | given).any():
            f1s.append(f1_score(truth, given))
    assert 0 < len(f1s) < int(has.sum())
    metric = some.metric()
    for batch in torch.arange(60).split(17):
        metric.update(some.scores(logits[batch]), targets[batch], has[batch])
    rows = by_key(some.rows(metric.compute()))
    assert rows["f1_mean_over_posts"] == pytest.approx(np.mean(f1s))
    assert rows["f1_mean_over_posts"] != pytest.approx(rows["f1"])


def test_words_that_are_cut_off_count_as_no_and_are_told() -> None:
    """A word beyond the tokens is one that no one reads: marked, it is missed; the loss knows nothing of it."""
    some, no = head(), IGNORED
    scores = torch.tensor([[0.9, 0.1, 0.9], [0.9, 0.9, 0.1], [0.9, 0.9, 0.9]])
    within = torch.tensor([[1, 0, no], [1, 0, 0], [1, no, no]])
    beyond = torch.tensor([[1, 0.5], [0, no], [1, 1]])
    targets, has = torch.cat([within, beyond], dim=1), torch.tensor([True, True, False])
    metric = some.metric()
    metric.update(scores, targets, has)
    rows = by_key(some.rows(metric.compute()))
    assert (rows["tp_marked"], rows["fp_marked"], rows["fn_marked"], rows["words_cut"]) == (2, 1, 2, 3)
    assert rows["f1"] == pytest.approx(4 / 7)
    assert rows["f1_mean_over_posts"] == pytest.approx((2 / 4 + 2 / 3) / 2)
    torch.testing.assert_close(some.loss(scores.logit(), targets, has), some.loss(scores.logit(), within, has))
    metric = some.metric()
    metric.update(scores, within, has)
    assert by_key(some.rows(metric.compute()))["words_cut"] == 0


def test_without_a_word_there_is_nothing_to_count() -> None:
    metric = head().metric()
    metric.update(torch.rand(2, 3), torch.full((2, 3), IGNORED), torch.tensor([True, False]))
    assert set(by_key(head().rows(metric.compute())).values()) == {0.0}


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("balance", "weight"), [(0.0, 1.0), (1.0, 4.0)])
def test_the_loss_is_torchs_mean_over_the_words_of_annotated_posts(balance: float, weight: float, soft: bool) -> None:
    logits, targets, has = some_posts(0, soft=soft)
    some = head(balance=balance)
    some.observe((torch.arange(100) < 20).float())
    words = (targets >= 0) & has[:, None]
    expected = F.binary_cross_entropy_with_logits(logits[words], targets[words], pos_weight=torch.tensor(weight))
    torch.testing.assert_close(some.loss(logits, targets, has), expected)


@pytest.mark.parametrize("soft", [False, True])
def test_the_smoothed_loss_is_torchs_for_smoothed_targets_over_the_words_of_annotated_posts(soft: bool) -> None:
    logits, targets, has = some_posts(0, soft=soft)
    words = (targets >= 0) & has[:, None]
    expected = F.binary_cross_entropy_with_logits(logits[words], targets[words] * 0.8 + 0.1)
    torch.testing.assert_close(head(label_smoothing=0.2).loss(logits, targets, has), expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_tokens_that_do_not_count_change_neither_loss_nor_gradient_nor_metric(label_smoothing: float) -> None:
    logits, targets, has = some_posts(1)
    some = head(label_smoothing=label_smoothing)
    wild = torch.where(targets == IGNORED, 50 * torch.randn_like(logits), logits).requires_grad_()
    loss = some.loss(wild, targets, has)
    torch.testing.assert_close(loss, some.loss(logits, targets, has))
    loss.backward()
    assert (wild.grad[targets == IGNORED] == 0).all()
    counts = []
    for given in (logits, wild.detach()):
        metric = some.metric()
        metric.update(some.scores(given), targets, has)
        counts.append(metric.compute())
    assert torch.equal(*counts)


def test_a_post_of_which_no_token_counts_is_a_zero() -> None:
    logits = torch.randn(2, 5, requires_grad=True)
    loss = head().loss(logits, torch.full((2, 5), IGNORED), torch.tensor([True, True]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(2, 5))


def test_any_share_of_the_annotators_is_a_yes_in_the_metric() -> None:
    metric = head().metric()
    metric.update(torch.tensor([[0.9, 0.9, 0.1]]), torch.tensor([[1 / 3, 0.0, 1 / 3]]), torch.tensor([True]))
    assert metric.compute().tolist() == [[1, 1, 1, 0]]


@pytest.mark.parametrize(("balance", "weight"), [(0.0, 1.0), (0.5, 3.0), (1.0, 9.0)])
def test_balance_by_hand(balance: float, weight: float) -> None:
    some = head(balance=balance)
    some.observe((torch.arange(100) < 10).float())
    assert some.weights.item() == pytest.approx(weight)


@pytest.mark.parametrize(("positives", "total"), [(0, 0), (0, 100), (100, 100)])
def test_words_that_are_never_or_always_marked_keep_a_finite_weight(positives: int, total: int) -> None:
    some = head(balance=1.0)
    some.observe((torch.arange(total) < positives).float())
    assert np.isfinite(some.weights.item())
    assert some.weights.item() > 0


def test_every_token_is_read_by_itself() -> None:
    torch.manual_seed(0)
    some, hidden, mask = head(), torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.long)
    other = hidden.clone()
    other[:, 3] += 1
    changed = some(hidden, mask) != some(other, mask)
    assert changed.shape == (2, 5)
    assert changed.any(dim=0).tolist() == [False, False, False, True, False]


def test_decoding_gives_the_marked_words() -> None:
    words = ["you", "grumpy", "old", "dronk", "you"]
    assert head().decode([0.1, 0.9, 0.2, 0.5, 0.1], words) == ["grumpy", "dronk"]
    assert head().decode([0.1, 0.9, float("nan"), 0.0, 0.0], words) == ["grumpy"]  # no token, and cut off
    assert head(threshold=0.95).decode([0.1, 0.9, 0.2, 0.5, 0.1], words) == []
