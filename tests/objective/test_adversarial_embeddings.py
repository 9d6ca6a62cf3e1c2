"""FreeLB and SMART by hand on a linear network; what all that move embeddings have in common."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from network.test_module import batch as posts_of
from network.test_module import module
from objective.regularised import RUN, Linear, batch
from torch import nn

from hatemtl.errors import UserError
from hatemtl.objective.regularisers.base import Regulariser
from hatemtl.objective.regularisers.embeddings import check_embeddings, norms, tokens
from hatemtl.objective.regularisers.freelb import FreeLB
from hatemtl.objective.regularisers.smart import SMART
from hatemtl.objective.regularisers.vat import VAT

FREELB: dict[str, Any] = {"weight": 1.0, "steps": 2, "lr": 0.1, "max_norm": 0.15, "init": 0.0}
SMALL: dict[str, Any] = {"weight": 1.0, "noise": 1e-3, "lr": 0.1, "epsilon": 0.05}
EACH: list[Regulariser] = [
    VAT(weight=1.0, epsilon=0.1, xi=0.1, iterations=1), FreeLB(**{**FREELB, "init": 0.1}), SMART(**SMALL)
]  # fmt: skip
every = pytest.mark.parametrize("regulariser", EACH, ids=lambda one: type(one).__name__)


def losses(forward: Linear, posts: Any, steps: int) -> torch.Tensor:
    """FreeLB's loss as its algorithm has it, and its gradients, left on the weights."""
    words, shift = forward.embed(posts).detach(), torch.zeros(5, 2, 3)
    size, total = norms(words * tokens(posts)), torch.zeros(())
    for _ in range(steps):
        shift.requires_grad_()
        said = forward(posts, ["label"], forward.embed(posts) + shift)["label"]
        loss = forward.heads["label"].loss(said, posts.targets["label"], posts.has["label"]) / steps
        loss.backward()
        assert shift.grad is not None
        slope = shift.grad * tokens(posts)
        moved = shift.detach() + 0.1 * size * slope / norms(slope).clamp(min=1e-30)
        shift, total = moved * (0.15 * size / norms(moved).clamp(min=1e-30)).clamp(max=1), total + loss.detach()
    return total


@pytest.mark.parametrize("steps", [1, 3])
def test_freelb_adds_up_the_gradients_of_its_steps(steps: int) -> None:
    forward, posts = Linear("label", "other"), batch()
    term = FreeLB(**{**FREELB, "steps": steps}).terms(forward, posts, None, {"label": torch.zeros(5, 4)})["loss"]
    weights = [*forward.encoder.parameters(), *forward.heads.parameters()]
    assert all(weight.grad is None for weight in weights)
    term.backward()
    mine = [None if weight.grad is None else weight.grad.clone() for weight in weights]
    for weight in weights:
        weight.grad = None
    torch.testing.assert_close(term.detach(), losses(forward, posts, steps))
    for found, weight in zip(mine, weights, strict=True):
        assert (found is None) is (weight.grad is None)
        if found is not None:
            torch.testing.assert_close(found, weight.grad)


@pytest.mark.filterwarnings("ignore:.*self.trainer.*not registered.*")
@pytest.mark.parametrize("shares", [False, True])
def test_freelb_at_posts_that_hardly_move_is_the_loss_that_is_trained(shares: bool) -> None:
    """Also where a task learns from annotators' shares, and where one counts less than another."""
    multitask, posts = module("label", "target").train(), posts_of(6)
    multitask.encoder.eval()  # which has dropout
    if shares:
        posts.shares["label"] = torch.rand(6, 3).softmax(dim=1)
    hidden, logits = multitask.through.states_and_logits(posts)
    near = FreeLB(**{**FREELB, "lr": 1e-8, "steps": 1})
    term = near.terms(multitask.through, posts, hidden, logits)["loss"]
    torch.testing.assert_close(term, multitask.training_step(posts, 0))


def test_smart_climbs_one_step_and_is_cut_to_its_box() -> None:
    forward, posts = Linear(kind="score"), batch()
    posts.targets = {"label": torch.ones(5)}
    smart = SMART(**{**SMALL, "epsilon": 0.5})
    torch.manual_seed(0)
    shift = smart.shift(forward, posts, {"label": forward(posts)["label"].detach()})[:, 0]
    torch.manual_seed(0)
    size = forward.embed(posts)[:, 0].detach().square().mean(dim=1).sqrt()[:, None]
    start = 1e-3 * size * torch.randn(5, 2, 3)[:, 0]
    weight = forward.heads["label"].layers[-1].weight.detach()[0]  # type: ignore[union-attr, index]
    up = (start @ weight).sign()[:, None] * weight / weight.abs().max()  # (w·δ)² grows along ±w
    expected = start + 0.1 * size * up
    torch.testing.assert_close(shift[:4], expected[:4])
    torch.testing.assert_close(shift[4], start[4], msg="a post without an annotation asks for nothing")
    cut = SMART(**{**SMALL, "epsilon": 1e-4}).terms(forward, posts, forward.encode(posts), forward(posts))["divergence"]
    assert 0 < cut <= ((1e-4 * size[:4, 0] * weight.abs().sum()) ** 2).mean() * 1.01


