"""The saved run: whole or not there, the same run or another."""

import json
import math
import os
import sys
from itertools import product
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hatemtl.errors import UserError
from hatemtl.evaluations.base import STAGES, Row, Stage
from hatemtl.heads.figures import COUNTS
from hatemtl.labels import LabelSpace
from hatemtl.saved_runs.saved_run import (
    SavedRun,
    read_tables,
    write_config,
    write_labels,
    write_record,
    write_results,
    write_tables,
)
from hatemtl.saved_runs.writing import share, write, write_text

CONFIG: dict[str, Any] = {
    "action": "train",
    "seed": 0,
    "save_path": "runs/a",
    "load_path": None,
    "overwrite": False,
    "data": {"dir": "data"},
    "tasks": {"target": {"mask_pattern": None, "corpus": {"_target_": "Corpus", "dir": "data/corpus", "limit": None}}},
    "encoder": {"source": "someone/encoder", "random": None},
    "logger": {"_target_": "hatemtl.training.loggers.csv"},
    "trainer": {"precision": "auto", "progress": None},
    "predict": {"input": None},
}
MADE = {"method": "ah_lora16", "library": "adapterhub", "encoder": "mark", "encoder_source": "someone/encoder"}


def fill(folder: Path, config: dict[str, Any] = CONFIG, sources: dict[str, str] | None = None) -> Path:
    """Writes what makes a folder a saved run."""
    folder.mkdir(parents=True)
    write_config(folder, config)
    write_labels(folder, {"target": LabelSpace("multilabel", ("a", "b"))})
    write_record(folder, {"status": "finished", **MADE, "sources": sources or {}})
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
    f1, loss = ("target", "f1", "a"), ("target", "loss", None)
    write_results(tmp_path, [Row("val", *f1, 1 / 3), Row("val", *loss, math.nan)])
    write_results(tmp_path, [Row("test", *f1, 0.1 + 0.2), Row("test", "target", "old", None, 1.0)])
    write_results(tmp_path, [Row("test", *f1, math.pi), Row("test", *loss, 5e-324)])
    assert (tmp_path / "results.csv").read_text().splitlines()[:2] == ["metric,value", "val_target_f1_a,0.3333333333333333"]
    found = SavedRun(fill(tmp_path / "run")).results
    assert found == {}  # a run that was never evaluated
    (tmp_path / "results.csv").rename(tmp_path / "run" / "results.csv")
    found = SavedRun(tmp_path / "run").results
    assert math.isnan(found.pop("val_target_loss"))
    assert found == {"val_target_f1_a": 1 / 3, "test_target_f1_a": math.pi, "test_target_loss": 5e-324}


@pytest.mark.parametrize(
    "row",
    [
        Row("test", "target", "f1", 'race, "religion"', 0.5),
        Row("test", "target", "f1", "a\nb", 1.0),
        Row("test", "target", "score", None, np.float64(0.5)),  # type: ignore[arg-type]
    ],
    ids=["quotes", "line", "number"],
)
def test_any_label_and_any_float_can_be_written(row: Row, tmp_path: Path) -> None:
    fill(tmp_path / "run")
    write_results(tmp_path / "run", [row])
    assert SavedRun(tmp_path / "run").results == {row.metric: row.value}


def f1(task: str, value: float, stage: Stage = "test") -> Row:
    return Row(stage, task, "f1", None, value)


def test_results_of_other_tasks_and_stages_stay(tmp_path: Path) -> None:
    run = fill(tmp_path / "run")
    old = Row("test", "target", "old", "a", 0.3)
    write_results(run, [f1("target", 0.1, "val"), f1("target", 0.2), old, f1("label", 0.4)])
    write_results(run, [f1("target", 0.5)])
    assert SavedRun(run).results == {"val_target_f1": 0.1, "test_label_f1": 0.4, "test_target_f1": 0.5}


def test_tables_of_other_tasks_stay_and_those_of_the_test_before_go(tmp_path: Path) -> None:
    path = tmp_path / "errors.csv"
    write_tables(tmp_path, {"errors.csv": [{"task": "a", "text": "=1"}, {"task": "b", "text": "-0 1"}]}, ["a", "b"], {})
    before = read_tables(tmp_path, ["errors.csv", "gone.csv"])
    left = write_tables(tmp_path, {"errors.csv": [{"task": "a", "score": 0.5}]}, ["a"], before)
    assert left == ["errors.csv"]
    assert path.read_text() == "task,text,score\nb,'-0 1,\na,,0.5\n"
    assert write_tables(tmp_path, {"others.csv": []}, ["a", "b"], read_tables(tmp_path, left)) == [], (
        "whichever evaluation left it"
    )
    assert not path.exists()
    path.write_text("post,text\n1,x\n")
    with pytest.raises(UserError, match="expected a table with a column task"):
        read_tables(tmp_path, ["errors.csv"])
    with pytest.raises(
        UserError, match=r"run\.json: tables holds '\.\./errors\.csv', expected names of CSV files of the folder"
    ):
        read_tables(tmp_path, ["../errors.csv"])


