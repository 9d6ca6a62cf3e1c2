"""A save_path is taken only by the run that it belongs to, and what stands there is whole or as it was."""

import json
import os
from glob import glob
from pathlib import Path
from typing import Any

import pytest
from saved_runs.test_saved_run import CONFIG, fill, names

from hatemtl.errors import UserError
from hatemtl.saved_runs.claiming import claim, differences, finish, start
from hatemtl.saved_runs.saved_run import SavedRun, read_record, unfinished, write_config, write_record


def changed(**dotted: Any) -> dict[str, Any]:
    """CONFIG with other values; a__b names the key b in a."""
    config = json.loads(json.dumps(CONFIG))
    for key, value in dotted.items():
        *path, last = key.split("__")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    return config


# The same run or another


@pytest.mark.parametrize(
    "same",
    [
        {"action": ["train", "test"]},
        {"save_path": "runs/b"},
        {"overwrite": True},
        {"logger": {"_target_": "hatemtl.training.loggers.wandb", "project": "p"}},
        {"predict__input": "posts.csv"},
        {"trainer__progress": True},
        {"data__dir": "/elsewhere", "tasks__target__corpus__dir": "/elsewhere/corpus"},
        {"seed": 0.0},  # as YAML may read it back
    ],
    ids=str,
)
def test_what_is_no_part_of_a_run(same: dict[str, Any]) -> None:
    assert differences(CONFIG, changed(**same)) == []


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"seed": 1}, ["seed: saved 0, given 1"]),
        ({"load_path": "runs/x"}, ["load_path: saved None, given 'runs/x'"]),
        ({"trainer__precision": "32"}, ["trainer.precision: saved 'auto', given '32'"]),
        ({"tasks__target__mask_pattern": "1 4"}, ["tasks.target.mask_pattern: saved None, given '1 4'"]),
        ({"tasks__target__corpus__limit": 9}, ["tasks.target.corpus.limit: saved None, given 9"]),
        ({"encoder__random": {"layers": 1}}, ["encoder.random.layers: saved None, given 1"]),
        ({"encoder__random": {}}, ["encoder.random: saved None, given {}"]),
    ],
    ids=str,
)
def test_what_makes_another_run(other: dict[str, Any], expected: list[str]) -> None:
    assert differences(CONFIG, changed(**other)) == expected


def test_a_new_key_that_is_off_makes_no_other_run() -> None:
    """A later version may add a switch that is off."""
    for off in (None, False, 0, 0.0):
        assert differences(CONFIG, {**CONFIG, "new": off, "group": {"switch": off}}) == []
        assert differences({**CONFIG, "new": off}, CONFIG) == []
    assert differences({**CONFIG, "new": None}, CONFIG) == []
    assert differences(CONFIG, {**CONFIG, "new": 0.1}) == ["new: saved None, given 0.1"]
    assert differences({**CONFIG, "known": None}, {**CONFIG, "known": 0}) == ["known: saved None, given 0"]
    assert differences({**CONFIG, "old": [1, {"x": 2}]}, CONFIG) == ["old: saved [1, {'x': 2}], given None"]


def test_a_name_that_begins_like_a_left_out_one_counts() -> None:
    assert differences({"logger_level": 1, "actions": 1}, {"logger_level": 2, "actions": 2}) != []


def test_what_yaml_gives_back_is_the_same_run(tmp_path: Path) -> None:
    config = changed(seed=2**40, load_path="a: b # c", trainer__precision="32")
    config["numbers"] = {"small": 1e-05, "large": 5e300, "negative": -0.0, "list": [1, "1 4", None, True, "yes", "0123"]}
    assert differences(SavedRun(fill(tmp_path / "run", config)).config, config) == []
    assert SavedRun(tmp_path / "run").config["numbers"] == config["numbers"]


# Claiming a save_path


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_free_path_may_be_taken(overwrite: bool, tmp_path: Path) -> None:
    assert claim(tmp_path / "run", CONFIG, {}, overwrite=overwrite)
    assert names(tmp_path) == set()


