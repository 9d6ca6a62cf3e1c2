"""Notebooks run from their first cell to their last, and are kept with what they print."""

import json
from pathlib import Path

import pytest
from conftest import ROOT

PATH = ROOT / "notebooks" / "first_study.ipynb"
CELLS = [cell for cell in json.loads(PATH.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_first_study_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """But for a smaller encoder and fewer posts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "main.py").touch()
    (tmp_path / "analysis").symlink_to(ROOT / "analysis")
    code = "\n".join("".join(cell["source"]) for cell in CELLS)
    small = code.replace("encoder=minilm", "encoder=tiny").replace("size=1000", "size=150").replace("epochs=4", "epochs=1")
    assert small.count("=tiny") == small.count("=150") == 1
    exec(compile(small, str(PATH), "exec"), {})
    said = capsys.readouterr().out
    for expected in ("merged against single: ", "test_target_f1_women", "report.html: "):
        assert expected in said
    assert (tmp_path / "adapters/first_study/report.html").exists()


def test_it_is_kept_with_what_it_prints() -> None:
    printed = "".join("".join(out.get("text", "")) for cell in CELLS for out in cell["outputs"])
    assert "test_target_macro_f1" in printed and "Traceback" not in printed
    assert not any(out["output_type"] == "error" for cell in CELLS for out in cell["outputs"])
