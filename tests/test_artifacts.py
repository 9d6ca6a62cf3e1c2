"""The saved run: whole or not there, the same run or another."""

import json
import math
import os
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hatemtl.artifacts import (
    SavedRun,
    claim,
    differences,
    finish,
    read_record,
    start,
    unfinished,
    write,
    write_config,
    write_labels,
    write_record,
    write_results,
    write_text,
)
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace

CONFIG: dict[str, Any] = {
    "action": "train",
    "seed": 0,
    "save_path": "runs/a",
    "load_path": None,
    "overwrite": False,
    "data": {"dir": "data"},
    "tasks": {"target": {"mask_pattern": None, "corpus": {"_target_": "Corpus", "dir": "data/corpus", "limit": None}}},
    "encoder": {"source": "someone/encoder", "random": None},
    "logger": {"_target_": "hatemtl.loggers.csv"},
    "trainer": {"precision": "auto", "progress": None},
    "predict": {"input": None},
}


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


def fill(folder: Path, config: dict[str, Any] = CONFIG, sources: dict[str, str] | None = None) -> Path:
    """Writes what makes a folder a saved run."""
    folder.mkdir(parents=True)
    write_config(folder, config)
    write_labels(folder, {"target": LabelSpace("multilabel", ("a", "b"))})
    made = {"method": "ah_lora16", "library": "adapterhub", "encoder": "mark", "encoder_source": "someone/encoder"}
    write_record(folder, {"status": "finished", **made, "sources": sources or {}})
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Writing