def test_a_finished_run(tmp_path: Path) -> None:
    run, sources = tmp_path / "run", {"runs/source": "abc"}
    fill(run, sources=sources)
    assert not claim(run, changed(action="test"), sources, overwrite=False)
    with pytest.raises(UserError, match=r"finished run of another configuration \(seed: saved 0, given 1\).*overwrite=true"):
        claim(run, changed(seed=1), sources, overwrite=False)
    with pytest.raises(UserError, match="trained anew"):
        claim(run, CONFIG, {"runs/source": "abd"}, overwrite=False)
    with pytest.raises(UserError, match="trained anew"):
        claim(run, CONFIG, {**sources, "runs/second": "x"}, overwrite=False)
    with pytest.raises(UserError, match="; and 3 more"):
        claim(run, {**CONFIG, **{f"key{i}": i for i in range(1, 8)}}, sources, overwrite=False)
    assert claim(run, CONFIG, sources, overwrite=True)
    assert claim(run, changed(seed=1), {}, overwrite=True)
    assert SavedRun(run).config == CONFIG  # it stays until the new one is finished


def test_what_is_no_run_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").touch()
    with pytest.raises(UserError, match="not a saved run"):
        claim(tmp_path / "thesis", CONFIG, {}, overwrite=True)
    assert names(tmp_path / "thesis") == {"chapter1.txt"}


def test_an_unfinished_run(tmp_path: Path) -> None:
    run, work = tmp_path / "run", unfinished(tmp_path / "run")
    work.mkdir()
    assert claim(run, CONFIG, {}, overwrite=False)  # killed before it wrote anything
    write_record(work, {"status": "unfinished", "sources": {}})
    assert claim(run, changed(seed=1), {}, overwrite=False)  # nor what it was
    write_config(work, CONFIG)
    (work / "last.ckpt").touch()
    assert claim(run, changed(logger=None), {}, overwrite=False)
    with pytest.raises(UserError, match=r"unfinished run of another configuration \(seed: saved 0, given 1\)"):
        claim(run, changed(seed=1), {}, overwrite=False)
    assert claim(run, CONFIG, {}, overwrite=True)
    assert names(work) == {"config.yaml", "run.json", "last.ckpt"}  # the same one goes on even so
    assert claim(run, changed(seed=1), {}, overwrite=True)
    assert names(work) == {"config.yaml", "run.json", "last.ckpt"}  # nothing is lost before the new run begins
    assert start(run, CONFIG, {}) == work
    assert "last.ckpt" in names(work)  # this one goes on
    assert start(run, changed(seed=1), {}) == work
    assert "last.ckpt" not in names(work)


def test_other_data_is_another_run(tmp_path: Path) -> None:
    run = fill(tmp_path / "run")
    write_record(run, {**read_record(run), "data": {"label": "abc"}})
    assert not claim(run, CONFIG, read_record(run)["sources"], overwrite=False, data={"label": "abc"})
    with pytest.raises(UserError, match="other posts or annotations"):
        claim(run, CONFIG, read_record(run)["sources"], overwrite=False, data={"label": "abd"})


def test_an_unfinished_run_does_not_go_on_from_other_sources(tmp_path: Path) -> None:
    work = unfinished(tmp_path / "run")
    fill(work, sources={"runs/source": "abc"})
    with pytest.raises(UserError, match="trained anew"):
        claim(tmp_path / "run", CONFIG, {"runs/source": "abd"}, overwrite=False)


@pytest.mark.parametrize("name", ["config.yaml", "run.json"])
@pytest.mark.parametrize("content", [b"\xff", b"", b"[]"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_run_can_be_trained_again(finished: bool, content: bytes, name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (fill(run if finished else unfinished(run)) / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}.*overwrite=true"):
        claim(run, CONFIG, {}, overwrite=False)
    assert claim(run, CONFIG, {}, overwrite=True)
    work = start(run, CONFIG, {})
    assert read_record(work)["status"] == "unfinished"
    assert not (work / "labels.json").exists()  # of the damaged one nothing goes on


# Finishing


def test_a_finished_run_takes_its_place(tmp_path: Path) -> None:
    run = tmp_path / "target_part_1"
    for seed in (0, 1):
        fill(unfinished(run), changed(seed=seed))
        assert glob(str(tmp_path / "target_*")) == ([str(run)] if seed else [])  # none meets it before
        assert glob(str(tmp_path / "*")) == ([str(run)] if seed else [])
        finish(unfinished(run), run)
        assert names(tmp_path) == {"target_part_1"}
        assert SavedRun(run).config["seed"] == seed


def test_a_replacement_cut_short_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fill(tmp_path / "run")
    fill(unfinished(run), changed(seed=1))
    rename, moved = os.replace, []

    def once(source: Path, target: Path) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", once)
        finish(unfinished(run), run)
    assert SavedRun(moved[0]).config["seed"] == 0
    assert SavedRun(unfinished(run)).config["seed"] == 1
    finish(unfinished(run), run)
    assert SavedRun(run).config["seed"] == 1
    assert names(tmp_path) == {"run"}
