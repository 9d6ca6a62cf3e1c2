"""A save_path is taken only by the run that it belongs to, and what stands there is whole or as it was."""

import errno
import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from glob import glob
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_runs.test_saved_run import CONFIG, fill, names

from hatemtl.errors import UserError
from hatemtl.saved_runs import claiming
from hatemtl.saved_runs.claiming import TESTED, TRAINED, claim, differences, digest, finish, held, named_after, start
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


def test_the_digest_stays_as_it_is_for_folders_are_named_and_found_by_it() -> None:
    expected = hashlib.sha256(b"rank: saved None, given 4\nseed: saved None, given 1").hexdigest()[:8]
    assert digest({"seed": 1, "rank": 4, "action": "test"}) == digest({"rank": 4, "seed": 1}) == expected


def test_a_save_path_is_named_by_options_of_groups_or_else_by_what_they_name() -> None:
    config = {"tasks": {"label": {}, "target": {}}, "method": {"class": "Full"}, "encoder": {"source": "someone/mini"}}
    assert named_after(config) == f"adapters/label+target-Full-mini-{digest(config)}"
    config["choices"] = {"method": "ah_lora16", "encoder": "minilm"}
    assert named_after(config) == f"adapters/label+target-ah_lora16-minilm-{digest(config)}"


# Claiming a save_path


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_free_path_may_be_taken(overwrite: bool, tmp_path: Path) -> None:
    assert claim(tmp_path / "run", CONFIG, {}, overwrite=overwrite)
    assert names(tmp_path) == set()


def test_a_finished_run(tmp_path: Path) -> None:
    run, sources = tmp_path / "run", {"runs/source": "abc"}
    fill(run, sources=sources)
    assert not claim(run, changed(action="test"), {"sources": sources}, overwrite=False)
    with pytest.raises(UserError, match=r"finished run of another configuration \(seed: saved 0, given 1\).*overwrite=true"):
        claim(run, changed(seed=1), {"sources": sources}, overwrite=False)
    with pytest.raises(UserError, match="trained anew"):
        claim(run, CONFIG, {"sources": {"runs/source": "abd"}}, overwrite=False)
    with pytest.raises(UserError, match="trained anew"):
        claim(run, CONFIG, {"sources": {**sources, "runs/second": "x"}}, overwrite=False)
    with pytest.raises(UserError, match="; and 3 more"):
        claim(run, {**CONFIG, **{f"key{i}": i for i in range(1, 8)}}, {"sources": sources}, overwrite=False)
    with pytest.raises(UserError, match=r"key1: [^;]+; key2: [^;]+; key3: [^;]+; key4: [^;]+; and 1 more\)"):
        claim(run, {**CONFIG, **{f"key{i}": i for i in range(1, 6)}}, {"sources": sources}, overwrite=False)
    assert claim(run, CONFIG, {"sources": sources}, overwrite=True)
    assert claim(run, changed(seed=1), {}, overwrite=True)
    assert SavedRun(run).config == CONFIG  # it stays until the new one is finished


def test_what_is_no_run_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").touch()
    with pytest.raises(UserError, match="no run left it; give another save_path"):
        claim(tmp_path / "thesis", CONFIG, {}, overwrite=True)
    assert names(tmp_path / "thesis") == {"chapter1.txt"}


def test_an_unfinished_run(tmp_path: Path) -> None:
    run, work = tmp_path / "run", unfinished(tmp_path / "run")
    work.mkdir()
    assert claim(run, CONFIG, {}, overwrite=False)  # killed before it wrote anything
    write_record(work, {"status": "unfinished", "sources": {}})
    assert claim(run, changed(seed=1), {}, overwrite=False)  # nor what it was
    write_config(work, CONFIG)
    torch.save({"epoch": 1}, work / "last.ckpt")
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
    assert not claim(run, CONFIG, {"data": {"label": "abc"}}, overwrite=False)
    with pytest.raises(UserError, match="other posts or annotations"):
        claim(run, CONFIG, {"data": {"label": "abd"}}, overwrite=False)


def test_an_unfinished_run_does_not_go_on_from_other_sources(tmp_path: Path) -> None:
    work = unfinished(tmp_path / "run")
    fill(work, sources={"runs/source": "abc"})
    with pytest.raises(UserError, match="trained anew"):
        claim(tmp_path / "run", CONFIG, {"sources": {"runs/source": "abd"}}, overwrite=False)


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


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(5000))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(500.0).numpy().tobytes()) + 900] ^= 1
    path.write_bytes(content)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("breaks", [garbage, truncated, empty, flipped, folder])
def test_a_broken_checkpoint_is_told_and_overwrite_begins_again(breaks: Callable[[Path], None], tmp_path: Path) -> None:
    run, work = tmp_path / "run", start(tmp_path / "run", CONFIG, {})
    torch.save({"weights": torch.arange(500.0)}, work / "last.ckpt")
    assert claim(run, CONFIG, {}, overwrite=False)
    breaks(work / "last.ckpt")
    with pytest.raises(UserError, match=r"run has an unfinished run.*last\.ckpt cannot be read.*overwrite=true"):
        claim(run, CONFIG, {}, overwrite=False)
    assert "last.ckpt" in names(work)
    assert claim(run, CONFIG, {}, overwrite=True)
    assert names(start(run, CONFIG, {})) == {"config.yaml", "run.json"}


# Holding it


