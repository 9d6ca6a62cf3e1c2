"""The wheel is whole: without the checkout its command trains, tests, and tells what was mistyped."""

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import ROOT

from hatemtl.saved_runs.saved_run import SavedRun

RUN = ["encoder=tiny", "tasks=[label]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=100"]


@pytest.mark.slow
def test_its_command_works_where_there_is_no_checkout(tmp_path: Path) -> None:
    subprocess.run(["uv", "build", "--quiet", "--wheel", "--out-dir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as held:
        (entries,) = (name for name in held.namelist() if name.endswith("entry_points.txt"))
        assert held.read(entries).decode().split() == ["[console_scripts]", "hatemtl", "=", "hatemtl.__main__:command"]
        held.extractall(tmp_path / "installed")
    ours = {*(path.relative_to(ROOT) for folder in ("conf", "hatemtl") for path in (ROOT / folder).rglob("*.*"))}
    theirs = {path.relative_to(tmp_path / "installed") for path in (tmp_path / "installed").rglob("*.*")}
    here = {Path("hatemtl", path) if path.parts[0] == "conf" else path for path in ours if "__pycache__" not in path.parts}
    assert here == {path for path in theirs if ".dist-info" not in path.parts[0]}

    def hatemtl(*words: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "hatemtl", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = hatemtl(*RUN, "action=[train,test]", "save_path=run")
    assert done.returncode == 0, done.stderr
    assert any(row.stage == "test" for row in SavedRun(tmp_path / "run").rows)
    mistyped = hatemtl("tasks=[labl]")
    assert mistyped.returncode == 2
    assert mistyped.stderr == "error: tasks=labl: no such option; did you mean 'label' or 'table'?\n"
