"""VAT by hand: on a linear model the power method finds the first eigenvector of Fisher's information."""

import pytest
import torch
from objective.regularised import Linear, batch
from torch.nn import functional as F

from hatemtl.errors import UserError
from hatemtl.objective.regularisers.embeddings import norms, tokens
from hatemtl.objective.regularisers.vat import VAT

GIVEN = {"weight": 1.0, "epsilon": 0.1, "xi": 1e-3, "iterations": 1}


def fishers(forward: Linear) -> torch.Tensor:
    """(B, E, E): Wᵀ·(diag p - p·pᵀ)·W, the Hessian of KL(p(x) ‖ p(x + r)) at r = 0, of each post's first token."""
    posts = batch()
    p = forward(posts)["label"].softmax(dim=1).detach().double()
    weight = forward.heads["label"].layers[-1].weight.detach().double()  # type: ignore[union-attr, index]
    return torch.einsum("ki,bkl,lj->bij", weight, torch.diag_embed(p) - p[:, :, None] * p[:, None], weight)


def directions(forward: Linear, iterations: int) -> torch.Tensor:
    posts = batch()
    size = norms(forward.embed(posts) * tokens(posts)).detach()
    clean = {"label": forward(posts)["label"].detach()}
    torch.manual_seed(3)
    return VAT(**{**GIVEN, "iterations": iterations}).direction(forward, posts, clean, size)  # type: ignore[arg-type]


def test_one_step_of_the_power_method_is_the_hessian_times_the_direction_that_was_drawn() -> None:
    forward = Linear()
    drawn, found = directions(forward, 0)[:, 0].double(), directions(forward, 1)
    expected = F.normalize(torch.einsum("bij,bj->bi", fishers(forward), drawn), dim=1)
    torch.testing.assert_close(found[:, 0].double(), expected, atol=5e-3, rtol=5e-3)
    assert found[:, 1].abs().max() == 0, "padding stays where it is"


def test_many_steps_find_the_first_eigenvector_and_the_term_is_its_eigenvalue() -> None:
    forward, posts = Linear(), batch()
    values, vectors = torch.linalg.eigh(fishers(forward))
    found = directions(forward, 60)[:, 0].double()
    along = (found * vectors[:, :, -1]).sum(dim=1).abs()
    torch.testing.assert_close(along, torch.ones(5, dtype=torch.float64), atol=1e-3, rtol=0)
    vat = VAT(weight=1.0, epsilon=0.01, xi=1e-3, iterations=60)
    term = vat.terms(forward, posts, forward.encode(posts), forward(posts))["divergence"]
    size = norms(forward.embed(posts) * tokens(posts)).detach().double().flatten()
    expected = (values[:, -1] * (0.01 * size) ** 2 / 2).mean()  # of all posts, the one without an annotation too
    assert float(term.detach()) == pytest.approx(float(expected), rel=0.05)


def test_the_ascent_leaves_no_gradients_and_the_clean_prediction_gets_none() -> None:
    forward, posts = Linear("label", "other"), batch()
    hidden = forward.encode(posts)
    term = VAT(**GIVEN).terms(forward, posts, hidden, forward.read(hidden, posts, ["label"]))["divergence"]  # type: ignore[arg-type]
    assert all(p.grad is None for p in (*forward.encoder.parameters(), *forward.heads.parameters()))
    (of_hidden,) = torch.autograd.grad(term, hidden, allow_unused=True, retain_graph=True)
    assert of_hidden is None
    term.backward()
    assert all(p.grad is not None for p in forward.heads["label"].parameters())
    assert all(p.grad is None for p in forward.heads["other"].parameters()), "no step is made for that task"


@pytest.mark.parametrize(
    ("key", "value"),
    [("weight", -1.0), ("weight", float("nan")), ("epsilon", 0.0), ("xi", float("inf")), ("iterations", -1)],
)
def test_values_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"regulariser\.vat\.{key}="):
        VAT(**{**GIVEN, key: value})  # type: ignore[arg-type]
