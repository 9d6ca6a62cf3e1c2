"""What was computed is kept where it can be written, once its own place takes it no more."""

import errno
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from broken import as_anybody, forbidden
from command.test_faults import RUN, as_root, fill, small, told
from conftest import Outcome, main

from hatemtl.command.faults import kept_elsewhere
from hatemtl.encoders.pretrained import Encoder
from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.using import export, judging
from hatemtl.using.predictor import Predictor

Cli = Callable[..., Outcome]
disk = small  # of two MiB
POSTS = "text\n" + "one of many mild posts\n" * 50


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(*RUN, "optimization.epochs=1", f"save_path={folder}") == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def predicted(cli: Cli, run: Path, output: Path) -> Outcome:
    posts = output.parents[1] / "posts.csv"
    posts.write_text(POSTS)
    return cli("action=predict", f"load_path={run}", f"predict.input={posts}", f"predict.output={output}")


def afterwards(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Does something as soon as all posts are scored."""
    scores = Predictor.scores

    def then(*given: Any) -> Any:
        found = scores(*given)
        do()
        return found

    monkeypatch.setattr(Predictor, "scores", then)


def test_scores_survive_a_disk_that_fills_while_posts_are_scored(
    cli: Cli, run: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    afterwards(monkeypatch, lambda: fill(disk))
    outcome = predicted(cli, run, disk / "scored.csv")
    told(outcome, "No space left on device", "make room, and type mv ")
    (kept,) = run.glob("hatemtl_*/scored.csv")
    assert str(kept) in outcome.err
    assert len(pd.read_csv(kept)["pred_label"]) == 50
    (disk / "ballast").unlink()
    subprocess.run(shlex.split(outcome.err.rpartition("type ")[2]), check=True)  # what the message says
    assert len(pd.read_csv(disk / "scored.csv")) == 50 and not kept.exists()


@pytest.mark.parametrize("run_is_writable", [True, False])
def test_scores_survive_a_folder_that_is_gone(
    cli: Cli, run: Path, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, run_is_writable: bool
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()

    def gone() -> None:
        folder.rmdir()
        folder.write_text("a file now")
        if not run_is_writable:
            shutil.rmtree(run)

    afterwards(monkeypatch, gone)
    told(predicted(cli, run, folder / "scored.csv"), "cannot be written", "is kept as", "type mv")
    (kept,) = (run if run_is_writable else temporary).glob("hatemtl_*/scored.csv")
    assert len(pd.read_csv(kept)["pred_label"]) == 50


def test_what_can_be_known_is_refused_before_posts_are_scored(
    cli: Cli, run: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("posts are scored")

    monkeypatch.setattr(Predictor, "scores", never)
    (disk / "folder.csv").mkdir()
    told(predicted(cli, run, disk / "folder.csv"), "is no file; give another")
    ballast = fill(disk)
    told(predicted(cli, run, disk / "scored.csv"), "No space left on device; make room there, or type predict.output=FILE")
    ballast.unlink()
    assert as_root("mount", "-o", "remount,ro", str(disk)) == 0
    for name in ("scored.csv", "deep/er/scored.csv"):
        refused = cli(
            "action=predict", f"load_path={run}", f"predict.input={tmp_path}/posts.csv", f"predict.output={disk}/{name}"
        )
        told(refused, f"{disk}/{name}: Read-only file system; make it writable, or type predict.output=FILE")
    exported = ["action=export", f"load_path={run}", "export.format=peft", f"export.path={disk}/new/out"]
    monkeypatch.setattr("hatemtl.using.export.adapter", never)
    told(cli(*exported), f"export.path={disk}/new/out", "cannot be written; give another")


def test_a_test_tells_its_results_and_keeps_them(
    cli: Cli, run: Path, disk: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, disk / "run")
    predictions = judging.predictions
    monkeypatch.setattr(judging, "predictions", lambda *given: (predictions(*given), fill(disk))[0])
    tested = cli("action=test", f"load_path={disk}/run")
    told(tested, "No space left on device", "kept as", "move it to where it shall stand")
    assert "macro_f1" in tested.out
    (kept,) = temporary.glob("hatemtl_*/run")
    assert {path.name for path in kept.iterdir()} == {"results.csv", "predictions.parquet", "run.json"}
    assert len(pd.read_parquet(kept / "predictions.parquet"))
    assert not SavedRun(disk / "run").results.keys() & pd.read_csv(kept / "results.csv")["metric"]


def test_a_test_that_breaks_off_while_it_is_written_is_no_test(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = shutil.copytree(run, tmp_path / "mine")

    def breaks(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", breaks)
        cli("action=test", f"load_path={mine}")
    assert not [name for name in SavedRun(mine).results if name.startswith("test_")]


def test_an_export_that_its_place_cannot_hold_is_kept(run: Path, disk: Path, temporary: Path) -> None:
    def content(folder: Path) -> None:
        (folder / "weights").write_bytes(b"\0" * 3 * 2**20)

    encoder = Encoder(source="x", max_length=32, attention="eager", random=None)
    with pytest.raises(UserError, match=r"export.path=.*out cannot be written \(.*No space left.*is kept as .*type mv"):
        export.write(disk / "out", SavedRun(run), encoder, "some", content, overwrite=False)
    assert not list(disk.iterdir())
    (kept,) = temporary.glob("hatemtl_*/out")
    assert {path.name for path in kept.iterdir()} == {"weights", export.MARKER}


def test_a_test_of_a_run_that_may_not_be_written_is_kept(cli: Cli, run: Path, temporary: Path) -> None:
    forbidden(run, but=0o500)
    with as_anybody():
        outcome = cli("action=test", f"load_path={run}")
    run.chmod(0o700)
    told(outcome, "Permission denied", "is kept as", "give yourself the right to it, and move it")
    (kept,) = temporary.glob("hatemtl_*/run")
    assert (kept / "predictions.parquet").is_file() and not (run / "predictions.parquet").exists()


def test_what_no_place_takes_is_told_as_it_was(tmp_path: Path, temporary: Path) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"), kept_elsewhere(tmp_path / "out", full, tmp_path / "none", tmp_path):
        full(tmp_path)
    with pytest.raises(UserError, match="^wrong$"), kept_elsewhere(tmp_path / "out", full):
        raise UserError("wrong")

    def unread(_: Path) -> None:
        raise UserError("unread") from OSError(errno.EIO, "Input/output error")

    with pytest.raises(UserError, match="^unread$"), kept_elsewhere(tmp_path / "out", unread):
        unread(tmp_path)
    assert list(tmp_path.iterdir()) == [temporary] and not list(temporary.iterdir())
