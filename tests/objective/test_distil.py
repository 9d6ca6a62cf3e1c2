"""Distillation by hand: of a temperature, annealed, of numbers; teachers of other labels and tasks are refused."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from network.test_module import SPACES, WEIGHTS, module
from network.test_module import batch as posts_of
from objective.regularised import RUN, Linear, batch
from torch.nn import functional as F

from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace
from hatemtl.network.module import MultitaskModule
from hatemtl.objective.from_losses import Uncertainty
from hatemtl.objective.regularisers.distil import Distil

GIVEN: dict[str, Any] = {"weight": 1.0, "teachers": "adapters/teacher_*", "temperature": 2.0, "anneal": False}


def taught(monkeypatch: pytest.MonkeyPatch, *runs: dict[str, LabelSpace]) -> None:
    saved: Any = [SimpleNamespace(folder=Path(f"teacher_{i}"), labels=labels) for i, labels in enumerate(runs)]
    monkeypatch.setattr(Distil, "saved_runs", lambda self: saved)


def test_it_is_the_divergence_of_softened_predictions_annealed_to_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, posts = Linear("label", "untaught"), Linear("label", "other"), batch()
    taught(monkeypatch, {"label": student.heads["label"].space})  # type: ignore[dict-item]
    teacher.encoder.shift.data.fill_(0.5)
    run = replace(RUN, teacher=lambda saved: teacher)  # type: ignore[arg-type, return-value]
    logits, target = student(posts, ["label"]), teacher(posts, ["label"])["label"].detach()
    stays, term = Distil(**GIVEN).begin(student, run).mixed(student, posts, logits)["label"]
    expected = (
        4 * F.kl_div((logits["label"] / 2).log_softmax(1), (target / 2).softmax(1), reduction="none").sum(1)[:4].mean()
    )
    assert stays == 1
    torch.testing.assert_close(term, expected)
    student.progress = 0.25
    annealed = Distil(**{**GIVEN, "anneal": True, "weight": 2.0}).begin(student, run)
    assert annealed.terms(student, posts, None, logits) == {}
    stays, term = annealed.mixed(student, posts, logits)["label"]
    assert stays == 0.25
    torch.testing.assert_close(term, 2 * 0.75 * expected)
    term.backward()
    assert all(weight.grad is None for weight in (*teacher.encoder.parameters(), *teacher.heads.parameters()))
    assert Distil(**GIVEN).begin(student, run).mixed(student, posts, {"untaught": logits["label"]}) == {}


class Says:
    """A teacher that says the same of every post, by task."""

    def __init__(self, shares: dict[str, list[float]]) -> None:
        self.shares, self.heads = shares, shares

    def __call__(self, posts: Any, tasks: list[str]) -> dict[str, torch.Tensor]:
        return {task: torch.tensor(self.shares[task]).logit().expand(len(posts), -1) for task in tasks}


def learner(monkeypatch: pytest.MonkeyPatch, teacher: Says, **other: Any) -> MultitaskModule:
    """A network of the tasks that are taught, of weights .5, whose dropout is off."""
    for task in teacher.shares:
        monkeypatch.setitem(WEIGHTS, task, 0.5)
    taught(monkeypatch, {task: SPACES[task] for task in teacher.shares})
    made: Any = module(*teacher.shares, **other).train()
    made.encoder.eval()
    distil = Distil(**{**GIVEN, "temperature": 1.0, "anneal": True})
    made.regularise({"distil": distil}, replace(RUN, teacher=lambda saved: teacher))  # type: ignore[arg-type, return-value]
    return made


@pytest.mark.filterwarnings("ignore:.*self.trainer.*not registered.*")
def test_a_task_of_little_weight_is_not_driven_away_from_its_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a teacher that gives the gold label .4, and a student that gives it a third, as all others."""
    multitask, posts = learner(monkeypatch, Says({"label": [0.4, 0.3, 0.3]})), posts_of(6)
    for weight in multitask.heads.parameters():
        weight.data.zero_()
    posts.targets["label"] = torch.zeros(6, dtype=torch.int64)
    multitask.training_step(posts, 0).backward()
    teacher = torch.tensor([0.4, 0.3, 0.3]).logit().softmax(0)
    slope: Any = multitask.heads["label"].layers[-1].bias.grad
    torch.testing.assert_close(slope, 0.5 * (torch.full((3,), 1 / 3) - teacher))
    assert slope[0] < 0


