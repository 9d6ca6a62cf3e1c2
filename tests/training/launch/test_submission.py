"""Where a submitted run stands is told by what lies in its folder, by no clock."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tested_runs
from safetensors.numpy import save_file

from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import write_config
from hatemtl.training.launch.submission import PLACE, Submitted, _mark, read, report_of, stands

CONFIG = {"tasks": {"label": {}}, "seed": 1}


def finished(folder: Path, weight: float, **record: Any) -> str | None:
    """Leaves a finished run, and gives what tells it from others."""
    gold, scores = tested_runs.classes(3, 1.0, np.random.default_rng(0))
    made = {"method": "ah_lora16", "library": "peft", "encoder": "mark", "encoder_source": "x", "seconds": 2.5}
    tested_runs.save(folder, gold, scores, **{**made, **record})
    write_config(folder, CONFIG)
    save_file({"weight": np.array([weight])}, folder / "heads.safetensors")
    return _mark(folder)


@pytest.mark.parametrize("clock", [-1e8, 1e8])  # how far it is off when the run is finished, in seconds
def test_a_failed_job_whose_run_was_finished_since_is_finished_by_any_clock(tmp_path: Path, clock: float) -> None:
    report = report_of(tmp_path, "run")
    report.parent.mkdir()
    report.write_text(json.dumps({"state": "failed", "told": "the disk is full"}))
    submitted = Submitted("seed=1", "run", CONFIG, "slurm", "7_0")
    assert stands(tmp_path, submitted, None).state == "failed"
    finished(tmp_path / "run", 1.0)
    at = report.stat().st_mtime + clock
    for file in (tmp_path / "run").iterdir():
        os.utime(file, (at, at))
    assert stands(tmp_path, submitted, None).state == "finished"


@pytest.mark.parametrize("clock", [-1e8, 1e8])
def test_a_failed_job_that_was_to_overwrite_a_run_has_failed_by_any_clock(tmp_path: Path, clock: float) -> None:
    submitted = Submitted("seed=1", "run", CONFIG, "slurm", "7_0", finished(tmp_path / "run", 1.0))
    report = report_of(tmp_path, "run")
    report.parent.mkdir()
    report.write_text(json.dumps({"state": "failed", "told": "the disk is full"}))
    at = (tmp_path / "run" / "run.json").stat().st_mtime + clock
    os.utime(report, (at, at))
    assert stands(tmp_path, submitted, None).state == "failed"
    finished(tmp_path / "run", 1.0, seconds=3.5)  # the same weights, of another training
    assert stands(tmp_path, submitted, None).state == "finished"
    finished(tmp_path / "run", 2.0)
    assert stands(tmp_path, submitted, None).state == "finished"


@pytest.mark.parametrize(
    "said", [{"state": "won", "told": ""}, {"state": "failed", "told": 3}, {"state": [], "told": "", "x": 1}]
)
def test_a_report_from_elsewhere(tmp_path: Path, said: dict[str, Any]) -> None:
    (report := report_of(tmp_path, "run")).parent.mkdir()
    report.write_text(json.dumps(said))
    with pytest.raises(UserError, match="expected how a run ended; remove it"):
        stands(tmp_path, Submitted("seed=1", "run", CONFIG, "slurm", "7_0"), None)


@pytest.mark.parametrize(
    "given",
    [{"folder": "../run"}, {"folder": "/run"}, {"folder": ["run"]}, {"config": 3}, {"job": 7}, {"stood": 1}, {"x": 1}],
)
def test_a_sweep_from_elsewhere(tmp_path: Path, given: dict[str, Any]) -> None:
    run = {"name": "seed=1", "folder": "run", "config": {}, "cluster": "slurm", "job": "7_0", "stood": None}
    (tmp_path / PLACE).mkdir()
    for of, ok in ((run, True), ({**run, **given}, False)):
        (tmp_path / PLACE / "runs.json").write_text(json.dumps({"runs": [of]}))
        if ok:
            assert [*read(tmp_path)] == ["run"]
        else:
            with pytest.raises(UserError, match="not what a submitted sweep leaves"):
                read(tmp_path)
