"""The proximal term by hand, in bf16, and in a step whose gradients wait; a resumed run goes on with its average exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from network.test_module import Data, module, trainer
from network.test_module import batch as posts_of
from objective.regularised import RUN, Linear, batch
from training.test_callbacks import Scripted, fit, same

from hatemtl.errors import UserError
from hatemtl.objective.regularisers.proximal import Proximal
from hatemtl.training.callbacks import BestWeights, Checkpoint


def term(forward: Any, anchor: Any, posts: Any) -> torch.Tensor:
    return anchor.terms(forward, posts, forward.encode(posts), forward(posts))["divergence"]


def test_the_average_starts_at_the_first_weights_and_moves_by_its_share() -> None:
    forward: Any = Linear()
    anchor: Any = Proximal(weight=1.0, decay=0.75).begin(forward, RUN)
    place = next(n for n, weight in enumerate(anchor.weights) if weight is forward.encoder.shift)
    for value, expected in (4.0, 1.0), (8.0, 2.75):
        forward.encoder.shift.data.fill_(value)
        anchor.after_update(forward)
        assert anchor.get_buffer(str(place)).tolist() == [expected] * 3


def test_the_term_is_the_symmetric_divergence_from_the_averages_predictions() -> None:
    forward, posts = Linear(), batch()
    anchor: Any = Proximal(weight=1.0, decay=0.9).begin(forward, RUN)  # type: ignore[arg-type]
    q = forward(posts)["label"].log_softmax(-1).detach()
    assert float(term(forward, anchor, posts).detach()) == pytest.approx(0, abs=1e-9)
    forward.encoder.shift.data.fill_(0.5)
    p = forward(posts)["label"].log_softmax(-1)
    both = ((p.exp() - q.exp()) * (p - q)).sum(-1)  # KL(p‖q) + KL(q‖p)
    found = term(forward, anchor, posts)
    assert float(found.detach()) == pytest.approx(float(both[:4].mean().detach()))
    (slope,) = torch.autograd.grad(found, forward.encoder.shift)
    (expected,) = torch.autograd.grad(both[:4].mean(), forward.encoder.shift)
    assert torch.allclose(slope, expected), "the average's side is a constant"
    assert forward.encoder.shift.tolist() == [0.5] * 3, "the weights are back"
    posts.unlabelled = torch.arange(5) == 4
    assert float(term(forward, anchor, posts).detach()) == pytest.approx(float(both.mean().detach()))
    forward.weights["label"] = 0.1
    assert float(term(forward, anchor, posts).detach()) == pytest.approx(0.1 * float(both.mean().detach()))


def test_autocast_does_not_answer_with_its_copies_of_the_weights() -> None:
    forward, posts = Linear(), batch()
    anchor: Any = Proximal(weight=1.0, decay=0.9).begin(forward, RUN)  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in forward.heads.parameters():
            weight.add_(torch.randn_like(weight))
    exact = float(term(forward, anchor, posts).detach())
    with torch.autocast("cpu", torch.bfloat16):
        found = term(forward, anchor, posts)
    assert float(found.detach()) == pytest.approx(exact, rel=0.05)
    assert exact > 0.1


def test_a_step_has_the_gradients_of_losses_and_term_together() -> None:
    """The network's own pass waits for its gradients while the average computes with the same weights."""
    gradients = []
    for weight in (0.0, 1.0):
        multitask, posts = module("label").train(), posts_of(6)
        multitask.regularise({"proximal": Proximal(weight=weight, decay=0.5)}, RUN)
        with torch.no_grad():
            for parameter in multitask.trained_state().values():
                parameter.add_(0.1)
        torch.manual_seed(0)
        multitask.training_step(posts, 0).backward()
        gradients.append([w.grad for w in multitask.parameters() if w.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert any(not torch.equal(plain, held) for plain, held in zip(*gradients, strict=True))


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(epochs: int, resume: Path | None = None) -> dict[str, Any]:
        scripted, best = Scripted([0.1, 0.6, 0.3]), BestWeights(patience=None, spared=0)
        scripted.regularise({"proximal": Proximal(weight=1.0, decay=0.8)}, RUN)
        fit(scripted, epochs, best, Checkpoint(tmp_path / "last.ckpt"), resume=resume)
        return {**scripted.trained_state(), **scripted.states.state_dict()}

    whole, _ = run(3), run(2)
    assert same(run(3, tmp_path / "last.ckpt"), whole)


def test_training_with_it_stays_nearer_to_the_start() -> None:
    ways = []
    for weight in (0.0, 30.0):
        multitask = module("label")
        start = {name: value.clone() for name, value in multitask.trained_state().items()}
        multitask.regularise({"proximal": Proximal(weight=weight, decay=0.99)}, RUN)
        trainer().fit(multitask, Data(posts_of(6), 8))
        ways.append(sum(float((v - start[name]).square().sum()) for name, v in multitask.trained_state().items()))
    assert ways[1] < ways[0]


@pytest.mark.parametrize(("key", "value"), [("weight", -1.0), ("weight", float("nan")), ("decay", 1.0), ("decay", -0.1)])
def test_values_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"regulariser\.proximal\.{key}="):
        Proximal(**{"weight": 1.0, "decay": 0.9, key: value})
