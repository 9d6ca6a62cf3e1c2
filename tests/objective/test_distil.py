"""Distillation by hand: of a temperature, annealed, of numbers; teachers of other labels and tasks are refused."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from objective.regularised import RUN, Linear, batch
from torch.nn import functional as F

from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace
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
    term = Distil(**GIVEN).begin(student, run).terms(student, posts, None, logits)
    expected = (
        4 * F.kl_div((logits["label"] / 2).log_softmax(1), (target / 2).softmax(1), reduction="none").sum(1)[:4].mean()
    )
    assert set(term) == {"divergence"}
    torch.testing.assert_close(term["divergence"], expected)
    student.progress = 0.25
    both = Distil(**{**GIVEN, "anneal": True}).begin(student, run).terms(student, posts, None, logits)
    loss = student.heads["label"].loss(logits["label"], posts.targets["label"], posts.has["label"])
    torch.testing.assert_close(loss + both["divergence"] + both["gold"], 0.25 * loss + 0.75 * expected)
    both["divergence"].backward()
    assert all(weight.grad is None for weight in (*teacher.encoder.parameters(), *teacher.heads.parameters()))
    assert Distil(**GIVEN).begin(student, run).terms(student, posts, None, {"untaught": logits["label"]}) == {}


def test_a_number_is_compared_on_the_students_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, posts = Linear(kind="score"), Linear(kind="score"), batch()
    student.heads["label"].scale.copy_(torch.tensor([1.0, 2.0]))  # type: ignore[operator, union-attr]
    teacher.heads["label"].scale.copy_(torch.tensor([3.0, 4.0]))  # type: ignore[operator, union-attr]
    taught(monkeypatch, {})
    run = replace(RUN, teacher=lambda saved: teacher)  # type: ignore[arg-type, return-value]
    term = Distil(**GIVEN).begin(student, run).terms(student, posts, None, student(posts))["divergence"]
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