def test_results_of_a_task_whose_name_begins_alike_stay(tmp_path: Path) -> None:
    run = fill(tmp_path / "run")
    write_labels(run, dict.fromkeys(("target", "target_fine"), LabelSpace("multilabel", ("a", "b"))))
    write_results(run, [f1("target", 0.1), f1("target_fine", 0.2)])
    write_results(run, [f1("target", 0.3)])
    assert SavedRun(run).results == {"test_target_fine_f1": 0.2, "test_target_f1": 0.3}
    write_results(run, [f1("target_fine", 0.4)])
    assert SavedRun(run).results == {"test_target_f1": 0.3, "test_target_fine_f1": 0.4}


def test_a_folder_of_a_test_alone_keeps_what_it_holds(tmp_path: Path) -> None:
    """It has no labels.json that would name other tasks."""
    write_results(tmp_path, [f1("label", 0.1)])
    write_results(tmp_path, [f1("target", 0.2)])
    write_results(tmp_path, [f1("target", 0.3)])
    assert (tmp_path / "results.csv").read_text().splitlines()[1:] == ["test_label_f1,0.1", "test_target_f1,0.3"]


def test_rows_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    run, labels = fill(tmp_path / "run"), ("a", "b_a", "my_fp_label", "tp_a")
    write_labels(run, dict.fromkeys(("target", "target_fine"), LabelSpace("multilabel", labels)))
    names = ("f1", *COUNTS)
    rows = [
        Row(stage, task, name, label, i / 7)
        for i, (stage, task, name, label) in enumerate(product(STAGES, ("target", "target_fine"), names, labels))
    ]
    rows += [Row("test", "target", "macro_f1", None, 0.5), Row("test", "target", "gmb_subgroup_auc", None, 0.5)]
    write_results(run, rows)
    assert SavedRun(run).rows == rows
    (run / "results.csv").write_text("metric,value\ntest_target_subgroup_auc_them,0.5\ntest_gone_f1,1\nscore,1\n")
    assert SavedRun(run).rows == [Row("test", "target", "subgroup_auc_them", None, 0.5)]


def test_weights_that_a_library_wrote_for_its_owner_alone_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    files = [tmp_path / "adapter" / "weights.safetensors", tmp_path / "adapter" / "settings.json"]
    files[0].parent.mkdir()
    for path in files:
        path.touch()
        path.chmod(0o600)
    before = os.umask(0o022)
    try:
        share(tmp_path)
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in files] == [0o644, 0o600]


# Reading


def test_nothing_is_written_through_a_link_that_waits_there(tmp_path: Path) -> None:
    own = tmp_path / "profile"
    own.write_text("mine")
    (tmp_path / f".results.csv.{os.getpid()}").symlink_to(own)  # an archive may hold one for every process number
    write_results(tmp_path, [Row("test", "label", "f1", "$(a command)", 0.5)])
    assert own.read_text() == "mine"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["profile", "results.csv"]


def test_no_mode_is_taken_from_a_link_that_waits_there(tmp_path: Path) -> None:
    (tmp_path / "open").touch()
    (tmp_path / "open").chmod(0o777)
    for number, target in enumerate(("open", "nowhere")):
        (tmp_path / f".new.{os.getpid()}").symlink_to(tmp_path / target)
        write_text(tmp_path / f"results_{number}.csv", "metric,value\n")
        assert not (tmp_path / f"results_{number}.csv").stat().st_mode & 0o111
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["open", "results_0.csv", "results_1.csv"]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    spaces = {"target": LabelSpace("multilabel", ("ä", "b c")), "label": LabelSpace("multiclass", ("yes", "no"))}
    fill(tmp_path / "run")
    write_labels(tmp_path / "run", spaces)
    saved = SavedRun(tmp_path / "run")
    assert saved.config == CONFIG
    assert saved.labels == spaces
    assert list(saved.labels) == ["target", "label"]
    assert saved.record["method"] == "ah_lora16"


def test_a_key_of_the_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    saved = SavedRun(fill(tmp_path / "run"))
    assert saved.configured("tasks", "target", "corpus", "dir") == "data/corpus"
    for keys, named in ((("tasks", "label", "corpus"), "tasks.label"), (("seed", "of"), "seed.of")):
        with pytest.raises(UserError, match=rf"run/config\.yaml: has no {named}; train the run again"):
            saved.configured(*keys)


@pytest.mark.parametrize("missing", ["config.yaml", "run.json", "labels.json"])
def test_half_a_run_is_none(missing: str, tmp_path: Path) -> None:
    (fill(tmp_path / "run") / missing).unlink()
    with pytest.raises(UserError, match=f"not a saved run, {missing} is missing"):
        SavedRun(tmp_path / "run")


