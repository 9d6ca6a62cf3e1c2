"""What stands at export.path: an earlier export gives way, and nothing else is ever lost."""

import json
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from using.test_export import METHODS, inside, source, trained

from hatemtl.encoders.pretrained import Encoder
from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import SavedRun, write_config, write_record
from hatemtl.using import export
from hatemtl.using.export import MARKER


def refuses(run: SavedRun, encoder: Encoder, path: Path | str, message: str, *, overwrite: bool = True) -> None:
    """Both the check before the work and the writing itself refuse the folder."""
    with pytest.raises(UserError, match=message):
        export.check("peft", str(path), encoder, run.folder, overwrite=overwrite)
    with pytest.raises(UserError, match=message):
        export.adapter(run, encoder, "peft", Path(path), seed=0, overwrite=overwrite)


@pytest.fixture(autouse=True)
def _temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot take its place is kept where pytest tidies up."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[SavedRun, Encoder]:
    """A run in runs/run, and its encoder in encoder."""
    encoder = source(tmp_path)
    return trained(METHODS["peft_lora"], encoder, tmp_path / "runs")[0], encoder


def test_only_an_export_is_replaced(saved: tuple[SavedRun, Encoder], tmp_path: Path) -> None:
    run, encoder = saved
    out = tmp_path / "out"
    export.adapter(run, encoder, "peft", out, seed=0)
    marker = json.loads((out / MARKER).read_text())
    assert marker == {
        "format": "peft",
        "run": run.folder.name,  # and not where it lies: the folder may be given away
        "digest": run.digest(),
        "hatemtl": version("hatemtl"),
        "files": ["adapter_config.json", "adapter_model.safetensors"],
    }
    first = inside(out)
    refuses(run, encoder, out, "exists already; .*overwrite=true", overwrite=False)
    (out / "adapter_model.safetensors").write_bytes(b"")
    export.adapter(run, encoder, "peft", out, seed=0, overwrite=True)
    assert inside(out) == first
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("mine")
    refuses(run, encoder, out, "holds notes/mine.txt, which no export left there")
    assert inside(out) == {**first, "notes/mine.txt": b"mine"}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("marker", [None, "", "[", "{}", '{"format": "peft", "files": 1}', '{"format": 1, "files": []}'])
def test_a_folder_of_the_user_is_never_replaced(saved: tuple[SavedRun, Encoder], tmp_path: Path, marker: str | None) -> None:
    run, encoder = saved
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years")
    if marker is not None:
        (mine / MARKER).write_text(marker)
    before = inside(mine)
    refuses(run, encoder, mine, f"mine has no valid {MARKER}, so no export left it; .*give another")
    refuses(run, encoder, mine, "no export left it", overwrite=False)  # where overwrite=true would be no way out
    assert inside(mine) == before
    assert not list(tmp_path.glob(".*"))


def test_an_empty_folder_may_be_used(saved: tuple[SavedRun, Encoder], tmp_path: Path) -> None:
    run, encoder = saved
    for name, overwrite in (("one", False), ("two", True)):
        (tmp_path / name).mkdir()
        export.check("peft", str(tmp_path / name), encoder, run.folder, overwrite=overwrite)
        export.adapter(run, encoder, "peft", tmp_path / name, seed=0, overwrite=overwrite)
        assert (tmp_path / name / MARKER).is_file()


