"""The wheel is whole: in an environment of its own its command trains, tests, and tells what was mistyped."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import ROOT

from hatemtl.saved_runs.saved_run import SavedRun

# The demo, of fewer posts; and the versions of the lock, which uv has.
DEMO = [*(f"tasks.{task}.corpus.size=100" for task in ("label", "target", "rationale")), "optimization.epochs=1"]
LOCKED = ["--no-default-groups", "--extra", "transformers5", "--no-emit-project", "--no-hashes", "--output-file"]


@pytest.mark.slow
def test_its_command_works_where_there_is_no_checkout(tmp_path: Path) -> None:
    subprocess.run(["uv", "build", "--quiet", "--wheel", "--out-dir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as held:
        names = {Path(name) for name in held.namelist()}
        (entries,) = (name for name in held.namelist() if name.endswith("entry_points.txt"))
        assert held.read(entries).decode().split() == ["[console_scripts]", "hatemtl", "=", "hatemtl.__main__:command"]
    ours = {*(path.relative_to(ROOT) for folder in ("conf", "hatemtl") for path in (ROOT / folder).rglob("*.*"))}
    here = {Path("hatemtl", path) if path.parts[0] == "conf" else path for path in ours if "__pycache__" not in path.parts}
    assert here == {path for path in names if ".dist-info" not in path.parts[0]}

    tools, away = tmp_path / "tools", {"PYTHONPATH", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in away} | {"OMP_NUM_THREADS": "1"}
    environment |= {"UV_TOOL_DIR": str(tools), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}  # else it stays in uv's cache
    (empty := tmp_path / "empty").mkdir()

    def uv(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(words, cwd=empty, env=environment, capture_output=True, text=True)

    locked, python = str(tmp_path / "locked.txt"), f"{sys.version_info.major}.{sys.version_info.minor}"
    export = uv("uv", "export", "--quiet", "--locked", "--project", str(ROOT), *LOCKED, locked)
    assert export.returncode == 0, export.stderr
    try:
        installed = uv("uv", "tool", "install", "--python", python, "--constraints", locked, str(wheel))
        assert installed.returncode == 0, installed.stderr
        done = uv("uvx", "hatemtl", "experiment=demo", *DEMO)
        assert done.returncode == 0, done.stderr
        mistyped = uv("uvx", "hatemtl", "tasks=[labl]")
    finally:
        shutil.rmtree(tools, ignore_errors=True)
    assert {row.task for row in SavedRun(empty / "adapters" / "demo").rows if row.stage == "test"} == {
        "label",
        "target",
        "rationale",
    }
    assert {path.name for path in empty.iterdir()} == {"adapters"}
    assert mistyped.returncode == 2
    assert mistyped.stderr == "error: tasks=labl: no such option; did you mean 'label' or 'table'?\n"
