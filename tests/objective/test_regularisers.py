"""R-Drop by hand and by torch's own divergence; and where it would say nothing."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, kl_divergence

from hatemtl.errors import UserError
from hatemtl.heads.choice import ChoiceHead
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.heads.ordinal import OrdinalHead
from hatemtl.heads.score import ScoreHead
from hatemtl.heads.tokens import TokensHead
from hatemtl.labels import LabelSpace
from hatemtl.objective.regularisers.r_drop import RDrop

B, T = 5, 4
POST: dict[str, Any] = {"hidden_size": 2, "layers": 1, "dropout": 0.0, "pooling": "cls"}
SPACE = LabelSpace("multiclass", ("a", "b", "c", "d"))
HEADS = {
    "multiclass": MulticlassHead(space=SPACE, label_smoothing=0.0, balance=0.0, **POST),
    "multilabel": MultilabelHead(space=SPACE, threshold=0.5, balance=0.0, **POST),
    "ordinal": OrdinalHead(space=SPACE, balance=0.0, **POST),
    "score": ScoreHead(space=SPACE, loss="mse", **POST),
    "choice": ChoiceHead(space=SPACE, **POST),
    "tokens": TokensHead(space=SPACE, hidden_size=2, layers=1, dropout=0.0, threshold=0.5, balance=0.0),
}
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
HAS = torch.tensor([True, False, True, True, False])


def divergence(kind: str, first: Tensor, second: Tensor, has: Tensor = HAS, weight: float = 1.0) -> Tensor:
    """The term of one task of this weight, of a network whose second pass says `second`."""

    class Again(nn.Module):
        def forward(self, batch: Any, tasks: Any) -> dict[str, Tensor]:
            return {"label": second}

    batch: Any = SimpleNamespace(attention_mask=MASK, has={"label": has}, first=lambda values: values)
    forward: Any = Again()
    forward.heads, forward.weights = {"label": HEADS[kind]}, {"label": weight}
    return RDrop(weight=1.0).terms(forward, batch, None, {"label": first})["divergence"]


def both(kind: str, first: Tensor, second: Tensor) -> Tensor:
    """The mean of both divergences, a post or an answer each, by torch."""
    make: Any = Categorical if kind in ("multiclass", "choice") else Bernoulli
    p, q = make(logits=first), make(logits=second)
    return (kl_divergence(p, q) + kl_divergence(q, p)) / 2


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "ordinal", "tokens"])
def test_divergence_is_torchs_over_annotated_posts(kind: str) -> None:
    torch.manual_seed(0)
    first, second = torch.randn(B, T), torch.randn(B, T)
    found = both(kind, first, second)
    if kind == "tokens":
        found = (found * MASK).sum(dim=1) / MASK.sum(dim=1)
    elif kind != "multiclass":
        found = found.mean(dim=1)
    torch.testing.assert_close(divergence(kind, first, second), found[HAS].mean())
    torch.testing.assert_close(divergence(kind, first, second, weight=0.1), 0.1 * found[HAS].mean())


def test_a_choice_that_a_post_does_not_have_says_nothing() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(B, 3), torch.randn(B, 3)
    less = divergence("choice", first[:, :2], second[:, :2])
    first[:, 2] = second[:, 2] = -torch.inf
    first.requires_grad_()
    more = divergence("choice", first, second)
    torch.testing.assert_close(more, less)
    more.backward()
    assert first.grad is not None
    assert first.grad.isfinite().all()


def test_equal_passes_diverge_by_nothing_and_no_post_is_no_nan() -> None:
    logits = torch.randn(B, T)
    for kind in ("multiclass", "multilabel", "ordinal", "tokens", "score"):
        assert divergence(kind, logits, logits) == 0
        assert divergence(kind, logits, logits + 1, HAS & False) == 0


def passes(dropout: float, kind: str = "multiclass") -> Any:
    head = nn.Linear(2, 2)
    head.space = LabelSpace(kind, ("a", "b"))  # type: ignore[assignment,arg-type]
    return SimpleNamespace(encoder=nn.Sequential(nn.Dropout(dropout)), heads={"label": head})


def test_it_refuses_to_run_where_no_dropout_is_on() -> None:
    RDrop(weight=1.0).check(passes(0.1))
    still = passes(0.0)
    still.heads["label"] = nn.Sequential(nn.Dropout(0.1), still.heads["label"])  # as heads have by default
    still.heads["label"].space = still.heads["label"][1].space
    for without in (passes(0.0), still):
        with pytest.raises(UserError, match=r"r_drop\] needs dropout.*method\.body_dropout=true"):
            RDrop(weight=1.0).check(without)
    with pytest.raises(UserError, match=r"guesses tokens"):
        RDrop(weight=1.0).check(passes(0.1, "masked"))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(UserError, match=r"regulariser\.r_drop\.weight"):
        RDrop(weight=weight)
