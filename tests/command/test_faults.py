"""A full or read-only disk and a lack of memory end a command with what to type, and nothing that was trained is lost."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Outcome
from safetensors import SafetensorError

import hatemtl
from hatemtl.command.faults import mendable
from hatemtl.network.module import MultitaskModule
from hatemtl.saved_runs.saved_run import SavedRun, unfinished
from hatemtl.saved_runs.writing import write

Cli = Callable[..., Outcome]
RUN = ["encoder=tiny", "tasks=[label]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=300"]
RUN += ["optimization.epochs=2"]
CONFIG: dict[str, Any] = {
    "action": "train",
    "save_path": "runs/a",
    "load_path": "loads/b",
    "data": {"dir": "data", "cache": "/cache"},
    "predict": {"input": "posts/in.csv", "output": None},
    "export": {"path": "exports/c"},
    "batching": {"batch_size": 32, "eval_batch_size": 128},
    "encoder": {"max_length": 128},
}
TOKENS = {"batch_tokens": 1024, "batch_size": 64, "eval_batch_tokens": 4096, "eval_batch_size": 256}


def as_root(*words: str) -> int:
    """Runs a command as root, by sudo where that asks for no password, as on GitHub's runners; its exit code."""
    sudo = ["sudo", "-n"] if os.geteuid() and shutil.which("sudo") else []
    return subprocess.run([*sudo, *words], capture_output=True).returncode


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of two MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if as_root("mount", "-t", "tmpfs", "-o", "size=2m,mode=777", "small", str(disk)):
        pytest.skip("nobody may mount here")
    yield disk
    assert as_root("umount", str(disk)) == 0


