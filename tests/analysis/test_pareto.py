"""The Pareto front of a search: what dominates, what is shown and drawn, what is refused."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pareto
import pytest

Run = Callable[..., tuple[int, str, str]]
HEADER = "weight_1,weight_2,loss,error,bias"
ROWS = ("0.5,0.5,0.7,0.6,0.3", "0.9,0.1,0.6,0.4,0.5", "0.1,0.9,0.8,0.5,0.4", "0.2,0.8,0.9,0.5,0.6", "1,0,0.5,0.6,0.2")


@pytest.fixture
def run(run: Run, tmp_path: Path) -> Run:
    """The script, called beside `searched`, a run of merge=learned: its exit code, stdout and stderr."""
    save(tmp_path / "searched", *ROWS)
    return run


def save(folder: Path, *rows: str, header: str = HEADER) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "search.csv").write_text("\n".join([header, *rows]) + "\n")


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_no_other_candidate_dominates(seed: int) -> None:
    """The reference: every candidate against every other. Few different values, so that there are equals."""
    draw = random.Random(seed)
    points = {n: (draw.randrange(6) / 5, draw.randrange(6) / 5) for n in range(1, 15)}

    def dominated(n: int) -> bool:
        (x, y), others = points[n], points.items()
        return any(a <= x and b <= y and ((a, b) != (x, y) or other < n) for other, (a, b) in others)

    found = pareto.front(points)
    assert sorted(found) == [n for n in points if not dominated(n)]
    assert [points[n] for n in found] == sorted(points[n] for n in found)


def test_the_table_holds_the_front_with_its_weights(run: Run) -> None:
    code, out, err = run("searched")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "| candidate | error |  bias | weight_1 | weight_2 |  loss |",
        "|-----------+-------+-------+----------+----------+-------|",
        "| 2         | 0.400 | 0.500 |    0.900 |    0.100 | 0.600 |",
        "| 3         | 0.500 | 0.400 |    0.100 |    0.900 | 0.800 |",
        "| 5         | 0.600 | 0.200 |    1.000 |    0.000 | 0.500 |",
    ]
    assert run("searched/search.csv")[1] == out


def test_other_objectives_may_be_traded(run: Run, tmp_path: Path) -> None:
    assert run("searched", "--x", "loss", "--y", "error", "--output", "front.csv") == (0, "", "")
    assert (tmp_path / "front.csv").read_text().splitlines() == [
        "candidate,loss,error,weight_1,weight_2,bias",
        "5,0.5,0.6,1.0,0.0,0.2",
        "2,0.6,0.4,0.9,0.1,0.5",
    ]


def test_the_picture_has_every_candidate_the_front_and_the_start(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("searched", "--output", "new/pareto.svg", "--format", "csv")
    assert code == 0
    assert [line.split(",")[0] for line in out.splitlines()] == ["candidate", "2", "3", "5"]
    picture = (tmp_path / "new" / "pareto.svg").read_text()
    groups = {group.get("id"): group for group in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}g")}
    for name, marks in (("candidates", 5), ("front", 3)):
        assert len(list(groups[name].iter("{http://www.w3.org/2000/svg}use"))) == marks, name
    assert "start" in groups
    written = set(re.findall(r"<!-- (.*?) -->", picture))
    assert {"error (less is better)", "bias (less is better)", "2", "3", "5", "front", "candidates", "start"} <= written
    assert run("searched", "--output", "pareto.png")[0] == 0
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_a_long_front_is_drawn_without_numbers(run: Run, tmp_path: Path) -> None:
    count = pareto.NUMBERED + 1
    save(tmp_path / "long", *(f"1,0,1,{n / count},{1 - n / count}" for n in range(count)))
    assert run("long", "--output", "pareto.svg")[0] == 0
    assert f"<!-- {count} -->" not in (tmp_path / "pareto.svg").read_text()


def test_candidates_that_came_to_nothing_are_left_out(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "diverged", "0.5,0.5,nan,nan,nan", *ROWS[1:])
    code, out, err = run("diverged", "--output", "pareto.svg", "--format", "csv")
    assert (code, err) == (0, "note: 1 candidates without a finite error and bias are left out\n")
    assert [line.split(",")[0] for line in out.splitlines()] == ["candidate", "2", "3", "5"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such file; expected a run of merge=learned"),
        (["searched", "--x", "f1"], "--x f1: the search did not record it; known: loss, error, bias; for error and bias"),
        (["searched", "--y", "weight_1"], "--y weight_1: the search did not record it; known: loss, error, bias"),
        (["searched", "--y", "error"], "--x error --y error: expected two objectives; known: loss, error, bias"),
        (["by_gradient"], "--x error: the search did not record it; known: loss; for error and bias search with"),
        (["searched", "--output", "searched/search.csv"], "is one of the results read"),
        (["searched", "--output", "front.txt"], "expected one of .org, .md, .tex, .csv"),
        (["empty"], "holds no candidates"),
        (["void"], "expected columns weight_1, ... and objectives"),
        (["wrong"], "wrong/search.csv:2: expected a number in every column"),
        (["short"], "short/search.csv:3: expected a number in every column"),
        (["other"], "expected columns weight_1, ... and objectives"),
        (["nan"], "no candidate has a finite error and bias; search again with a smaller merge.rate"),
        (["binary"], "expected a CSV file in UTF-8"),
    ],
)
def test_what_is_refused(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    save(tmp_path / "by_gradient", "0.5,0.5,0.7", header="weight_1,weight_2,loss")
    save(tmp_path / "empty")
    save(tmp_path / "wrong", "0.5,0.5,much,0.6,0.3")
    save(tmp_path / "short", ROWS[0], "0.5,0.5")
    save(tmp_path / "other", "test_loss,1", header="metric,value")
    save(tmp_path / "nan", "0.5,0.5,0.7,nan,0.3")
    (tmp_path / "void").mkdir()
    (tmp_path / "void" / "search.csv").write_text("")
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "search.csv").write_bytes(b"weight_1,error,bias\n\xff\n")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
