"""Gradients that a step leaves where tasks are weighed by them: over batches, in parts, beside regularisers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from network.test_module import SPACES, WEIGHTS, batch, module, part
from torch import Tensor
from torchjd import aggregation

from hatemtl.batches.batch import Batch
from hatemtl.labels import IGNORED
from hatemtl.machine.crew import Crew
from hatemtl.network.module import MultitaskModule
from hatemtl.objective import surgery
from hatemtl.objective.from_losses import DynamicAverage, Famo, GeometricMean, Random, SmoothTchebycheff, Uncertainty
from hatemtl.objective.regularisers.base import Regulariser
from hatemtl.objective.weighting import Sum, Weighting

Make = Callable[..., Weighting]
MGDA: Make = partial(surgery.mgda, of="parameters", epsilon=1e-3, max_iters=100)


def still(**settings: Any) -> MultitaskModule:
    """A network in training without dropout, so that two passes are one."""
    found = module(**settings).train()
    for each in found.modules():
        if isinstance(each, torch.nn.Dropout):
            each.p = 0.0
    return found


def weighing(make: Make, **settings: Any) -> MultitaskModule:
    found = still(**settings)
    found.weightings[0] = make(tasks=WEIGHTS)
    return found


def gradients(made: MultitaskModule, batches: Sequence[Batch], accumulate: int = 1, step: int = 0) -> dict[str, Tensor]:
    """What one optimizer step of these batches leaves on the parameters."""
    stub: Any = SimpleNamespace(
        accumulate_grad_batches=accumulate, current_epoch=0, global_step=step, is_last_batch=False, precision_plugin=None
    )
    made._trainer = stub
    made.optimization = replace(made.optimization, accumulate=accumulate)
    made.plan = made.optimization.plan([*range(1, made.optimization.total_epochs + 1)], 2)
    made.on_train_epoch_start()
    made.on_train_batch_start(batches[0], 0)
    made.zero_grad()
    for each in batches:
        made.backward(made.training_step(each, 0) / accumulate)
    made.on_before_optimizer_step(SimpleNamespace(param_groups=[]))  # type: ignore[arg-type]
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def rows(posts: Batch, **settings: Any) -> dict[str, dict[str, Tensor]]:
    """Each task's own gradients of weight·loss, a network and a backward pass a task."""
    found = {}
    for task in SPACES:
        alone = still(**settings)
        (WEIGHTS[task] * alone.losses(posts, alone(posts))[task]).backward()
        found[task] = {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
    return found


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda said, name=name: f"{name}: {said}"
        )


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("absent", [None, "target"])
def test_shared_parameters_learn_by_the_aggregate_and_heads_by_their_own_loss(lora: bool, absent: str | None) -> None:
    posts = batch(9, without=absent)
    own, found = rows(posts, lora=lora), gradients(weighing(MGDA, lora=lora), [posts])
    present = [task for task in SPACES if task != absent]
    shared = [name for name in own["label"] if name.startswith("encoder.")]
    jacobian = torch.stack([torch.cat([own[task][name].flatten() for name in shared]) for task in present])
    whole = len(present) * aggregation.MGDA()(jacobian)
    expected = dict(zip(shared, whole.split([own["label"][name].numel() for name in shared]), strict=True))
    close({n: g.flatten() for n, g in found.items() if n in shared}, expected)
    for task in SPACES:
        for name in own[task].keys() - set(shared):
            torch.testing.assert_close(found[name], own[task][name])


def test_a_weighting_of_ones_is_the_sum() -> None:
    ones = partial(surgery.Solved, of="parameters", solve=lambda gramian: torch.ones(len(gramian)))
    posts = batch(9)
    close(gradients(weighing(ones), [posts]), gradients(weighing(Sum), [posts]))
    of_hidden = partial(surgery.Solved, of="hidden", solve=lambda gramian: torch.ones(len(gramian)))
    close(gradients(weighing(of_hidden), [posts]), gradients(weighing(Sum), [posts]))


def parts(posts: Batch, pieces: Sequence[slice]) -> list[Batch]:
    """The posts in pieces, each with the share that it has of what a task's loss is the mean of: posts, or words."""

    def count(some: Batch, task: str) -> Tensor:
        return (some.targets[task] >= 0).sum() if task == "rationale" else some.has[task].sum()

    cut = [part(posts, piece) for piece in pieces]
    shares = [{t: float(count(p, t) / count(posts, t)) for t in SPACES} for p in cut]
    return [replace(p, parts=of, part=len(p) / len(posts)) for p, of in zip(cut, shares, strict=True)]


STCH: Make = partial(SmoothTchebycheff, mu=0.5)


FAMO: Make = partial(Famo, learning_rate=0.025, decay=1e-3)


DWA: Make = partial(DynamicAverage, temperature=2.0)
GRADNORM: Make = partial(surgery.GradNorm, of="parameters", alpha=1.5)


