"""Where a submitted run stands is told by what lies in its folder, by no clock."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tested_runs
from safetensors.numpy import save_file

from hatemtl.saved_runs.saved_run import write_config
from hatemtl.training.launch.submission import Submitted, _mark, report_of, stands

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
