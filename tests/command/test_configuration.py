"""Nodes of the configuration as objects: what does not fit is told by the key that a user types."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import composed

from hatemtl.command import request as request_file
from hatemtl.command.configuration import build, requested
from hatemtl.encoders.fast import door, is_fast
from hatemtl.errors import UserError
from hatemtl.training.trainer_settings import TrainerSettings


def built(*overrides: str, node: str = "method") -> Any:
    cfg = composed("method=ah_merge16", *overrides)
    for name in node.split("."):
        cfg = cfg[name]
    return build(cfg)


BIAS = "hatemtl.evaluations.false_positives.FalsePositiveDifference"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["merge=learned", "merge.bias_of._target_=typo"], rf"merge.bias_of._target_=typo: .*{BIAS}"),
        (["merge=learned", f"merge.bias_of._target_={BIAS}s"], rf"{BIAS}s: .*did you mean '{BIAS}'"),
        (["merge=learned", "merge.bias_of._target_=hatemtl.merging.learned"], rf"learned: .*: {BIAS}"),
        (["merge=learned", "merge.bias_of._target_=null"], rf"None: .*known: {BIAS}"),
        (["merge=learned", "merge.bias_of._target_=a..b"], rf"a..b: .*known: {BIAS}"),
        (["merge._target_=hatemtl.merging.mean.Meen"], "merge._target_=.*did you mean 'hatemtl.merging.mean.Mean'"),
        (["merge=knots", "merge.inner._target_=hatemtl.TIES"], "merge.inner._target_=.*'hatemtl.merging.trimmed.TIES'"),
        (
            ["method._target_=hatemtl.methods.adapterhub.merged.MergedAdapterz"],
            "did you mean 'hatemtl.methods.adapterhub.merged.MergedAdapters'",
        ),
    ],
)
def test_what_names_no_class_is_told_with_what_does(typed: list[str], said: str) -> None:
    with pytest.raises(UserError, match=rf"(?s:{said})"):
        built(*typed)


def test_of_a_task_too() -> None:
    with pytest.raises(UserError, match=r"^tasks.target.head._target_=x: .*hatemtl.heads.multilabel.MultilabelHead"):
        built("tasks.target.head._target_=x", node="tasks.target")


def test_a_module_that_cannot_be_imported_is_no_typo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stack says why."""
    (tmp_path / "own_bias.py").write_text("import what_nobody_has\n")
    (tmp_path / "own_other.py").write_text("1 / 0\n")
    (tmp_path / "own_name.py").write_text("from hatemtl.merging.base import nosuch\n")
    (tmp_path / "own_value.py").write_text("raise ValueError('a list as a default')\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for module, error in (
        ("own_bias", ModuleNotFoundError),
        ("own_other", ZeroDivisionError),
        ("own_name", ImportError),
        ("own_value", ValueError),
    ):
        with pytest.raises(error):
            built("merge=learned", f"merge.bias_of._target_={module}.bias")


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ("trimmed.TIES,density:1,elect:x,scale:1", r"elect=x: expected total or count"),
        ("trimmed.Breadcrumbs,smallest:2,greatest:0,scale:1", r"smallest=2: "),
        (
            "trimmed.Breadcrumbs,smallest:0.9,greatest:0.5,scale:1",
            r"smallest=0.9 and P.greatest=0.5 .* type P.smallest=0.85 P",
        ),
        ("trimmed.DARE,density:0,elect:null,scale:1,seed:0", r"density=0: .* type P.density=0.5$"),
        (
            "trimmed.DELLA,density:0.5,epsilon:2,elect:null,scale:1,seed:0",
            r"epsilon=2 with P.density=0.5: .* type P.epsilon=",
        ),
        ("mean.Mean,weights:[0,0]", r"weights=\[0, 0\]: .* type P.weights=\[1,2\]"),
        ("mean.TaskArithmetic,scale:much,weights:null", r"scale=much: .* type P.scale=0.4$"),
    ],
)
def test_a_merge_inside_another_is_told_by_its_own_keys(inner: str, said: str) -> None:
    one = f"{{_target_:hatemtl.merging.{inner}}}"
    two = f"{{_target_:hatemtl.merging.subspaces.CoreSpace,inner:{one}}}"
    for outer in ("knots", "core_space"):
        for given, place in ((one, r"merge\.inner"), (two, r"merge\.inner\.inner")):
            with pytest.raises(UserError, match=rf"^{place}\.{said.replace('P', place)}"):
                built(f"merge={outer}", "~merge.inner", f"+merge.inner={given}")


@pytest.mark.parametrize(
    ("fast", "precision", "comparisons"),
    [("auto", "32", 1), ("auto", "bf16", 2), ("true", "32", 1), ("false", "32", 0), ("false", "bf16", 0)],
)
def test_trainer_fast_says_who_computes(
    fast: str, precision: str, comparisons: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "_verified", {})
    typed = ["encoder=tiny", "tasks=[label]", "corpus@tasks.label.corpus=sample", f"trainer.precision={precision}"]
    request = requested(composed(*typed, f"trainer.fast={fast}"))
    network = request.network(request.tasks, request.datamodule(request.tasks).spaces, name="run")
    assert is_fast(network.module.encoder) is (fast != "false")
    assert [*door._verified.values()] == [""] * comparisons


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize(("fast", "device", "timed"), [("auto", "meta", 1), ("true", "meta", 0), ("auto", "cpu", 0)])
def test_layers_are_timed_on_a_device_of_which_it_is_not_known_whose_are_faster(
    fast: str, device: str, timed: int, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(request_file, "verify", lambda *_, **how: None)
    monkeypatch.setattr(request_file, "choose", lambda *of, learns: asked.append((of[-1], learns)))
    monkeypatch.setattr(TrainerSettings, "device", torch.device(device))
    typed = ["encoder=tiny", "tasks=[label]", "corpus@tasks.label.corpus=sample", f"trainer.fast={fast}"]
    request = requested(composed(*typed, "trainer.precision=32"))
    data = request.datamodule(request.tasks)
    request.network(request.tasks, data.spaces, name="run", data=data if learns else None)
    assert asked == timed * [(torch.device(device), learns)]