@pytest.mark.parametrize(
    "make", [Sum, MGDA, partial(surgery.nash_mtl, of="parameters"), STCH, GeometricMean, FAMO, Uncertainty, DWA, GRADNORM]
)
def test_batches_of_one_step_are_one_batch(make: Make) -> None:
    posts = batch(12)
    posts.has["target"][5:] = False  # one of the batches has none
    cut, whole = weighing(make), weighing(make)
    close(gradients(cut, parts(posts, [slice(0, 5), slice(5, 12)]), 2), gradients(whole, [posts]))
    assert len(cut.told) == len(whole.told) == 1
    told, expected = ({name: float(figure) for name, figure in made.told[0].items()} for made in (cut, whole))
    assert told == pytest.approx(expected, rel=1e-3, abs=1e-6)
    states = [made.weighting.state_dict() for made in (cut, whole)]
    for name, value in states[1].items():  # what it goes on from
        torch.testing.assert_close(states[0][name], value, equal_nan=True, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [Sum, Uncertainty])
def test_batches_of_a_task_each_are_one_batch(make: Make) -> None:
    posts = batch(9)
    apart = [replace(posts, only=task, parts={task: 1.0}) for task in SPACES]
    close(gradients(weighing(make), apart, 3), gradients(weighing(make), [posts]))


def test_hidden_states_are_weighed_in_place_of_parameters() -> None:
    posts, made = batch(9), still()
    hidden, logits = made.through.states_and_logits(posts)
    assert hidden is not None
    losses = made.losses(posts, logits)
    each = [WEIGHTS[t] * torch.autograd.grad(losses[t], hidden, retain_graph=True)[0].flatten() for t in SPACES]
    weights = 3 * aggregation.MGDAWeighting()(torch.stack(each) @ torch.stack(each).T)
    own, found = rows(posts), gradients(weighing(partial(MGDA, of="hidden")), [posts])
    shared = [name for name in own["label"] if name.startswith("encoder.")]
    expected = {n: sum(w * own[t][n] for w, t in zip(weights, SPACES, strict=True)) for n in shared}
    close({n: found[n] for n in shared}, expected)  # type: ignore[arg-type]
    for task in SPACES:
        for name in own[task].keys() - set(shared):
            torch.testing.assert_close(found[name], own[task][name])


@pytest.mark.parametrize("make", [MGDA, GRADNORM])
def test_hidden_states_of_a_batch_are_weighed_as_they_are_and_count_by_its_posts(make: Make) -> None:
    posts, made = batch(12), weighing(partial(make, of="hidden"))
    posts.has["target"][5:] = False
    pieces = parts(posts, [slice(0, 4), slice(4, 12)])
    found = gradients(made, pieces, 2)
    expected: dict[str, Any] = {}
    again = weighing(partial(make, of="hidden"))
    for piece in pieces:
        assert piece.parts is not None
        gradients(again, [replace(piece, parts=None)])
        own = rows(piece)
        for task in SPACES:
            weight = again.told[0].get(f"weight_{task}", 0)
            for name, gradient in own[task].items():
                of = weight if name.startswith("encoder.") else 1
                expected[name] = expected.get(name, 0) + piece.parts[task] * of * gradient
    close({name: gradient for name, gradient in found.items() if not name.startswith("weightings.")}, expected)


class Pull(Regulariser):
    weight = 0.5

    def terms(self, forward: Any, batch: Any, hidden: Any, logits: Any) -> dict[str, Tensor]:
        return {"states": hidden.square().mean()}


@pytest.mark.parametrize("of", ["parameters", "hidden"])
def test_terms_of_regularisers_come_on_top(of: str) -> None:
    posts = batch(9)
    made, plain, bare = weighing(partial(MGDA, of=of)), weighing(partial(MGDA, of=of)), still()
    made.regularisers = {"pull": Pull()}
    (0.5 * bare.through.encode(posts).square().mean()).backward()
    term = {name: p.grad for name, p in bare.named_parameters() if p.grad is not None}
    expected = {n: g + term.get(n, 0) for n, g in gradients(plain, [posts]).items()}
    close(gradients(made, [posts]), expected)


@pytest.mark.parametrize("make", [Sum, MGDA])
@pytest.mark.parametrize("accumulate", [2, 5])
def test_terms_of_the_batches_of_a_step_are_weighed_by_their_posts(make: Make, accumulate: int) -> None:
    """Also in the last step of an epoch, which may have fewer batches than others."""
    posts, cut, whole = batch(9), weighing(make), weighing(make)
    cut.regularisers = whole.regularisers = {"pull": Pull()}
    close(gradients(cut, parts(posts, [slice(0, 2), slice(2, 9)]), accumulate), gradients(whole, [posts]))


def test_heads_that_learn_alone_leave_the_encoder_alone() -> None:
    made = weighing(MGDA, heads_first=1)
    found = gradients(made, [batch(9)])
    assert {name.split(".")[0] for name in found} == {"heads"}
    assert made.told == []


