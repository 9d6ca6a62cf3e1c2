"""Cosines and weights over the steps, by parts of training, from a run's objective.csv."""

from pathlib import Path

import numpy as np
import pytest
from conflicts import main, outstanding, running

ROWS = """step,epoch,weight_label,weight_target,cosine_label_target
1,1,1.0,2.0,-0.5
2,1,1.5,2.0,
3,2,2.0,2.0,0.25
4,2,2.0,,0.75
"""


def run(folder: Path, text: str = ROWS) -> str:
    (folder / "objective.csv").write_text(text)
    return str(folder)


def test_a_table_by_halves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([run(tmp_path), "--parts", "2", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "of,0-50 %,50-100 %,all",
        "cosine label_target,-0.5,0.5,0.16666666666666666",
        "conflict label_target,1.0,0.0,0.3333333333333333",
        "weight label,1.25,2.0,1.625",
        "weight target,2.0,2.0,2.0",
    ]


def test_a_running_mean_leaves_out_what_is_not_there() -> None:
    found = running(np.array([np.nan, 1.0, np.nan, 3.0, 5.0]), 2)
    assert np.array_equal(found, [np.nan, 1, 1, 3, 4], equal_nan=True)


def test_who_fights_most_is_named() -> None:
    figures = {"cosine_a_b": [0.2, np.nan], "cosine_a_c": [-0.5, 0.1], "weight_a": [1.0, 1.2], "weight_b": [0.5, 0.5]}
    found = {name: np.array(values) for name, values in figures.items()}
    assert outstanding(found, "cosine_") == ["cosine_a_c", "cosine_a_b"]
    assert outstanding(found, "weight_") == ["weight_b", "weight_a"]


def test_a_picture(tmp_path: Path) -> None:
    assert main([run(tmp_path), "--output", str(tmp_path / "conflicts.svg")]) == 0
    assert "<svg" in (tmp_path / "conflicts.svg").read_text()


@pytest.mark.parametrize(
    ("text", "more", "says"),
    [
        (None, [], "no objective.csv, which a run of several tasks leaves"),
        ("step,epoch\n1,1\n", [], "no columns weight_TASK"),
        ("", [], "no columns weight_TASK"),
        ("step,weight_a\n1,many\n", [], "expected numbers"),
        (ROWS, ["--parts", "0"], "--parts 0: expected a number from 1 to 1000"),
        (ROWS, ["--smooth", "-1"], "--smooth -1: expected a number"),
    ],
)
def test_wrong_input_is_named(
    text: str | None, more: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path) if text is None else run(tmp_path, text)
    assert main([folder, *more]) == 2
    assert says in capsys.readouterr().err
