"""Which source answers for which label: what is averaged, what is shown, what is refused."""

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

Run = Callable[..., tuple[int, str, str]]
HEADER = "task,label,layer,source,weight,posts"


@pytest.fixture
def run(run: Run, tmp_path: Path) -> Run:
    """The script, called beside `fused`, a tested run: its exit code, stdout and stderr."""
    weights = {("*", "l.0"): 0.5, ("*", "l.1"): 0.5, ("women", "l.0"): 0.9, ("women", "l.1"): 0.7, ("arab", "l.0"): 0.2,
               ("arab", "l.1"): 0.1}  # fmt: skip
    posts = {"*": 8, "women": 3, "arab": 2}
    save(
        tmp_path / "fused",
        *(
            f"target,{label},{layer},{source},{weight},{posts[label]}"
            for (label, layer), first in weights.items()
            for source, weight in (("part_1", first), ("part_2", 1 - first))
        ),
    )
    return run


def save(folder: Path, *rows: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "fusion.csv").write_text("\n".join([HEADER, *rows]) + "\n")


def test_a_row_a_label_is_the_mean_over_layers(run: Run) -> None:
    code, out, err = run("fused")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "| label          | part_1 | part_2 |",
        "|----------------+--------+--------|",
        "| every post (8) |  0.500 |  0.500 |",
        "| women (3)      |  0.800 |  0.200 |",
        "| arab (2)       |  0.150 |  0.850 |",
    ]
    assert run("fused/fusion.csv")[1] == out


def test_guarded_names_are_read_as_they_were(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "both", "label,'=x,l.0,'@a,0.5,3", "label,''=x,l.0,'@a,0.25,4")
    assert run("both")[1].splitlines()[0::2] == ["| label   |    @a |", "| =x (3)  | 0.500 |"]
    assert run("both", "--format", "csv")[1].splitlines() == ["label,'@a", "'=x (3),0.5", "''=x (4),0.25"]


def test_layers_may_be_chosen_or_be_the_rows(run: Run) -> None:
    assert run("fused", "--layer", "*.1", "--format", "csv", "--digits", "2")[1].splitlines() == [
        "label,part_1,part_2",
        "every post (8),0.50,0.50",
        "women (3),0.70,0.30",
        "arab (2),0.10,0.90",
    ]
    assert run("fused", "--by", "layer", "--label", "women", "--format", "markdown")[1].splitlines() == [
        "| layer | part_1 | part_2 |",
        "|-------|-------:|-------:|",
        "| l.0   |  0.900 |  0.100 |",
        "| l.1   |  0.700 |  0.300 |",
    ]
    assert run("fused", "--by", "layer", "--digits", "1")[1].splitlines()[2] == "| l.0   |    0.5 |    0.5 |"


def test_the_heat_map_shows_the_same_numbers(run: Run, tmp_path: Path) -> None:
    assert run("fused", "--output", "new/map.svg", "--digits", "2") == (0, "", "")
    written = re.findall(r"<!-- (.*?) -->", (tmp_path / "new" / "map.svg").read_text())  # what each group of glyphs says
    for text in ("part_1", "part_2", "every post (8)", "women (3)", "arab (2)", "0.50", "0.80", "0.20", "0.15", "0.85"):
        assert text in written
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["map.svg"]


def test_equal_weights_can_be_drawn(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "even", "target,*,l.0,<a & b>,0.5,3", "target,*,l.0,a_rather_long_name,0.5,3")
    assert run("even", "--output", "map.svg")[0] == 0
    written = (tmp_path / "map.svg").read_text()
    assert "<!-- a_rather_long_name -->" in written
    assert ElementTree.fromstring(written).tag.endswith("svg")


def test_one_of_several_tasks_is_chosen(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "both", "target,*,l.0,a,0.5,3", "label,*,l.0,a,0.25,4")
    assert "--task: one of several is needed; known: target, label" in run("both")[2]
    assert run("both", "--task", "label", "--format", "csv")[1].splitlines() == ["label,a", "every post (4),0.25"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no such file; expected a tested run of method=lora_fusion or lora_gate"),
        (["fused", "--task", "x"], "--task: 'x' is none of them; known: target"),
        (["fused", "--layer", "x"], "--layer 'x' matches none; the layers are l.0, l.1"),
        (["fused", "--by", "layer", "--label", "x"], "--label: 'x' is none of them; known: *, women, arab"),
        (["fused", "--label", "women"], "type --by layer --label NAME"),
        (["fused", "--output", "fused/fusion.csv"], "is one of the results read"),
        (["empty"], "holds no rows"),
        (["wrong"], "wrong/fusion.csv:2: expected a weight and a number of posts"),
        (["other"], f"expected the columns {HEADER}"),
    ],
)
def test_what_is_refused(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    save(tmp_path / "empty")
    save(tmp_path / "wrong", "target,*,l.0,a,much,3")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "fusion.csv").write_text("metric,value\n")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
