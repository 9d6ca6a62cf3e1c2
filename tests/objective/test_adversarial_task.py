"""Gradient reversal by hand; what the discriminator is asked; that it learns, is kept, and is not saved."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from network.test_module import batch as posts_of
from network.test_module import module
from objective.regularised import RUN, Linear, batch
from torch.nn import functional as F

from hatemtl.errors import UserError
from hatemtl.objective.regularisers.adversarial_task import AdversarialTask, Adversary, reversed_gradient

GIVEN: dict[str, Any] = {"weight": 1.0, "of": "corpus", "coefficient": 0.5, "schedule": "constant", "layers": 1}
TWO = replace(RUN, corpora={"label": 0, "same": 0, "other": 1})


def adversary(forward: Linear, **other: Any) -> Adversary:
    return AdversarialTask(**{**GIVEN, **other}).begin(forward, TWO)


def test_a_gradient_is_reversed_and_scaled() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = reversed_gradient(x, 0.5)
    assert torch.equal(y, x)
    (y**2).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [-1.0, -2.0]


def test_the_discriminator_descends_what_the_encoder_ascends() -> None:
    forward = Linear("label", "same", "other")
    posts, mine = batch(tasks=forward.heads), adversary(forward)
    posts.has = {"label": [1, 0, 0, 0, 0], "same": [1, 1, 0, 0, 0], "other": [0, 0, 1, 1, 0]}
    posts.has = {task: torch.tensor(has).bool() for task, has in posts.has.items()}
    hidden = forward.encode(posts)
    term = mine.terms(forward, posts, hidden, {})["loss"]
    inputs = hidden[:4, 0].detach().requires_grad_()  # the second token is padding, the last post of no known corpus
    layer: Any = mine.layers[-1]  # type: ignore[index]
    plain = F.cross_entropy(layer(inputs), torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(term, plain)
    of_hidden, of_layer = torch.autograd.grad(term, [hidden, layer.weight])
    of_inputs, expected = torch.autograd.grad(plain, [inputs, layer.weight])
    torch.testing.assert_close(of_hidden[:4, 0], -0.5 * of_inputs)
    assert of_hidden[4].abs().max() == of_hidden[:, 1].abs().max() == 0
    torch.testing.assert_close(of_layer, expected)


def test_it_guesses_a_tasks_labels_and_no_post_with_one_is_zero() -> None:
    forward = Linear("label", "same", "other", labels=3)
    posts, mine = batch(tasks=forward.heads), adversary(forward, of="same")
    truth, known = mine.truth(posts)
    assert truth is posts.targets["same"] and known is posts.has["same"]
    posts.has["same"] = known & False
    assert mine.terms(forward, posts, forward.encode(posts), {})["loss"] == 0


def test_the_coefficient_rises_as_ganins() -> None:
    forward = Linear("label", "same", "other")
    rising = adversary(forward, schedule="ganin", coefficient=2.0)
    assert [rising.coefficient(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 2 * math.tanh(2.5), 2 * math.tanh(5.0)])
    assert adversary(forward).coefficient(0.0) == 0.5


@pytest.mark.filterwarnings("ignore:.*self.trainer.*not registered.*")
def test_it_is_trained_at_the_heads_rate_and_stands_in_the_checkpoint_alone() -> None:
    multitask = module("label", "target").train()
    corpora = replace(RUN, corpora={"label": 0, "target": 1})
    multitask.regularise({"adversarial_task": AdversarialTask(**GIVEN)}, corpora)
    posts = posts_of(6)
    multitask.training_step(posts, 0).backward()
    mine = multitask.states["adversarial_task"]
    assert all(weight.grad is not None for weight in mine.parameters())
    optimizer, _ = multitask.optimization.optimizer(
        multitask.optimization.plan([1], 1), [], [], regularisers=multitask.states.named_parameters()
    )
    assert {group["lr"] for group in optimizer.param_groups} == {multitask.optimization.head_lr}
    checkpoint: dict[str, Any] = {}
    multitask.on_save_checkpoint(checkpoint)
    assert {f"states.adversarial_task.layers.1.{name}" for name in ("weight", "bias")} <= set(checkpoint["state_dict"])
    assert not [name for name in (*multitask.heads.state_dict(), *multitask.encoder.state_dict()) if "adversarial" in name]


def test_what_says_nothing_is_refused() -> None:
    forward: Any = Linear("label", "same", "other")
    with pytest.raises(UserError, match="all tasks read one corpus"):
        AdversarialTask(**GIVEN).begin(forward, replace(TWO, corpora=dict.fromkeys(forward.heads, 0)))
    with pytest.raises(UserError, match="did you mean 'other'"):
        AdversarialTask(**{**GIVEN, "of": "othr"}).check(forward)
    with pytest.raises(UserError, match="not score"):
        AdversarialTask(**{**GIVEN, "of": "score"}).check(Linear("score", kind="score"))  # type: ignore[arg-type]
    forward.by_task = True
    with pytest.raises(UserError, match="depends on the task"):
        AdversarialTask(**GIVEN).check(forward)


@pytest.mark.parametrize(("key", "value"), [("weight", -1.0), ("coefficient", float("nan")), ("layers", 0)])
def test_values_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"regulariser\.adversarial_task\.{key}="):
        AdversarialTask(**{**GIVEN, key: value})