def test_no_source_nor_place_around_or_in_it_is_replaced(
    saved: tuple[SavedRun, Encoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, encoder = saved
    (tmp_path / "home").mkdir()
    (tmp_path / "here" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here" / "below")
    write_config(tmp_path / "other", {"tasks": {}})
    write_record(tmp_path / "other", {})
    # even where each of them says that an export left it
    for place in ("runs", "runs/run", "encoder", "home", "here", "here/below", "."):
        files = sorted(inside(tmp_path / place))
        (tmp_path / place / MARKER).write_text(json.dumps({"format": "peft", "files": files}))
    before = inside(tmp_path)
    for path, message in (
        (run.folder, "is the saved run"),
        ("../../link/run", "is the saved run"),
        ("../../runs/../link/run", "is the saved run"),
        (run.folder / "adapter", "lies in the saved run"),
        (run.folder / "new" / "one", "lies in the saved run"),
        (tmp_path / "link" / "run" / "new", "lies in the saved run"),
        (tmp_path / "runs", "holds the saved run"),
        (tmp_path / "encoder", "is the encoder"),
        (tmp_path / "encoder" / "new", "lies in the encoder"),
        (tmp_path, "holds the saved run"),
        (tmp_path / "other" / "new", "lies in a saved run, .*other, which"),  # whose digest would be another
        (tmp_path / "home", "is the home folder"),
        (tmp_path / "here", "holds the working folder"),
        ("../below", "is the working folder"),
        (".", "expected the folder to write"),
        ("..", "expected the folder to write"),
        ("/", "expected the folder to write"),
        ("new/..", "expected the folder to write"),
    ):
        refuses(run, encoder, path, message)
        refuses(run, encoder, path, message, overwrite=False)
    assert inside(tmp_path) == before
    assert not list(tmp_path.rglob(".*"))


def test_neither_a_link_nor_a_file_is_replaced(saved: tuple[SavedRun, Encoder], tmp_path: Path) -> None:
    run, encoder = saved
    export.adapter(run, encoder, "peft", tmp_path / "out", seed=0)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "file").write_text("mine")
    for overwrite in (True, False):
        refuses(run, encoder, tmp_path / "link", "is a link", overwrite=overwrite)
        refuses(run, encoder, tmp_path / "nowhere", "is a link", overwrite=overwrite)
        refuses(run, encoder, tmp_path / "file", "is no folder", overwrite=overwrite)
        refuses(run, encoder, tmp_path / "file" / "new", "file is no folder", overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "runs" / "there").symlink_to(tmp_path / "out")  # a folder below a link is no link
    export.adapter(run, encoder, "peft", tmp_path / "runs" / "there" / "new", seed=0)


@pytest.mark.parametrize("when", ["shutil.copytree", "os.replace"])
@pytest.mark.parametrize("there", ["nothing", "empty", "export"])
def test_what_comes_after_the_check_is_kept(
    saved: tuple[SavedRun, Encoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, when: str
) -> None:
    """While the files are written, or as the folder takes its place."""
    run, encoder = saved
    out, do = tmp_path / "out", {"shutil.copytree": shutil.copytree, "os.replace": os.replace}[when]
    if there == "empty":
        out.mkdir()
    if there == "export":
        export.adapter(run, encoder, "peft", out, seed=0)
    export.check("peft", str(out), encoder, run.folder, overwrite=True)

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        out.mkdir(exist_ok=True)
        (out / "mine").write_text("mine")
        monkeypatch.setattr(when, do)
        return do(*arguments, **options)

    monkeypatch.setattr(when, meanwhile)
    with pytest.raises(UserError, match=r"holds mine, which|has no valid|cannot be written"):
        export.adapter(run, encoder, "peft", out, seed=0, overwrite=there == "export")
    assert (out / "mine").read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


def test_an_export_stays_where_the_new_one_cannot_take_its_place(
    saved: tuple[SavedRun, Encoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, encoder = saved
    out, replace = tmp_path / "out", os.replace
    export.adapter(run, encoder, "peft", out, seed=0)
    before = inside(out)

    def broken(old: Path, new: Path) -> None:
        if Path(new) == out and (Path(old) / "new").exists():
            raise OSError("no place")
        replace(old, new)

    copy = shutil.copytree
    monkeypatch.setattr("shutil.copytree", lambda a, b, **options: ((b / "new").touch(), copy(a, b, **options)))
    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(UserError, match="no place"):
        export.adapter(run, encoder, "peft", out, seed=0, overwrite=True)
    assert inside(out) == before
    assert not list(tmp_path.glob(".*"))
