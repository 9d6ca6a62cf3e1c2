"""Runs of a sweep are named by what sets them apart, and found again by what they are."""

from pathlib import Path
from typing import Any

import pytest

from hatemtl.saved_runs.saved_run import write_config
from hatemtl.saved_runs.sweep_names import LONGEST, names, standing, standing_at, sweep_folder, word

CONFIG: dict[str, Any] = {
    "tasks": {"label": {"column": "label"}, "target": {"column": "target"}},
    "method": {"rank": 4},
    "seed": 1,
    "choices": {"method": "ah_lora16", "encoder": "minilm"},
}


def config(**other: Any) -> dict[str, Any]:
    return {**CONFIG, **other}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ([{"a.x.y": 1}, {"a.x.y": 2}], ["y=1", "y=2"]),
        ([{"a.x.y": 1, "b.x.y": 3}, {"a.x.y": 2, "b.x.y": 4}], ["a.x.y=1,b.x.y=3", "a.x.y=2,b.x.y=4"]),
        ([{"b.x": 1, "c.x": 1}, {"b.x": 2, "c.x": 2}], ["b.x=1,c.x=1", "b.x=2,c.x=2"]),
        ([{"head@tasks.label.head": "x"}, {"head@tasks.label.head": "y"}], ["head=x", "head=y"]),
        ([{"group/sub": "x", "seed": 3}, {"group/sub": "y", "seed": 3}], ["group-sub=x", "group-sub=y"]),
        ([{"x": 1}, {}], ["x=1", "x=null"]),
        ([{"x": 1}], [""]),
    ],
)
def test_keys_are_as_short_as_tells_them_apart(settings: list[dict[str, Any]], named: list[str]) -> None:
    assert names(settings) == named


def test_a_name_is_no_longer_than_a_file_system_takes_and_none_is_given_twice() -> None:
    long = names([{"x": "a" * 200 + str(i)} for i in range(3)])
    assert len({*long}) == 3 and all(len(name) == LONGEST + 9 and name.startswith("x=aaa") for name in long)
    just = names([{"x": "a" * (LONGEST - 3) + str(i)} for i in range(2)])
    assert [len(name) for name in just] == [LONGEST, LONGEST] and just[0].endswith("a0")
    alike = names([{"x": "a b"}, {"x": "a-b"}, {"x": "c"}])  # whose words are the same
    assert alike[0].startswith("x=a-b-") and alike[1].startswith("x=a-b-") and alike[0] != alike[1]
    assert alike[2] == "x=c"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1e-05, "1e-5"),
        (0.0001, "1e-4"),
        (0.25, "0.25"),
        (1.0, "1.0"),
        (0.0, "0.0"),
        (1e22, "1e22"),
        (0.1 + 0.2, "0.30000000000000004"),  # which six digits would not tell from 0.3
        (False, "false"),
        ([], "none"),
        ((1, None), "1+null"),
        ({"a": 1, "b": [2, 3]}, "a-1+b-2+3"),
        ({}, "none"),
        ("../..", "none"),
        ("a/../b", "a-..-b"),
        ("", "none"),
    ],
)
def test_a_value_is_a_word_that_a_folder_can_have(value: Any, written: str) -> None:
    assert word(value) == written


def test_a_sweep_is_named_by_what_its_runs_have_in_common() -> None:
    both = [config(seed=seed) for seed in (1, 2)]
    folder = sweep_folder(both, ["seed"])
    assert folder.startswith("adapters/label+target-ah_lora16-minilm-")
    assert sweep_folder([*both, config(seed=3)], ["seed"]) == folder  # one more value of the same key
    assert sweep_folder([{**one, "method": {"rank": 8}} for one in both], ["seed"]) != folder
    assert sweep_folder(both, ["method"]).startswith("adapters/label+target-minilm-")
    assert sweep_folder(both, ["tasks"]).startswith("adapters/ah_lora16-minilm-")
    assert sweep_folder(both, ["experiment"]).startswith("adapters/ah_lora16-minilm-")
    ranks = [config(method={"rank": rank, "alpha": rank}) for rank in (4, 8)]
    assert sweep_folder(ranks, ["method.rank"]) == sweep_folder(ranks[:1] * 2, ["method.rank", "method.alpha"])


def test_what_stands_in_a_folder_is_found_finished_or_not(tmp_path: Path) -> None:
    for name, seed in (("seed=1", 1), (".seed=2.unfinished", 2), ("other", 3), (".hidden", 4)):
        write_config(tmp_path / name, config(seed=seed))
    write_config(tmp_path / "twice", config(seed=1))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("{")
    found = standing(tmp_path)
    assert sorted(path.name for path in found.values()) == ["other", "seed=1", "seed=2"]
    assert {path.parent for path in found.values()} == {tmp_path}


def test_a_run_is_found_where_it_stands_whatever_it_is_called_there(tmp_path: Path) -> None:
    for name, seed in (("mine", 1), (".other.unfinished", 2), ("null", None)):
        write_config(tmp_path / name, config(seed=seed))
    there, named = standing(tmp_path), tmp_path / "named"
    found = [standing_at(there, config(seed=seed), named).name for seed in (1, 2, 3, None, 0)]
    assert found == ["mine", "other", "named", "null", "named"]  # a digest takes null for 0