@pytest.mark.filterwarnings("ignore:.*self.trainer.*not registered.*")
@pytest.mark.parametrize("case", ["labels", "shares", "a micro-batch", "a weighting", "by label"])
def test_what_is_weighed_is_the_mixed_loss(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    says = Says({"label": [0.5, 0.3, 0.2], "target": [0.9, 0.5, 0.2, 0.1]})
    multitask, posts, tasks = learner(monkeypatch, says), posts_of(6), ("label", "target")
    multitask.through.progress = 0.25
    if case == "shares":
        posts.shares["label"] = torch.rand(6, 3).softmax(dim=1)
    if case == "a micro-batch":
        posts.parts = {"label": 0.5, "target": 0.5}
    if case == "by label":
        multitask.by_label["target"] = [*"abcd"]
        multitask.losses_of = {"label": "label"} | dict.fromkeys("abcd", "target")
        multitask.weighting.tasks = dict.fromkeys(multitask.losses_of, 0.5)
    if case == "a weighting":
        multitask.weightings[0] = Uncertainty(tasks={"label": 0.5, "target": 0.5})
        for s in multitask.weighting.parameters():
            s.data.fill_(math.log(2))
        multitask._trainer = SimpleNamespace(current_epoch=0, global_step=0)  # type: ignore[assignment]
    with torch.no_grad():
        logits, taught = multitask(posts), says(posts, [*tasks])
        kl = {t: multitask.head(t).kl(taught[t], logits[t], posts.attention_mask)[posts.has[t]].mean() for t in tasks}
        gold = {t: multitask.head(t).loss(logits[t], posts.learned(t), posts.has[t]) for t in tasks}
    expected = sum(0.5 * (0.25 * gold[t] + 0.75 * kl[t]) for t in tasks)
    halved = {"a micro-batch": expected / 2, "a weighting": expected / 2 + math.log(2)}
    torch.testing.assert_close(multitask.training_step(posts, 0).detach(), halved.get(case, expected))


def test_a_number_is_compared_on_the_students_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, posts = Linear(kind="score"), Linear(kind="score"), batch()
    student.heads["label"].scale.copy_(torch.tensor([1.0, 2.0]))  # type: ignore[operator, union-attr]
    teacher.heads["label"].scale.copy_(torch.tensor([3.0, 4.0]))  # type: ignore[operator, union-attr]
    taught(monkeypatch, {})
    run = replace(RUN, teacher=lambda saved: teacher)  # type: ignore[arg-type, return-value]
    _, term = Distil(**GIVEN).begin(student, run).mixed(student, posts, student(posts))["label"]
    said = student(posts)["label"][:4].flatten()
    torch.testing.assert_close(term, ((said * 4 + 3 - 1) / 2 - said).square().mean() / 2)


def test_teachers_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    student: Any = Linear("label")
    own = student.heads["label"].space
    for runs, said in (
        ([{"mood": own}], "knows mood, and this run trains label"),
        ([{"label": LabelSpace("multiclass", ("a", "b"))}], r"other labels of task 'label' \(a, b\)"),
        ([{"label": own}, {"label": own}], "teacher_0 and teacher_1 both teach task 'label'"),
    ):
        taught(monkeypatch, *runs)
        with pytest.raises(UserError, match=said):
            Distil(**GIVEN).check(student)
    taught(monkeypatch, {"label": own, "more": own})
    Distil(**GIVEN).check(student)


@pytest.mark.parametrize(("key", "value"), [("weight", -1.0), ("temperature", 0.0)])
def test_values_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"regulariser\.distil\.{key}="):
        Distil(**{**GIVEN, key: value})


def test_no_saved_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs the saved runs that teach"):
        Distil(**{**GIVEN, "teachers": None}).saved_runs()
    with pytest.raises(UserError, match="matches no saved run"):
        Distil(**{**GIVEN, "teachers": str(tmp_path / "none_*")}).saved_runs()
