import math
from typing import Any

import numpy as np
import pytest
import torch
from figures import by_key
from torch.nn import functional as F

from hatemtl.answers import Answers, Passage
from hatemtl.errors import UserError
from hatemtl.heads.span import SpanHead
from hatemtl.labels import IGNORED, LabelSpace

CUT = [int(IGNORED)] * 2


def head(max_answer: int = 30, **more: Any) -> SpanHead:
    return SpanHead(
        hidden_size=8, space=LabelSpace("span", ("answer",)), layers=1, dropout=0.0, max_answer=max_answer, **more
    )


def answers(*places: list[int]) -> Answers:
    """Of four one-letter tokens, "a b c d"; b c is right."""
    where = np.array([[0, 0], [0, 1], [2, 3], [4, 5], [6, 7], [0, 0]])
    passage = Passage("a b c d", where, np.array([[2, 5], [6, 7]]))
    return Answers(torch.tensor(places), [passage] * len(places))


def test_one_layer_gives_two_logits_a_token_of_the_second_text_alone() -> None:
    torch.manual_seed(0)
    some, hidden = head(), torch.randn(2, 5, 8)
    second = torch.tensor([[False, False, True, True, False], [False] * 5])
    logits = some(hidden, second)
    assert sum(p.numel() for p in some.parameters()) == 2 * 8 + 2
    torch.testing.assert_close(logits[0, 2:4], some.layers(hidden[0, 2:4]))
    assert (logits[0, [0, 1, 4]] == -torch.inf).all()
    torch.testing.assert_close(logits[1], some.layers(hidden[1]))  # of a post without any, nothing is NaN


def test_the_loss_is_the_mean_of_both_cross_entropies_over_posts_whose_answer_is_whole() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 6, 2)
    logits[:, [0, 5]] = -torch.inf
    logits.requires_grad_()
    targets, has = answers([2, 3], [4, 4], CUT, [1, 1]), torch.tensor([True, True, True, False])
    some = head()
    loss = some.loss(logits, targets, has)
    whole = [F.cross_entropy(logits[i : i + 1, :, side], torch.tensor([place])) for i, side, place in
             ((0, 0, 2), (0, 1, 3), (1, 0, 4), (1, 1, 4))]  # fmt: skip
    torch.testing.assert_close(loss, torch.stack(whole).mean())
    assert some.answers(logits, targets, has) == 2
    loss.backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert (logits.grad[2:] == 0).all() and (logits.grad[:2, 1:5] != 0).all()


@pytest.mark.parametrize("places", [CUT, [2, 3]])
def test_where_no_answer_is_learned_the_loss_is_a_zero_with_a_gradient_of_zeros(places: list[int]) -> None:
    logits = torch.randn(1, 6, 2, requires_grad=True)
    loss = head().loss(logits, answers(places), torch.tensor([places is CUT]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(1, 6, 2))


@pytest.mark.parametrize("max_answer", [1, 2, 3, 30])
def test_the_answer_is_the_best_of_all_valid_spans(max_answer: int) -> None:
    torch.manual_seed(max_answer)
    logits = 2 * torch.randn(50, 9, 2)
    logits[:, [0, 1, 8]] = -torch.inf
    for (first, last, score), of_post in zip(head(max_answer).scores(logits).tolist(), logits.softmax(dim=1), strict=True):
        spans = {(i, j): float(of_post[i, 0] * of_post[j, 1]) for i in range(9) for j in range(i, min(9, i + max_answer))}
        assert spans[int(first), int(last)] == pytest.approx(max(spans.values())) == pytest.approx(score)


def test_an_end_before_its_start_is_never_answered() -> None:
    logits = torch.full((1, 6, 2), -9.0)
    logits[0, 4, 0] = logits[0, 1, 1] = 5.0  # starts at d, ends at a
    first, last, _ = head().scores(logits)[0].tolist()
    assert first <= last


def test_figures_by_hand() -> None:
    some = head()
    metric = some.metric()
    scores = torch.tensor([[2, 3, 0.9], [2, 2, 0.5], [1, 4, 0.1], [4, 4, 0.2], [1, 1, 0.2]])
    targets = answers([2, 3], [2, 3], CUT, CUT, [2, 3])  # right: "b c", or "d"
    metric.update(scores, targets, torch.tensor([True, True, True, True, False]))
    # "b c" is right; "b" has 1 of 2 words; of "a b c d" two are right, 2·2/(3 + 2) since an article goes; "d" is right
    f1 = (1 + 2 / 3 + 4 / 5 + 1) / 4
    assert by_key(some.rows(metric.compute())) == pytest.approx({"em": 2 / 4, "f1": f1, "answers_cut": 2})


def test_posts_without_annotation_make_figures_of_zero() -> None:
    some = head()
    metric = some.metric()
    metric.update(torch.tensor([[1.0, 1.0, 0.5]]), answers([1, 1]), torch.tensor([False]))
    assert set(by_key(some.rows(metric.compute())).values()) == {0.0}


def test_divergence_is_the_mean_of_both_sides() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 6, 2)
    first[:, 0] = second[:, 0] = -torch.inf
    p, q = (of[:, 1:].log_softmax(dim=1) for of in (first, second))
    expected = (p.exp() * (p - q)).sum(dim=1).mean(dim=1)
    torch.testing.assert_close(head().kl(first, second, torch.ones(3, 6)), expected)


def test_surprise_is_that_of_a_start_and_an_end_drawn_alike() -> None:
    logits = torch.full((2, 6, 2), -torch.inf)
    logits[:, 1:5] = 0  # four tokens as likely as one another
    found = head().surprise(logits, torch.Generator().manual_seed(0))
    assert float(found) == pytest.approx(2 * 2 * math.log(4))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"max_answer=0: expected at least 1 token; type .*max_answer=30"):
        head(0)
    with pytest.raises(UserError, match="primary='accuracy'"):
        head(primary="accuracy")
    assert head(primary="em").primary == "em"