def fill(disk: Path) -> Path:
    """Leaves no room on a disk; the file that takes it all."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            pass
    return ballast


def told(outcome: Outcome, *said: str) -> None:
    assert outcome.code == 2, outcome.out + outcome.err
    assert outcome.err.startswith("error: ")
    assert "Traceback" not in outcome.err
    for words in said:
        assert words in outcome.err, outcome.err


# The errors themselves


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "x"), "runs/a: No space left on device; make room there, or type save_path=FOLDER"),
        (OSError(errno.EDQUOT, "x", "runs/.a.unfinished/last.ckpt"), "make room in your quota, or type save_path=FOLDER"),
        (OSError(errno.EROFS, "x", "runs"), "runs: Read-only file system; make it writable, or type save_path=FOLDER"),
        (OSError(errno.EFBIG, "x", "/cache/a"), r"allow larger files \(ulimit -f\), or type data.cache=null"),
        (
            PermissionError(errno.EACCES, "x", "loads/b/config.yaml"),
            "give yourself the right to it, or type load_path=FOLDER",
        ),
        (FileNotFoundError(errno.ENOENT, "x", "data/a.csv"), "data/a.csv: No such file or directory; type data.dir=FOLDER"),
        (PermissionError(errno.EACCES, "x", "posts/in.scored.csv"), "or type predict.output=FILE"),
        (PermissionError(errno.EPERM, "x", "exports/.c.77/a"), "or type export.path=FOLDER"),
        (PermissionError(errno.EACCES, "x", b"/elsewhere"), "/elsewhere: .*, or see that it can be read and written"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "runs/a: No space left on device"),
        (RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534"), "runs/a: cannot be written"),
    ],
    ids=str,
)
def test_what_a_disk_refuses_names_the_file_the_reason_and_the_key(error: Exception, said: str) -> None:
    with pytest.raises(Exception, match=said):
        raise mendable(error, CONFIG) or AssertionError


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("train", "runs/a: .*save_path=FOLDER"),
        (["train", "test"], "runs/a: .*save_path=FOLDER"),
        ("test", "loads/b: .*save_path=FOLDER"),
        ("predict", "posts/in.csv: .*predict.output=FILE"),
        ("export", "exports/c: .*export.path=FOLDER"),
    ],
)
def test_a_file_without_a_name_is_what_the_command_writes(action: Any, said: str) -> None:
    config = {**CONFIG, "action": action, "save_path": None if action == "test" else "runs/a"}
    with pytest.raises(Exception, match=said):
        raise mendable(OSError(errno.ENOSPC, "No space"), config) or AssertionError


@pytest.mark.parametrize(
    "bug",
    [
        OSError("no number, no name"),
        OSError(errno.ENOENT, "no name"),
        FileNotFoundError(errno.ENOENT, "x", str(Path(hatemtl.__file__).with_name("gone.json"))),
        FileNotFoundError(errno.ENOENT, "x", str(ROOT / "conf" / "gone.yaml")),
        FileNotFoundError(errno.ENOENT, "x", torch.__file__),
        RuntimeError("shapes cannot be multiplied"),
        SafetensorError("header too large"),
        KeyError("x"),
    ],
    ids=str,
)
def test_a_bug_is_none_of_these(bug: Exception) -> None:
    assert mendable(bug, CONFIG) is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has ..."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_a_lack_of_memory_says_what_takes_it_and_what_takes_less(error: Exception) -> None:
    ways = str(mendable(error, CONFIG))
    assert "with batching.batch_size=32, batching.eval_batch_size=128, encoder.max_length=128; type" in ways
    assert "batching=tokens, or batching.batch_size=16 batching.eval_batch_size=64, or encoder.max_length=64;" in ways
    by_tokens = str(mendable(error, {**CONFIG, "batching": TOKENS}))
    assert "with batching.batch_tokens=1024, batching.eval_batch_tokens=4096, encoder.max_length=128; type" in by_tokens
    assert "type batching.batch_tokens=512 batching.eval_batch_tokens=2048, or encoder.max_length=64;" in by_tokens
    using = str(mendable(error, {**CONFIG, "action": "predict"}))
    assert "type batching=tokens, or batching.eval_batch_size=64;" in using  # the length is the saved run's


# Writing


def test_a_write_that_fails_names_the_file_it_was_for(tmp_path: Path) -> None:
    path = tmp_path / "run" / "results.csv"

    def full(_: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def unnamed(_: Path) -> None:
        raise OSError(errno.EDQUOT, "x")

    for content, number in ((full, errno.ENOSPC), (unnamed, errno.EDQUOT)):
        with pytest.raises(OSError) as error:
            write(path, content)
        assert (error.value.errno, error.value.filename) == (number, str(path))
        assert not list(path.parent.iterdir())


@pytest.mark.parametrize("mask", [0o022, 0o077, pytest.param(0o002, marks=pytest.mark.slow)])
def test_files_have_the_mode_that_the_umask_gives(cli: Cli, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        assert cli(*RUN, "optimization.epochs=1", f"save_path={tmp_path}/run").code == 0
        exported = ["action=export", f"load_path={tmp_path}/run", "export.format=merged", f"export.path={tmp_path}/out"]
        assert mask != 0o022 or cli(*RUN, *exported).code == 0
        assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {0o666 & ~mask}
    finally:
        os.umask(before)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "peft_lora16", "mtl_lora", "ah_mam"])
def test_what_libraries_write_has_that_mode_too(cli: Cli, tmp_path: Path, method: str) -> None:
    before = os.umask(0o022)
    try:
        assert cli(*RUN, f"method={method}", "optimization.epochs=1", f"save_path={tmp_path}/run").code == 0
        assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {0o644}
    finally:
        os.umask(before)


# Whole commands


def test_a_disk_that_is_full_when_the_run_ends_costs_no_training(
    cli: Cli, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, filled = small / "run", []
    check = hatemtl.training.callbacks.check_finite

    def then_full(*given: Any) -> None:
        check(*given)
        filled.append(fill(small))

    with monkeypatch.context() as patch:
        patch.setattr("hatemtl.training.train.check_finite", then_full)
        outcome = cli(*RUN, "action=[train,test]", f"save_path={run}")
    told(outcome, "No space left on device; make room there, or type save_path=FOLDER")
    told(outcome, "epoch 2 of 2 is kept, and the same command goes on from there")
    assert not run.exists()
    filled[0].unlink()
    again = cli(*RUN, "action=[train,test]", f"save_path={run}")
    assert again.code == 0, again.err
    assert "goes on" in again.out
    assert "epoch 1/2" not in again.out
    assert SavedRun(run).results


def test_a_disk_that_is_full_in_the_test_keeps_the_trained_run(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run))

    with monkeypatch.context() as patch:
        patch.setattr("hatemtl.using.judging.predictions", full)
        outcome = cli(*RUN, "action=[train,test]", f"save_path={run}")
    told(outcome, "No space left on device", f"; the trained run is kept: save_path={run}")
    again = cli(*RUN, "action=[train,test]", f"save_path={run}")
    assert "not trained again" in again.out
    assert any(name.startswith("test_") for name in SavedRun(run).results)


def test_a_disk_that_is_full_in_training_keeps_the_epochs_before(
    cli: Cli, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = MultitaskModule.on_train_epoch_start

    def then_full(self: MultitaskModule) -> None:
        start(self)
        if self.current_epoch == 1:
            fill(small)

    with monkeypatch.context() as patch:
        patch.setattr(MultitaskModule, "on_train_epoch_start", then_full)
        outcome = cli(*RUN, f"save_path={small}/run")
    told(outcome, "No space left on device", "epoch 1 of 2 is kept")
    (small / "ballast").unlink()
    assert "epoch 1/2" not in cli(*RUN, f"save_path={small}/run").out
    assert (small / "run").exists()


def test_testing_prediction_and_export_tell_of_a_full_disk(cli: Cli, small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli(*RUN, f"save_path={run}").code == 0
    posts = tmp_path / "posts.csv"
    posts.write_text("text\n" + "one of many mild posts\n" * 50)
    load = ["method=ah_load", "heads.load=true", f"load_path={run}"]
    fill(small)
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    told(cli(*RUN, *load, "action=test", f"save_path={small}/scores"), "No space left on device", "save_path=FOLDER")
    output = f"predict.output={small}/scored.csv"
    told(cli(*RUN, *load, "action=predict", f"predict.input={posts}", output), "No space left", "predict.output=FILE")
    for form in ("peft", "merged"):
        export = ["action=export", f"load_path={run}", f"export.format={form}", f"export.path={small}/out"]
        told(cli(*RUN, *export), "No space left on device", "export.path")
    assert {path.name for path in small.iterdir()} <= {"ballast", "scores"}
    assert kept == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_folder_that_is_read_only(cli: Cli, small: Path, tmp_path: Path) -> None:
    assert as_root("mount", "-o", "remount,ro", str(small)) == 0
    told(
        cli(*RUN, f"save_path={small}/deep/run"), f"{small}/deep: Read-only file system; make it writable, or type save_path"
    )
    cached = cli(*RUN, f"save_path={tmp_path}/run", f"data.cache={small}/cache")  # no cache is no error
    assert cached.code == 0, cached.err


def test_a_cache_on_a_disk_that_is_full_is_none(cli: Cli, small: Path, tmp_path: Path) -> None:
    (small / "cache").mkdir()
    fill(small)
    assert cli(*RUN, "optimization.epochs=1", f"save_path={tmp_path}/run", f"data.cache={small}/cache").code == 0
    assert not [*(small / "cache").iterdir()]


def test_a_run_that_cannot_take_its_place_is_not_trained_again(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def refused(source: Path, target: Path) -> None:
        if Path(source) == unfinished(tmp_path / "run"):
            raise PermissionError(errno.EACCES, "Permission denied", str(source), None, str(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refused)
        told(cli(*RUN, f"save_path={tmp_path}/run"), "Permission denied", "epoch 2 of 2 is kept")
    assert "epoch 1/2" not in cli(*RUN, f"save_path={tmp_path}/run").out
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"results.csv"}
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_a_folder_that_is_another_users(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def refused(self: Path, *given: Any, **how: Any) -> None:
        if self.name == unfinished(tmp_path / "run").name:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        make(self, *given, **how)

    monkeypatch.setattr(Path, "mkdir", refused)
    told(
        cli(*RUN, f"save_path={tmp_path}/run"), "Permission denied; give yourself the right to it, or type save_path=FOLDER"
    )


def test_a_limit_of_a_files_size(cli: Cli, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, before[1]))
    try:
        outcome = cli(*RUN, f"save_path={tmp_path}/run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told(outcome, "File too large; allow larger files (ulimit -f), or type save_path=FOLDER")


def test_a_bug_is_seen_with_its_stack(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        (Path(hatemtl.__file__).parent / "gone.json").read_text()

    monkeypatch.setattr("hatemtl.training.train.check_finite", gone)
    with pytest.raises(FileNotFoundError):
        cli(*RUN, f"save_path={tmp_path}/run")


def test_a_lack_of_memory_in_training_keeps_the_epochs_before(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = MultitaskModule.training_step

    def no_room(self: MultitaskModule, *given: Any) -> Any:
        if self.current_epoch == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of")
        return step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(MultitaskModule, "training_step", no_room)
        outcome = cli(*RUN, f"save_path={tmp_path}/run")
    told(outcome, "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB)", "batching.batch_size=16", "epoch 1 of 2")
    assert "other settings need overwrite=true" in outcome.err
    assert "epoch 1/2" not in cli(*RUN, f"save_path={tmp_path}/run").out


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's own count")
def test_a_limit_of_the_address_space(tmp_path: Path) -> None:
    limited = (
        "import resource, runpy, sys\n"
        "import hatemtl.run, adapters\n"  # which take some three GiB of it
        "limit = (int(open('/proc/self/statm').read().split()[0]) << 12) + (3 << 28)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path('main.py', run_name='__main__')\n"
    )
    wide = ["encoder.random.hidden_size=512", "encoder.random.num_attention_heads=8", "batching.batch_size=2000"]
    wide.append("tasks.label.corpus.size=1000")
    command = [
        sys.executable,
        "-c",
        limited,
        "main.py",
        *RUN[:3],
        *wide,
        "method=full",
        "optimization.epochs=1",
        f"save_path={tmp_path}/run",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert "begins again, each batch in 2 micro-batches" in ended.stdout, ended.stderr
    if ended.returncode:  # what the first try has left in pieces may be too small for one post
        told(Outcome(ended.returncode, ended.stdout, ended.stderr), "out of memory (", "batching.batch_size=1000")


def test_a_lack_of_memory_before_anything_began(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("hatemtl.run.run", no_room)
    told(cli(*RUN), "out of memory", "close other programs")