def test_no_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such saved run; train one with save_path=.*/none"):
        SavedRun(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="this is no folder"):
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
    ("run.json", json.dumps({**MADE, "ledger": {"joules": "1"}}).encode(), "ledger.joules "),
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


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    saved = SavedRun(fill(tmp_path / "run"))
    save_file({"ids": torch.arange(3), "target.bias": torch.tensor([1.0, torch.nan])}, saved.folder / "heads.safetensors")
    with pytest.raises(UserError, match=r"run/heads.safetensors: target.bias holds what is no finite number.*diverged"):
        saved.tensors("heads.safetensors")


def test_missing_weights_name_the_method_that_fits(tmp_path: Path) -> None:
    saved = SavedRun(fill(tmp_path / "run"))
    (tmp_path / "run" / "heads.bin").touch()
    with pytest.raises(UserError, match=r"has no heads.safetensors \(its method: ah_lora16\)"):
        saved.tensors("heads.safetensors")


def test_weights_that_are_cut_off_are_told(tmp_path: Path) -> None:
    saved = SavedRun(fill(tmp_path / "run"))
    path = tmp_path / "run" / "heads.safetensors"
    save_file({"w": torch.arange(4.0)}, path)
    assert torch.equal(saved.tensors("heads.safetensors")["w"], torch.arange(4.0))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="heads.safetensors cannot be read .*overwrite=true"):
        saved.tensors("heads.safetensors")


def test_labels_and_records_are_for_reading_too_and_thresholds_stand_where_there_are_some(tmp_path: Path) -> None:
    spaces = {"target": LabelSpace("multilabel", ("a", "ж")), "label": LabelSpace("multiclass", ("yes", "no"))}
    write_labels(tmp_path, spaces, {"target": [0.25, 0.5], "label": None})
    text = (tmp_path / "labels.json").read_text("utf-8")
    assert '"ж"' in text and '\n  "target"' in text
    assert {task: of.get("thresholds") for task, of in json.loads(text).items()} == {"target": [0.25, 0.5], "label": None}
    assert "thresholds" not in json.loads(text)["label"]
    write_record(tmp_path, {"command": "ж"})
    assert (tmp_path / "run.json").read_text("utf-8") == '{\n  "command": "ж"\n}\n'


@pytest.mark.parametrize(
    "error", [OSError(28, "no"), OSError(28, "no", "elsewhere"), SafetensorError("I/O: full (os error 28)")], ids=repr
)
def test_an_error_of_writing_says_what_and_where(tmp_path: Path, error: Exception) -> None:
    def content(path: Path) -> None:
        path.touch()
        raise error

    with pytest.raises(OSError) as told:
        write(tmp_path / "file", content)
    assert (told.value.errno, told.value.filename) == (28, str(tmp_path / "file"))
    assert told.value.strerror == os.strerror(28)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "header",
    [
        {"of_bytes": 10 * 2**30},
        {"of_bytes": 2**64 - 1},
        {"w": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**40]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
        {"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
        {"w": {"dtype": "PICKLE", "shape": [4], "data_offsets": [0, 16]}},
    ],
    ids=str,
)
def test_a_header_of_weights_that_lies_is_told_and_takes_no_memory(tmp_path: Path, header: dict[str, Any]) -> None:
    saved = SavedRun(fill(tmp_path / "run"))
    path = tmp_path / "run" / "heads.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(header.get("of_bytes", len(text)).to_bytes(8, "little") + text + bytes(16))
    if header.get("of_bytes") == 10 * 2**30:
        os.truncate(path, 11 * 2**30)  # of holes: nothing of it is on the disk
    before = getrusage(RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="heads.safetensors cannot be read .*overwrite=true"):
        saved.tensors("heads.safetensors")
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 100_000 * (1024 if sys.platform == "darwin" else 1)  # kB, there bytes


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
    write_results(first.folder, [f1("target", 1.0)])
    write_record(first.folder, {"status": "finished", "seconds": 3})
    assert first.digest() == original
    save_file({"w": weights + 1e-6}, tmp_path / "a" / "adapter" / "adapter.safetensors")
    save_file({"w": weights + 1e-6}, tmp_path / "b" / "heads.safetensors")
    assert len({original, first.digest(), second.digest()}) == 3


@pytest.mark.parametrize("name", ["results.csv", "adapter/adapter_config.json"])
def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path, name: str) -> None:
    """Reading either would never end."""
    write_config(tmp_path, CONFIG)
    write_record(tmp_path, {})
    write_labels(tmp_path, {})
    SavedRun(tmp_path)
    (path := tmp_path / name).parent.mkdir(exist_ok=True)
    path.symlink_to("nowhere")  # and what leads nowhere is told by who reads it
    SavedRun(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=rf"{name}: a pipe or a device"):
        SavedRun(tmp_path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=rf"{name}: a pipe or a device"):
        SavedRun(tmp_path)