def test_a_step_tells_weights_and_cosines() -> None:
    posts, made = batch(9), weighing(partial(surgery.pcgrad, of="parameters"))
    gradients(made, [posts])
    own = rows(posts)
    shared = [name for name in own["label"] if name.startswith("encoder.")]
    flat = {task: torch.cat([own[task][name].flatten() for name in shared]) for task in SPACES}
    (told,) = made.told
    assert told["step"] == told["epoch"] == 1
    assert {f"weight_{task}" for task in SPACES} < told.keys()
    cosine = torch.cosine_similarity(flat["label"], flat["target"], dim=0)
    assert told["cosine_label_target"] == pytest.approx(float(cosine), rel=1e-3, abs=1e-5)
    gradients(summed := weighing(Sum), [posts])
    assert {k: float(v) for k, v in summed.told[0].items() if "weight" in k} == {
        f"weight_{t}": w for t, w in WEIGHTS.items()
    }


def by_label(make: Make, **settings: Any) -> MultitaskModule:
    """One task, whose labels are weighed."""
    whole = still(**settings)
    heads, weights = {"target": whole.head("target")}, {"target": 0.5}
    found = MultitaskModule(
        whole.encoder, heads, weights=weights, weighting=make, optimization=whole.optimization, seed=0, by_label=["target"]
    )
    return found.train()


def test_labels_of_a_task_are_weighed_as_tasks() -> None:
    posts, whole = batch(9), still()
    (0.5 * whole.losses(posts, whole(posts))["target"]).backward()
    expected = {n: p.grad for n, p in whole.named_parameters() if p.grad is not None and not n.startswith("heads.")}
    heads = {n: p.grad for n, p in whole.named_parameters() if p.grad is not None and n.startswith("heads.target.")}
    close(gradients(by_label(Sum), [posts]), expected | heads)
    ones = partial(surgery.Solved, of="parameters", solve=lambda gramian: torch.ones(len(gramian)))
    close(gradients(by_label(ones), [posts]), expected | heads)
    made = by_label(MGDA)
    found = gradients(made, [posts])
    close({n: found[n] for n in heads}, heads)  # type: ignore[arg-type]
    told = {name for name in made.told[0] if name.startswith("weight_")}
    assert told == {f"weight_target_{label}" for label in SPACES["target"].names}
    assert any(not torch.allclose(found[n], g, rtol=1e-2) for n, g in expected.items() if g.any())


DRAWN: Make = partial(surgery.Solved, solve=lambda gramian: torch.rand(len(gramian)))


@pytest.mark.parametrize("make", [Random, partial(DRAWN, of="parameters"), partial(DRAWN, of="hidden")])
def test_every_process_draws_alike_and_every_step_anew(make: Make) -> None:
    drawn = []
    for rank, step in ((0, 0), (1, 0), (0, 1)):
        made = weighing(make)
        made.crew = Crew(rank)
        gradients(made, [batch(9)], step=step)
        drawn.append({name: float(figure) for name, figure in made.told[0].items() if name.startswith("weight_")})
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("make", [MGDA, FAMO, GeometricMean, STCH])
def test_posts_without_an_answer_are_as_posts_without_the_annotation(make: Make) -> None:
    posts = batch(9)
    posts.targets["rationale"].fill_(IGNORED)  # as where max_length cuts every answer off
    found, expected = weighing(make), weighing(make)
    close(gradients(found, [posts]), gradients(expected, [batch(9, without="rationale")]))
    assert "weight_rationale" not in found.told[0] or not found.told[0]["weight_rationale"]


@pytest.mark.parametrize("make", [Uncertainty, partial(surgery.GradNorm, of="parameters", alpha=1.5)])
def test_momentum_moves_nothing_that_is_learned_of_an_absent_task(make: Make) -> None:
    made, seen = weighing(make), []
    solver = torch.optim.AdamW(made.weighting.parameters(), lr=0.1)
    for without in (None, "target"):
        gradients(made, [batch(9, without=without)])
        solver.step()
        seen.append({name.split(".")[-1]: parameter.item() for name, parameter in made.weighting.named_parameters()})
    assert 1 != seen[0]["target"] == seen[1]["target"] != 0
    assert seen[0]["label"] != seen[1]["label"]


@pytest.mark.parametrize("make", [MGDA, FAMO, GeometricMean, STCH])
def test_a_label_that_counts_nothing_takes_no_part(make: Make) -> None:
    made = by_label(make)
    made.head("target").label_weights[0] = 0
    found = gradients(made, [batch(9)])
    told = [float(made.told[0].get(f"weight_target_{label}", 0)) for label in SPACES["target"].names]
    assert told[0] == 0 and all(told[1:])
    assert any(gradient.any() for name, gradient in found.items() if name.startswith("encoder."))


def test_ortho_lora_projects_factors_apart() -> None:
    posts, made = batch(9), weighing(surgery.OrthoLora)
    torch.manual_seed(3)
    found = gradients(made, [posts])
    # B is 0 at the start, so that A has no gradient to weigh
    assert {name for name in made.told[0] if "label_lora" in name} == {"weight_label_lora_B"}
    own = rows(posts)
    names = [name for name in found if "lora_B" in name]
    flat = torch.stack([torch.cat([own[task][name].flatten() for name in names]) for task in SPACES])
    weights = torch.tensor([made.told[0][f"weight_{task}_lora_B"] for task in SPACES])
    torch.testing.assert_close(torch.cat([found[name].flatten() for name in names]), weights @ flat, rtol=1e-4, atol=1e-6)