def keep_out(path: Path, doing: str = TRAINED) -> str:
    """What a second one is told."""
    with pytest.raises(UserError) as error, held(path, doing):
        pass
    return str(error.value)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run, told, begun = tmp_path / "a" / "run", [], datetime.now().astimezone().replace(microsecond=0)
    with held(run, TRAINED) as place:
        assert place == run
        assert glob(str(run.parent / "*")) == []
        thread = threading.Thread(target=lambda: told.append(keep_out(run)))  # of the same process
        thread.start()
        thread.join()
        (tmp_path / "link").symlink_to(tmp_path / "a")
        told += [keep_out(run), keep_out(run, TESTED), keep_out(tmp_path / "a" / ".." / "a" / "run")]
        told += [keep_out(tmp_path / "link" / "run")]
        with held(tmp_path / "a" / "run2", TRAINED):
            pass
    for text in told:
        assert "run is being trained by" in text
        _, found, since = text.partition(f"process {os.getpid()} on {socket.gethostname()} since ")
        assert found and begun <= datetime.fromisoformat(since[: len(str(begun))]) <= datetime.now().astimezone()
    assert names(tmp_path) == {"link"}  # a folder that was made for it is gone too
    with held(run, TRAINED):
        run.mkdir()
    assert names(tmp_path / "a") == {"run"}


@pytest.mark.slow
def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    code = f"""
import os, time
from pathlib import Path
from hatemtl.saved_runs.claiming import held, TRAINED
with held(Path({str(tmp_path / "run")!r}), TRAINED):
    if not os.fork():  # as the workers that load posts: the child says it, for only then has it let go of the lock's file
        print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert f"process {process.pid} on" in keep_out(tmp_path / "run")
            process.kill()
            process.wait()
            assert names(tmp_path) == {".run.lock"}
            with held(tmp_path / "run", TRAINED):
                assert f"process {os.getpid()} on" in keep_out(tmp_path / "run")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert names(tmp_path) == set()


def test_short_writers_wait_for_each_other_and_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claiming, "PAUSE", 0.001)
    run, rounds = tmp_path / "run", 40
    run.mkdir()
    (run / "count").write_text("0")

    def work() -> None:
        for _ in range(rounds):
            with held(run, TESTED):
                count = int((run / "count").read_text())
                time.sleep(0.0005)
                (run / "count").write_text(str(count + 1))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert int((run / "count").read_text()) == 5 * rounds
    assert names(tmp_path) == {"run"}


def test_a_writer_that_hangs_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claiming, "PATIENCE", 0.05)
    with held(tmp_path / "run", TESTED):
        assert f"run is being tested by process {os.getpid()}" in keep_out(tmp_path / "run")
        signed = {"doing": TRAINED, "pid": 1, "host": "here", "since": "now"}
        half = [json.dumps({key: signed[key] for key in signed if key != without}) for without in signed]
        for unsigned in ("", "[]", *half):
            (tmp_path / ".run.lock").write_text(unsigned)
            assert "run is being written by another process" in keep_out(tmp_path / "run")


def dangling(path: Path) -> Path:
    (path / "link").symlink_to(path / "nowhere")
    return path / "link"


def looping(path: Path) -> Path:
    (path / "link").symlink_to(path / "back")
    (path / "back").symlink_to(path / "link")
    return path / "link"


def in_a_loop(path: Path) -> Path:
    return looping(path) / "run"


def a_file(path: Path) -> Path:
    (path / "file").touch()
    return path / "file"


def in_a_file(path: Path) -> Path:
    return a_file(path) / "runs" / "run"


def too_long(path: Path) -> Path:
    return path / "new" / ("a" * 245)  # a run at work has a longer name


def not_writable(path: Path) -> Path:
    return Path("/proc/hatemtl/run")


@pytest.mark.parametrize("bad", [dangling, looping, in_a_loop, a_file, in_a_file, too_long, not_writable])
@pytest.mark.parametrize("doing", [TRAINED, TESTED])
def test_where_no_run_could_land(bad: Callable[[Path], Path], doing: str, tmp_path: Path) -> None:
    path = bad(tmp_path)
    before = names(tmp_path)
    text = keep_out(path, doing)
    assert str(path) in text
    assert "give another save_path" in text
    assert names(tmp_path) == before


def test_a_link_to_a_folder_is_that_folder(tmp_path: Path) -> None:
    run = fill(tmp_path / "disk" / "run")
    (tmp_path / "link").symlink_to(run)
    with held(tmp_path / "link", TRAINED) as place:
        assert place == run.resolve()
        assert "trained" in keep_out(run)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    text = keep_out(tmp_path / "a" / "run")
    assert "locks no files" in text
    assert os.strerror(number) in text


def test_what_killed_runs_left_goes(tmp_path: Path) -> None:
    run, work, old = fill(tmp_path / "run"), fill(unfinished(tmp_path / "run")), fill(tmp_path / ".run.replaced")
    whole = names(run)
    (work / "adapter").mkdir()
    for left in (run / ".results.csv.4", work / ".last.ckpt.7", work / "adapter" / ".settings.json.9"):
        left.touch()
    (run / ".mine.csv").touch()
    other = tmp_path / "thesis"
    other.mkdir()
    (other / ".chapter.2024").touch()
    for path in (run, other):
        with held(path, TRAINED):
            pass
    assert not old.exists()
    assert names(run) == whole | {".mine.csv"}
    assert names(work) == whole | {"adapter"}
    assert names(work / "adapter") == set()
    assert names(other) == {".chapter.2024"}


def test_a_run_whose_replacement_was_cut_short_is_put_back(tmp_path: Path) -> None:
    fill(tmp_path / ".run.replaced", changed(seed=4))
    with held(tmp_path / "run", TRAINED):
        assert SavedRun(tmp_path / "run").config["seed"] == 4
    assert names(tmp_path) == {"run"}


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
