"""The table of rounding tells differences to the first run; the runs themselves end alike where nothing differs."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import rounding
from benchmarks.rounding import apart


def test_differences_are_told_to_the_first() -> None:
    found = {"first": np.array([[0.6, 0.4], [0.1, 0.9]]), "other": np.array([[0.4, 0.6], [0.1, 0.9]])}
    lines = apart(found, np.array([0, 1])).splitlines()
    first, other = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:])
    assert first == ["first", "0.0e+00", "0.0e+00", "0.0%", "1.0000"]
    assert other == ["other", "2.0e-01", "1.0e-01", "50.0%", "0.3333"]


@pytest.mark.trust  # seven runs, each in a process
def test_the_same_command_again_differs_by_nothing_and_rounding_by_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["rounding.py", "--quick", "--out", str(tmp_path)])
    rounding.main()
    lines = (tmp_path / "rounding.org").read_text().splitlines()[2:]
    off = {cells[1].strip(): float(cells[2]) for cells in (line.split("|") for line in lines)}
    assert [*off] == [name for name, *_ in rounding.VARIANTS]
    assert off["again"] == 0
    assert off["two threads"] < 1e-4 and off["an older processor's instructions"] < 1e-4
    assert off["bf16, one thread"] < 0.05 and off["another seed"] > off["two threads"]