@every
def test_no_annotated_post_is_no_nan(regulariser: Regulariser) -> None:
    forward, posts = Linear(), batch()
    posts.has["label"] &= False
    (term,) = regulariser.terms(forward, posts, forward.encode(posts), forward(posts)).values()
    term.backward()
    assert term.isfinite()
    assert isinstance(regulariser, VAT) or term == 0  # which is of posts, annotated or not


@every
def test_a_task_counts_by_its_weight(regulariser: Regulariser) -> None:
    tasks = ("label", "other")
    forward, posts = Linear(*tasks), batch(tasks=tasks)

    def term(*read: str, **weights: float) -> torch.Tensor:
        forward.weights = weights
        torch.manual_seed(0)
        (found,) = regulariser.terms(forward, posts, forward.encode(posts), forward(posts, read)).values()
        return found

    alone, whole = term("label", label=1.0), term(*tasks, label=1.0, other=0.0)
    torch.testing.assert_close(term("label", label=0.5), alone / 2)
    torch.testing.assert_close(whole, alone)
    whole.backward()
    assert not any(weight.grad is not None and weight.grad.any() for weight in forward.heads["other"].parameters())


@every
@pytest.mark.filterwarnings("ignore:.*self.trainer.*not registered.*")
@pytest.mark.parametrize("lora", [True, False])
def test_on_a_network_every_weight_gets_its_gradient_by_the_backward_pass_alone(
    regulariser: Regulariser, lora: bool
) -> None:
    multitask, posts = module(lora=lora).train(), posts_of(6)
    multitask.regularise({"mine": regulariser}, replace(RUN, corpora=dict.fromkeys(multitask.heads, 0)))
    with torch.autocast("cpu", torch.bfloat16, enabled=not lora):
        hidden, logits = multitask.through.states_and_logits(replace(posts, only="label"))
        (term,) = regulariser.terms(multitask.through, posts, hidden, logits).values()
    before = {name: (weight.grad, weight.requires_grad) for name, weight in multitask.named_parameters()}
    assert all(gradient is None for gradient, _ in before.values())
    assert any(learns for _, learns in before.values())
    assert multitask.training and all(m.training for m in multitask.encoder.modules())
    term.backward()
    for name, weight in multitask.named_parameters():
        assert (weight.grad is not None) is (weight.requires_grad and name.startswith(("encoder.", "heads.label."))), name
    multitask.through.learns = False
    multitask.zero_grad()
    hidden, logits = multitask.through.states_and_logits(posts)
    (term,) = regulariser.terms(multitask.through, posts, hidden, logits).values()
    term.backward()
    assert all(weight.grad is None for weight in multitask.encoder.parameters()), "the heads learn alone"


@every
@pytest.mark.filterwarnings("ignore:.*self.trainer.*not registered.*")
def test_a_weight_of_0_changes_nothing(regulariser: Any) -> None:
    ends = []
    for chosen in ({}, {"mine": replace(regulariser, weight=0.0)}):
        multitask, posts = module("label").train(), posts_of(6)
        multitask.regularise(chosen, RUN)
        torch.manual_seed(0)
        multitask.training_step(posts, 0).backward()
        ends.append([*(w.grad for w in multitask.parameters() if w.grad is not None), torch.rand(1)])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_an_encoder_that_reads_more_than_embeddings_is_refused() -> None:
    class Tokens(nn.Module):
        def __init__(self, share: float) -> None:
            super().__init__()
            self.words, self.share = nn.Embedding(9, 3), share

        def get_input_embeddings(self) -> nn.Module:
            return self.words

        def forward(self, *, attention_mask: Any, input_ids: Any = None, inputs_embeds: Any = None) -> Any:
            return SimpleNamespace(
                last_hidden_state=self.words(input_ids) if inputs_embeds is None else inputs_embeds * self.share
            )

    forward: Any = Linear()
    forward.encoder = Tokens(1.0)
    check_embeddings(forward, "vat")
    forward.encoder = Tokens(2.0)
    with pytest.raises(UserError, match=r"regulariser=\[vat\] moves the embeddings"):
        check_embeddings(forward, "vat")


@pytest.mark.parametrize(
    ("make", "given", "key", "value"),
    [
        (FreeLB, FREELB, "weight", -1.0), (FreeLB, FREELB, "steps", 0), (FreeLB, FREELB, "lr", 0.0),
        (FreeLB, FREELB, "max_norm", float("inf")), (FreeLB, FREELB, "init", 0.2),
        (SMART, SMALL, "weight", float("nan")), (SMART, SMALL, "noise", 0.0), (SMART, SMALL, "epsilon", -1.0),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(make: Any, given: dict[str, Any], key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"regulariser\.{make.__name__.lower()}\.{key}="):
        make(**{**given, key: value})
