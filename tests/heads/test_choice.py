import pytest
import torch
from figures import by_key
from torch.nn import functional as F

from hatemtl.heads.choice import ChoiceHead
from hatemtl.labels import LabelSpace


def head(*, label_smoothing: float = 0.0) -> ChoiceHead:
    space = LabelSpace("choice", ("first", "second", "third"))
    return ChoiceHead(hidden_size=8, space=space, pooling="mean", layers=2, dropout=0.0, label_smoothing=label_smoothing)


def test_a_sequence_has_one_score_whatever_stands_beside_it() -> None:
    torch.manual_seed(0)
    some, hidden, mask = head(), torch.randn(5, 4, 8), torch.ones(5, 4, dtype=torch.long)
    assert some(hidden, mask).shape == (5,)
    torch.testing.assert_close(some(hidden[2:3], mask[2:3]), some(hidden, mask)[2:3])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_the_loss_is_torchs_over_the_choices_that_are_there(label_smoothing: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 3)
    logits[1, 2] = -torch.inf  # a post of two choices
    logits.requires_grad_()
    targets, has = torch.tensor([2, 1, 0]), torch.tensor([True, True, False])
    loss = head(label_smoothing=label_smoothing).loss(logits, targets, has)
    posts = ((logits[:1], targets[:1]), (logits[1:2, :2], targets[1:2]))
    expected = sum(F.cross_entropy(*post, label_smoothing=label_smoothing) for post in posts) / 2
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[1, 2] == 0
    assert (logits.grad[2] == 0).all()


def test_the_smoothed_loss_is_least_where_the_scores_are_the_smoothed_target() -> None:
    targets = torch.tensor([[0.9, 0.05, 0.05], [0.075, 0.925, 0.0]])  # ε = .15 over three choices, and over two
    logits = targets.log().requires_grad_()
    head(label_smoothing=0.15).loss(logits, torch.tensor([0, 1]), torch.tensor([True, True])).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(2, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_where_no_post_has_choices_the_loss_is_a_zero_with_a_gradient_of_zeros(label_smoothing: float) -> None:
    logits = torch.tensor([[0.3, -torch.inf, -torch.inf]], requires_grad=True)
    loss = head(label_smoothing=label_smoothing).loss(logits, torch.tensor([0]), torch.tensor([False]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(1, 3))


def test_accuracy_by_hand() -> None:
    metric = head().metric()
    scores = head().scores(torch.tensor([[1.0, 2.0, 0.0], [3.0, 1.0, -torch.inf], [0.0, 1.0, 2.0]]))
    assert scores[1, 2] == 0
    metric.update(scores, torch.tensor([1, 1, 2]), torch.tensor([True, True, False]))
    assert by_key(head().rows(metric.compute())) == {"accuracy": 0.5}


def test_decoding_names_the_likeliest_choice() -> None:
    assert head().decode([0.2, 0.5, 0.3], []) == ["second"]
