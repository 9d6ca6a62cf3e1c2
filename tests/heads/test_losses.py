"""Losses against papers' formulas by hand, against torch where they reduce to it, and against what a head makes of them."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from heads.test_base import GIVEN, LAYERS, posts
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional as F

from hatemtl.errors import UserError
from hatemtl.heads.base import Head
from hatemtl.heads.losses import Asymmetric, ClassBalanced, CrossEntropy, Focal, Loss
from hatemtl.labels import Kind, LabelSpace

NAMES = ("a", "b", "c")
ASYMMETRIC = Asymmetric(gamma_positive=1, gamma_negative=4, margin=0.05, detach=False)
LOSSES: dict[str, Loss | None] = {
    "default": None,
    "cross_entropy": CrossEntropy(),
    "soft_targets": CrossEntropy(targets="shares"),
    "focal": Focal(gamma=2, alpha=None),
    "half_focal": Focal(gamma=0.5, alpha=None),
    "class_balanced": ClassBalanced(beta=0.9, gamma=0.5),
    "asymmetric": ASYMMETRIC,
    "half_asymmetric": Asymmetric(gamma_positive=0.5, gamma_negative=0.5, margin=0.05, detach=True),
}
OF_KIND = [
    (kind, name)
    for kind in ("multiclass", "multilabel", "tokens")
    for name, loss in LOSSES.items()
    if loss is None or kind in loss.kinds
]


def head(kind: str, loss: Loss | None = None, **given: Any) -> Head:
    make, base = GIVEN[kind]
    space = LabelSpace(kind, ("marked",) if kind == "tokens" else NAMES)  # type: ignore[arg-type]
    return make(space=space, **(LAYERS | base | {"balance": 0.0} | given), loss=loss)  # type: ignore[return-value]


def shown(some: Head, *counts: int) -> Head:
    """The head, told of training posts of which so many carry each label, one each."""
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    some.observe(labels if some.kind == "multiclass" else F.one_hot(labels).float())
    return some


def drawn(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    logits, has = torch.randn(40, 3, generator=draw, dtype=torch.float64), torch.rand(40, generator=draw) < 0.6
    targets = torch.randint(3, (40,), generator=draw)
    return logits, targets if kind == "multiclass" else torch.rand(40, 3, generator=draw, dtype=torch.float64).round(), has


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("loss", [Focal(gamma=0, alpha=None), ClassBalanced(beta=0, gamma=0)], ids=["focal", "balanced"])
@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_without_focus_and_balance_a_loss_is_cross_entropy(kind: str, loss: Loss, smoothing: float) -> None:
    given = {"label_smoothing": smoothing, "label_weights": {"b": 3}}
    one, other = (shown(head(kind, of, **given), 30, 5, 2) for of in (loss, None))
    torch.testing.assert_close(one.loss(*drawn(kind)), other.loss(*drawn(kind)))


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_without_powers_and_margin_an_asymmetric_loss_is_binary_cross_entropy(smoothing: float, detach: bool) -> None:
    loss = Asymmetric(gamma_positive=0, gamma_negative=0, margin=0, detach=detach)
    one, other = (shown(head("multilabel", of, label_smoothing=smoothing, balance=1.0), 30, 5, 2) for of in (loss, None))
    torch.testing.assert_close(one.loss(*drawn("multilabel")), other.loss(*drawn("multilabel")))


def test_a_focal_loss_of_one_label_by_hand() -> None:
    """p = .7, .2, .1: (1 - p)²·(-log p)."""
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
    expected = torch.tensor([[0.3**2 * -math.log(0.7), 0.8**2 * -math.log(0.2), 0.9**2 * -math.log(0.1)]])
    torch.testing.assert_close(Focal(gamma=2, alpha=None).costs(logits), expected)
    torch.testing.assert_close(Focal(gamma=2, alpha=None).of_label(logits, torch.tensor([1]), 0.0), expected[:, 1])
    smoothed = 0.9 * expected[:, 1] + 0.1 * expected.mean(dim=1)
    torch.testing.assert_close(Focal(gamma=2, alpha=None).of_label(logits, torch.tensor([1]), 0.1), smoothed)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_a_focal_loss_of_yes_and_no_is_torchvisions(gamma: float) -> None:
    """`torchvision.ops.sigmoid_focal_loss`, written out: cross-entropy · (1 - p_t)^γ · α_t."""
    logits, targets, _ = drawn("multilabel")
    p = logits.sigmoid()
    p_t = p * targets + (1 - p) * (1 - targets)
    alpha_t = 0.25 * targets + 0.75 * (1 - targets)
    expected = alpha_t * (1 - p_t) ** gamma * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(Focal(gamma=gamma, alpha=0.25).of_answers(logits, targets, torch.ones(3), 0.0), expected)


def test_an_asymmetric_loss_by_hand() -> None:
    """p = .8 and .04 with m = .05: a yes costs (1 - p)·(-log p), a no (p - m)⁴·(-log(1 - p + m)), below m nothing."""
    yes, no = ASYMMETRIC.answers(torch.tensor([0.8, 0.04]).logit())
    torch.testing.assert_close(yes, torch.tensor([0.2 * -math.log(0.8), 0.96 * -math.log(0.04)]))
    torch.testing.assert_close(no, torch.tensor([0.75**4 * -math.log(0.25), 0.0]))


def test_focal_powers_pass_a_gradient_on() -> None:
    """(1 - p)²·(-log p): by s, with p' = p(1 - p), -2p(1 - p)²·(-log p) - (1 - p)³."""
    p = torch.tensor(0.6, dtype=torch.float64)
    logit = p.logit().requires_grad_()
    yes, _ = Focal(gamma=2, alpha=None).answers(logit)
    yes.backward()
    assert float(logit.grad) == pytest.approx(float(2 * p * (1 - p) ** 2 * p.log() - (1 - p) ** 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_detached_powers_change_the_gradient_and_not_the_loss(margin: float) -> None:
    p, gradients = torch.tensor(0.6), []
    for detach in (False, True):
        logit = p.logit().requires_grad_()
        _, no = Asymmetric(gamma_positive=0, gamma_negative=2, margin=margin, detach=detach).answers(logit)
        torch.testing.assert_close(no, (p - margin) ** 2 * -(1 - p + margin).log())
        no.backward()
        gradients.append(logit.grad)
    alone = (p - margin) ** 2 / (1 - p + margin) * p * (1 - p)  # d(-log(1 - p + m)) / d logit, weighed
    torch.testing.assert_close(gradients[1], alone)
    assert gradients[0] > alone


def test_a_class_balanced_loss_weighs_by_hand_and_sums_to_the_number_of_labels() -> None:
    weights = ClassBalanced(beta=0.9, gamma=0).label_weights(torch.tensor([1.0, 2.0, 0.0]))  # 1 and 1.9 posts in effect
    torch.testing.assert_close(weights, torch.tensor([1, 1 / 1.9, 1]) * 3 / (2 + 1 / 1.9))
    for beta in (0.0, 0.5, 0.999, 1 - 1e-12):
        assert ClassBalanced(beta=beta, gamma=0).label_weights(torch.tensor([900.0, 90.0, 9.0])).sum() == pytest.approx(3)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_class_balance_goes_from_none_to_inverse_frequency(kind: str) -> None:
    labels = torch.arange(3).repeat_interleave(torch.tensor([80, 15, 5])).numpy()
    inverse = torch.from_numpy(compute_class_weight("balanced", classes=np.arange(3), y=labels)).float()
    none, full = (shown(head(kind, ClassBalanced(beta=beta, gamma=0)), 80, 15, 5) for beta in (0, 1 - 1e-9))
    torch.testing.assert_close(none.label_weights, torch.ones(3))
    torch.testing.assert_close(full.label_weights, inverse / inverse.mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_shares_that_are_all_one_labels_are_that_label(smoothing: float) -> None:
    logits, targets, has = drawn("multiclass")
    some = head("multiclass", CrossEntropy(targets="shares"), label_weights={"a": 3, "c": 0.5}, label_smoothing=smoothing)
    hot = F.one_hot(targets, 3).double()
    torch.testing.assert_close(some.loss(logits, hot, has), some.loss(logits, targets, has))
    for one, other in zip(some.losses_by_label(logits, hot, has), some.losses_by_label(logits, targets, has), strict=True):
        torch.testing.assert_close(one.float(), other.float())


def test_of_shares_the_loss_is_torchs_and_least_where_scores_are_the_shares() -> None:
    shares = torch.tensor([[2 / 3, 1 / 3, 1e-9], [1 / 3, 1 / 3, 1 / 3]])
    some, has, logits = (
        head("multiclass", CrossEntropy(targets="shares")),
        torch.ones(2, dtype=torch.bool),
        torch.randn(2, 3),
    )
    torch.testing.assert_close(some.loss(logits, shares, has), F.cross_entropy(logits, shares))
    at = shares.log().requires_grad_()
    some.loss(at, shares, has).backward()
    torch.testing.assert_close(at.grad, torch.zeros(2, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_label_weights_by_hand(kind: str) -> None:
    logits, targets, _ = drawn(kind)
    some, has, weights = (
        head(kind, label_weights={"b": 3, "c": 0}),
        torch.ones(40, dtype=torch.bool),
        torch.tensor([1.0, 3, 0]),
    )
    if kind == "multiclass":
        expected = F.cross_entropy(logits, targets, weight=weights.double())
    else:
        each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=0)
        expected = (each * weights).sum() / 4
    torch.testing.assert_close(some.loss(logits, targets, has), expected)
    shown(some, 20, 5, 1)  # which changes nothing of it
    torch.testing.assert_close(some.loss(logits, targets, has), expected)


def test_a_part_takes_the_weights_of_its_own_labels_and_names_may_be_numbers() -> None:
    torch.testing.assert_close(
        head("multilabel", label_weights={"women": 9, "a": 4}).label_weights, torch.tensor([2.0, 0.5, 0.5])
    )
    make, base = GIVEN["multiclass"]
    some: Any = make(space=LabelSpace("multiclass", ("0", "1")), **LAYERS, **base, label_weights={1: 3})
    assert some.label_weights.tolist() == [0.5, 1.5]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("kind", "name"), [*OF_KIND, ("ordinal", "default"), ("choice", "default"), ("score", "default")])
def test_losses_by_label_times_their_shares_are_the_loss(kind: str, name: str, smoothing: float) -> None:
    make, base = GIVEN[kind]
    given: dict[str, Any] = LAYERS | base | ({"label_smoothing": smoothing} if kind not in ("ordinal", "score") else {})
    given |= {"loss": LOSSES[name]} if LOSSES[name] else {}
    given |= {"label_weights": {"b": 3, "c": 0.2}} if kind in ("multiclass", "multilabel") else {}
    given |= {"balance": 0.0} if name == "class_balanced" else {}
    names = NAMES if kind not in ("tokens", "score") else ("one",)
    some: Any = make(space=LabelSpace(kind, names), **given)  # type: ignore[arg-type]
    if kind in ("multiclass", "multilabel"):
        shown(some, 30, 5, 2)
    if kind == "choice":
        logits, targets, has = torch.randn(4, 3), torch.tensor([0, 1, 2, 1]), torch.tensor([True, True, False, True])
        logits[3, 2] = -torch.inf
    else:
        hidden, mask, targets, has = posts("score" if kind == "score" else kind)
        has[1], logits = False, some(hidden, mask)
    losses, shares = some.losses_by_label(logits, targets, has)
    assert losses.shape == shares.shape == (len(names),)
    assert shares.sum().item() == pytest.approx(1)
    torch.testing.assert_close((losses * shares).sum(), some.loss(logits, targets, has))
    losses, shares = some.losses_by_label(logits, targets, torch.zeros_like(has))
    assert not shares.any() and torch.isfinite(losses).all()


@pytest.mark.parametrize(("kind", "name"), OF_KIND)
def test_a_loss_is_finite_whatever_the_logits_computes_in_float32_and_is_a_zero_with_gradient_of_no_post(
    kind: str, name: str
) -> None:
    some = head(kind, LOSSES[name], label_smoothing=0.1)
    logits = torch.tensor([[0.0, 200.0, -200.0], [-200.0, 1e-9, 40.0]], dtype=torch.bfloat16, requires_grad=True)
    targets = torch.tensor([0, 2]) if kind == "multiclass" else torch.tensor([[0.0, 0, 1], [1, 1, 0]])
    for has in (torch.tensor([True, True]), torch.tensor([False, False])):
        loss = some.loss(logits, targets, has)
        assert loss.dtype == torch.float32
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()
        assert bool(gradient.any()) == bool(loss) == bool(has.any())


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_by_default_no_bit_of_a_loss_is_another_than_torchs(kind: str) -> None:
    logits, targets, has = (x.float() if x.is_floating_point() else x for x in drawn(kind))
    if kind == "multiclass":
        expected = (F.cross_entropy(logits, targets, reduction="none") * has).sum() / has.sum()
    else:
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)
        expected = (losses * has).sum() / has.sum()
    assert torch.equal(shown(head(kind), 30, 5, 2).loss(logits, targets, has), expected)


@pytest.mark.parametrize(
    ("make", "given", "says"),
    [
        (Focal, {"gamma": -1, "alpha": None}, r"^gamma=-1: expected a number, 0 .* type tasks\.TASK\.head\.loss\.gamma=2"),
        (Focal, {"gamma": 2, "alpha": 1.0}, r"^alpha=1\.0: expected a share between 0 and 1"),
        (ClassBalanced, {"beta": 1.0, "gamma": 0}, r"^beta=1\.0: .*below 1"),
        (ClassBalanced, {"beta": 0.9, "gamma": math.inf}, r"^gamma=inf"),
        (Asymmetric, {"gamma_positive": 0, "gamma_negative": 4, "margin": 1.0, "detach": False}, r"^margin=1\.0"),
        (Asymmetric, {"gamma_positive": 0, "gamma_negative": -4, "margin": 0, "detach": False}, r"^gamma_negative=-4"),
    ],
)
def test_a_setting_out_of_range_is_named(make: Any, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make(**given)


@pytest.mark.parametrize(
    ("kind", "given", "says"),
    [
        ("multiclass", {"loss": ASYMMETRIC}, "Asymmetric is for heads of multilabel, tokens, and this one is multiclass"),
        ("tokens", {"loss": ClassBalanced(beta=0.9, gamma=0)}, "ClassBalanced is for heads of multiclass, multilabel"),
        ("multiclass", {"loss": Focal(gamma=2, alpha=0.25)}, r"loss\.alpha=0\.25: .*label_weights"),
        ("multiclass", {"loss": ClassBalanced(beta=0.9, gamma=0), "balance": 0.5}, r"balance=0\.5: .*balance=0"),
        ("multilabel", {"label_weights": {"a": -1}}, r"label_weights\.a=-1: expected a number, 0 or more"),
        ("multiclass", {"label_weights": {"a": math.nan}}, r"label_weights\.a=nan"),
        ("multilabel", {"label_weights": dict.fromkeys(NAMES, 0)}, "no label of a, b, c would count"),
    ],
)
def test_what_a_head_cannot_do_is_refused(kind: Kind, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        head(kind, **given)
