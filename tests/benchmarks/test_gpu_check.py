"""The check for machines with a GPU is whole: on a CPU it passes, and it spares a folder that is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


def check(out: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OUT": str(out), "PYTHON": sys.executable, "SIZE": "300"}
    return subprocess.run(
        [str(ROOT / "benchmarks" / "gpu_check.sh"), "--dry"], env=environment, capture_output=True, text=True
    )


@pytest.mark.trust  # of a script that few changes reach, for it takes most of two minutes
def test_all_is_checked(tmp_path: Path) -> None:
    done = check(tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines() if "differ" in line] == [
        "float32, cpu against cpu",
        "killed and resumed",
        "two processes",
        "two processes, the encoder split",
    ]
    assert "WRONG" not in done.stdout and "posts/s" in done.stdout


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    done = check(tmp_path)
    assert done.returncode == 2 and "is there already" in done.stderr and not [*tmp_path.iterdir()]