def test_a_file_appears_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "below" / "file.txt"
    write_text(path, "old ä")

    def half(temporary: Path) -> None:
        temporary.write_text("ne")
        assert path.read_text(encoding="utf-8") == "old ä"  # what stands there is never touched
        assert temporary.name.startswith(".")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, half)
    assert path.read_text(encoding="utf-8") == "old ä"
    assert names(path.parent) == {"file.txt"}
    write(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert names(path.parent) == {"file.txt"}


def test_results_keep_full_precision_and_other_stages(tmp_path: Path) -> None:
    val = {"val_target_f1_a": 1 / 3, "val_score": math.nan}
    write_results(tmp_path, val, "val")
    write_results(tmp_path, {"test_target_f1_a": 0.1 + 0.2, "test_old": 1.0}, "test")
    write_results(tmp_path, {"test_target_f1_a": math.pi, "test_tiny": 5e-324}, "test")
    assert (tmp_path / "results.csv").read_text().splitlines()[:2] == ["metric,value", "val_target_f1_a,0.3333333333333333"]
    found = SavedRun(fill(tmp_path / "run")).results
    assert found == {}  # a run that was never evaluated
    (tmp_path / "results.csv").rename(tmp_path / "run" / "results.csv")
    found = SavedRun(tmp_path / "run").results
    assert math.isnan(found.pop("val_score"))
    assert found == {"val_target_f1_a": 1 / 3, "test_target_f1_a": math.pi, "test_tiny": 5e-324}


@pytest.mark.parametrize(
    "rows",
    [{'test_race, "religion"': 0.5, "test_a\nb": 1.0}, {"test_score": np.float64(0.5)}],
    ids=["names", "numbers"],
)
def test_any_label_and_any_float_can_be_written(rows: dict[str, float], tmp_path: Path) -> None:
    fill(tmp_path / "run")
    write_results(tmp_path / "run", rows, "test")
    assert SavedRun(tmp_path / "run").results == rows


def test_results_of_other_tasks_stay(tmp_path: Path) -> None:
    run = fill(tmp_path / "run")
    write_results(run, {"val_target_f1": 0.1, "test_target_f1": 0.2, "test_target_old": 0.3, "test_label_f1": 0.4}, "test")
    write_results(run, {"test_target_f1": 0.5}, "test", ["target"])
    assert SavedRun(run).results == {"val_target_f1": 0.1, "test_label_f1": 0.4, "test_target_f1": 0.5}


def test_results_of_a_task_whose_name_begins_alike_stay(tmp_path: Path) -> None:
    run = fill(tmp_path / "run")
    write_labels(run, dict.fromkeys(("target", "target_fine"), LabelSpace("multilabel", ("a", "b"))))
    write_results(run, {"test_target_f1": 0.1, "test_target_fine_f1": 0.2}, "test", ["target", "target_fine"])
    write_results(run, {"test_target_f1": 0.3}, "test", ["target"])
    assert SavedRun(run).results == {"test_target_fine_f1": 0.2, "test_target_f1": 0.3}


# Reading


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    spaces = {"target": LabelSpace("multilabel", ("ä", "b c")), "label": LabelSpace("multiclass", ("yes", "no"))}
    fill(tmp_path / "run")
    write_labels(tmp_path / "run", spaces)
    saved = SavedRun(tmp_path / "run")
    assert saved.config == CONFIG
    assert saved.labels == spaces
    assert list(saved.labels) == ["target", "label"]
    assert saved.record["method"] == "ah_lora16"


@pytest.mark.parametrize("missing", ["config.yaml", "run.json", "labels.json"])
def test_half_a_run_is_none(missing: str, tmp_path: Path) -> None:
    (fill(tmp_path / "run") / missing).unlink()
    with pytest.raises(UserError, match=f"not a saved run, {missing} is missing"):
        SavedRun(tmp_path / "run")


def test_no_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such saved run; train one with save_path=.*/none"):
        SavedRun(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no such saved run"):
        SavedRun(tmp_path / "file")


@pytest.mark.parametrize("name", ["run.json", "labels.json", "config.yaml"])
def test_a_garbled_file_is_named(name: str, tmp_path: Path) -> None:
    (fill(tmp_path / "run") / name).write_text('{"a": [1')
    saved = SavedRun(tmp_path / "run")
    read = {"run.json": lambda: saved.record, "labels.json": lambda: saved.labels, "config.yaml": lambda: saved.config}
    with pytest.raises(UserError, match=f"{name}: not valid"):
        read[name]()


DAMAGED = [
    ("run.json", b"\xff{}", "not valid JSON"),
    ("run.json", b"{}", "has no method, library, encoder, encoder_source"),
    ("run.json", b"[]", r"holds \[\]"),
    ("labels.json", b"\xff{}", "not valid JSON"),
    ("labels.json", b"[]", r"holds \[\]"),
    ("labels.json", b'{"target": {"kind": "multilabel"}}', "the labels of task 'target' are .*, expected their kind"),
    ("labels.json", b'{"target": {"kind": "many", "names": ["a"]}}', "the labels of task 'target' are"),
    ("labels.json", b'{"target": {"kind": "multilabel", "names": "ab"}}', "the labels of task 'target' are"),
    ("labels.json", b'{"target": null}', "the labels of task 'target' are None"),
    ("config.yaml", b"\xff: 1", "not valid YAML"),
    ("config.yaml", b"", "holds None"),
    ("config.yaml", b"seed: 0", "has no tasks"),
]


@pytest.mark.parametrize(("name", "content", "expected"), DAMAGED)
def test_a_damaged_file_is_named_with_the_way_out(name: str, content: bytes, expected: str, tmp_path: Path) -> None:
    (fill(tmp_path / "run") / name).write_bytes(content)
    saved = SavedRun(tmp_path / "run")
    read = {"run.json": lambda: saved.record, "labels.json": lambda: saved.labels, "config.yaml": lambda: saved.config}
    with pytest.raises(UserError, match=f"run/{name}: {expected}.*train the run again with overwrite=true$"):
        read[name]()


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


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    saved = SavedRun(fill(tmp_path / "run"))
    save_file({"ids": torch.arange(3), "target.bias": torch.tensor([1.0, torch.nan])}, saved.folder / "heads.safetensors")
    with pytest.raises(UserError, match=r"run/heads.safetensors: target.bias holds what is no finite number.*diverged"):
        saved.tensors("heads.safetensors")


def test_missing_weights_name_the_method_that_fits(tmp_path: Path) -> None:
    saved = SavedRun(fill(tmp_path / "run"))
    (tmp_path / "run" / "heads.bin").touch()
    with pytest.raises(UserError, match=r"has no heads.safetensors \(its method: ah_lora16\)"):
        saved.weights("heads.safetensors")
    (tmp_path / "run" / "heads.safetensors").touch()
    assert saved.weights("heads.safetensors") == tmp_path / "run" / "heads.safetensors"


def test_weights_that_are_cut_off_are_told(tmp_path: Path) -> None:
    saved = SavedRun(fill(tmp_path / "run"))
    path = tmp_path / "run" / "heads.safetensors"
    save_file({"w": torch.arange(4.0)}, path)
    assert torch.equal(saved.tensors("heads.safetensors")["w"], torch.arange(4.0))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="heads.safetensors cannot be read .*overwrite=true"):
        saved.tensors("heads.safetensors")


def test_the_digest_changes_with_any_weight_and_nothing_else(tmp_path: Path) -> None:
    weights = torch.zeros(4)
    for name in ("a", "b"):
        fill(tmp_path / name)
        (tmp_path / name / "adapter").mkdir()
        save_file({"w": weights}, tmp_path / name / "heads.safetensors")
        save_file({"w": weights}, tmp_path / name / "adapter" / "adapter.safetensors")
    first, second = SavedRun(tmp_path / "a"), SavedRun(tmp_path / "b")
    original = first.digest()
    assert second.digest() == original  # wherever it stands
    write_results(first.folder, {"test_score": 1.0}, "test")
    write_record(first.folder, {"status": "finished", "seconds": 3})
    assert first.digest() == original
    save_file({"w": weights + 1e-6}, tmp_path / "a" / "adapter" / "adapter.safetensors")
    save_file({"w": weights + 1e-6}, tmp_path / "b" / "heads.safetensors")
    assert len({original, first.digest(), second.digest()}) == 3


# The same run or another


@pytest.mark.parametrize(
    "same",
    [
        {"action": ["train", "test"]},
        {"save_path": "runs/b"},
        {"overwrite": True},
        {"logger": {"_target_": "hatemtl.loggers.wandb", "project": "p"}},
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


def test_a_new_key_that_is_null_makes_no_other_run() -> None:
    """A later version may add a switch that is off."""
    assert differences(CONFIG, {**CONFIG, "new": None, "group": {"switch": None}}) == []
    assert differences({**CONFIG, "new": None}, CONFIG) == []
    assert differences(CONFIG, {**CONFIG, "new": 0}) == ["new: saved None, given 0"]
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
        claim(run, {**CONFIG, **{f"key{i}": i for i in range(7)}}, sources, overwrite=False)
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
