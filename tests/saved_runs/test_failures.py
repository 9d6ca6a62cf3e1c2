"""A failure stands beside its run until one ends well; only a divergence of the very same run is believed."""

import json
from pathlib import Path

import pytest

from hatemtl.saved_runs.failures import diverged_before, forget_failure, record_of, write_failure

CONFIG = {"tasks": {"label": {}}, "seed": 1}


def test_a_divergence_is_told_to_the_same_run_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert diverged_before(run, CONFIG) is None
    write_failure(run, CONFIG, "the loss is nan: é", diverged=True)
    assert [path.name for path in tmp_path.iterdir()] == [".run.failed.json"]
    assert diverged_before(run, CONFIG) == "the loss is nan: é"
    assert diverged_before(run, {**CONFIG, "seed": 2}) is None
    assert diverged_before(tmp_path / "other", CONFIG) is None
    record = json.loads(record_of(run).read_text(encoding="utf-8"))
    assert record["status"] == "diverged" and record["message"] == "the loss is nan: é" and record["at"][:2] == "20"
    assert "é" in record_of(run).read_text(encoding="utf-8") and record_of(run).read_text().count("\n") == 6
    forget_failure(run)
    forget_failure(run)  # as often as one likes
    assert diverged_before(run, CONFIG) is None and not [*tmp_path.iterdir()]


def test_any_other_failure_is_tried_again(tmp_path: Path) -> None:
    write_failure(tmp_path / "run", CONFIG, "the disk is full", diverged=False)
    assert json.loads(record_of(tmp_path / "run").read_text())["status"] == "failed"
    assert diverged_before(tmp_path / "run", CONFIG) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "diverged"}', '{"status": "diverged", "message": 1}'])
def test_half_a_record_keeps_no_run_from_being_tried(tmp_path: Path, text: str) -> None:
    record_of(tmp_path / "run").write_text(text)
    assert diverged_before(tmp_path / "run", CONFIG) is None
