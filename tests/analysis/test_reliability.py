"""Reliability diagrams: what is in a bin, that it is what the evaluation counts, what is drawn and refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
import reliability
from pyarrow import parquet

from hatemtl.evaluations.calibration import gap

Run = Callable[..., tuple[int, str, str]]
SURE = [[0.8, 0.1, 0.1], [0.6, 0.4, 0.0], [0.2, 0.2, 0.6]]  # right, wrong, right of labels 0, 1, 2


def save(folder: Path, metric: str, *rows: tuple[str, list[float], list[float]]) -> None:
    """A run tested on posts of (task, gold, scores)."""
    folder.mkdir()
    cells: list[dict[str, Any]] = [
        {"post_id": str(i), "task": task, "gold": gold, "scores": scores} for i, (task, gold, scores) in enumerate(rows)
    ]
    parquet.write_table(pa.Table.from_pylist(cells), folder / "predictions.parquet")
    (folder / "results.csv").write_text(f"metric,value\n{metric},0.5\n")


@pytest.fixture
def run(run: Run, tmp_path: Path) -> Run:
    """The script, called beside `one`, of one label a post, and `many`, of several."""
    save(tmp_path / "one", "test_label_accuracy", *(("label", [float(i)], scores) for i, scores in enumerate(SURE)))
    save(
        tmp_path / "many",
        "test_target_micro_f1",
        ("target", [1.0, 0.0], [0.9, 0.2]),
        ("target", [0.0, 0.5], [0.7, 0.4]),
    )
    labels = {"target": {"kind": "multilabel", "names": ["arab", "women"]}}
    (tmp_path / "many" / "labels.json").write_text(json.dumps(labels))
    return run


def test_a_row_a_bin_by_hand(run: Run) -> None:
    code, out, err = run("one", "--bins", "10")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "| p              | posts |     p | right |   gap |",
        "|----------------+-------+-------+-------+-------|",
        "| 0.500 to 0.600 |     2 | 0.600 | 0.500 | 0.100 |",
        "| 0.700 to 0.800 |     1 | 0.800 | 1.000 | 0.200 |",
        "| every bin      |     3 | 0.667 | 0.667 | 0.133 |",
    ]
    assert run("many", "--bins", "2", "--label", "women")[1].splitlines()[2:] == [
        "| 0.000 to 0.500 |     2 | 0.300 | 0.250 | 0.050 |",
        "| every bin      |     2 | 0.300 | 0.250 | 0.050 |",
    ]
    assert run("many", "--bins", "1")[1].splitlines()[-1].split()[4:] == ["4", "|", "0.550", "|", "0.375", "|", "0.175", "|"]


def test_runs_stand_side_by_side(run: Run) -> None:
    out = run("one", "many", "--bins", "2", "--format", "csv")[1].splitlines()
    assert out[0] == "p,one posts,one p,one right,one gap,many posts,many p,many right,many gap"
    assert out[1].startswith("0.000 to 0.500,0.0,,,,2.0,")


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_the_error_is_the_evaluations(bins: int) -> None:
    draw = np.random.default_rng(bins)
    p, true = draw.random(500).round(2), (draw.random(500) < 0.5).astype(float)
    found = reliability.binned(p, true, bins)
    assert found.error == pytest.approx(gap(p, true, bins))
    assert found.posts.sum() == 500


def test_the_picture_has_a_diagram_a_run(run: Run, tmp_path: Path) -> None:
    assert run("one", "many", "--output", "new/both.svg")[0] == 0
    picture = (tmp_path / "new" / "both.svg").read_text()
    groups = [group.get("id") for group in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}g")]
    assert groups.count("diagonal") == 2
    assert {"one: ECE 0.133", "many: ECE 0.275"} <= {*re.findall(r"<!-- (.*?) -->", picture)}
    assert run("one", "--output", "one.pdf")[0] == 0
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "'nowhere' matches nothing"),
        (["untested"], "no predictions.parquet in it; test it"),
        (["broken"], "cannot be read"),
        (["scale"], "task 'scale' has no labels with probabilities"),
        (["odds"], "a score is no probability"),
        (["one", "--task", "target"], "--task: 'target' is none of them; known: label"),
        (["one", "--label", "arab"], "--label arab: task 'label' has one right label a post"),
        (["many", "--label", "men"], "--label: 'men' is none of them; known: arab, women"),
        (["one", "--bins", "0"], "--bins 0: expected a number from 1 to 1000"),
        (["one", "many", "--name", "a", "a"], "expected another name for each run"),
        (["one", "--output", "one.txt"], "expected one of .org, .md, .tex, .csv"),
    ],
)
def test_what_is_refused(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "untested").mkdir()
    (tmp_path / "untested" / "results.csv").write_text("metric,value\n")
    save(tmp_path / "scale", "test_scale_mae", ("scale", [0.5], [0.4]))
    save(tmp_path / "odds", "test_label_accuracy", ("label", [0.0], [2.0, -1.0]))
    save(tmp_path / "broken", "test_label_accuracy", ("label", [0.0], [1.0, 0.0]))
    (tmp_path / "broken" / "predictions.parquet").write_bytes(b"nothing")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
