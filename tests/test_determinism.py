"""The same command leaves the same bytes: whatever makes the batches, keeps the tokens, breaks off or starts it."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ADAPTER, ROOT, Outcome, main
from test_run import broken_off

Cli = Callable[..., Outcome]
TASKS = ("label", "target")
TYPED = [
    *("action=[train,test]", f"tasks=[{','.join(TASKS)}]", "encoder=tiny", "optimization.epochs=2", "seed=4"),
    *(f"corpus@tasks.{task}.corpus=sample" for task in TASKS),
    *(f"tasks.{task}.corpus.size=160" for task in TASKS),
    *("tasks.label.head.dropout=0.2", "method.dropout=0.1", "weighting=uncertainty", "trainer.accelerator=cpu"),
]
KEPT = ("results.csv", "predictions.parquet", "heads.safetensors", ADAPTER, "labels.json")


def kept(run: Path, files: Sequence[str] = KEPT) -> dict[str, bytes]:
    """The bytes of each file; of the adapter's those of its numbers, since its names hold the folder's."""
    found = {name: (run / name).read_bytes() for name in files}
    if adapter := found.get(ADAPTER):
        found[ADAPTER] = adapter[8 + int.from_bytes(adapter[:8], "little") :]
    return found


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    run = tmp_path_factory.mktemp("first") / "run"
    assert main(*TYPED, f"save_path={run}") == 0
    return kept(run)


def test_again_and_in_another_place(first: dict[str, bytes], tmp_path: Path) -> None:
    assert main(*TYPED, f"save_path={tmp_path / 'elsewhere' / 'other name'}") == 0
    assert kept(tmp_path / "elsewhere" / "other name") == first
    assert main(*TYPED, "seed=5", f"save_path={tmp_path / 'run'}") == 0
    other = kept(tmp_path / "run")
    assert all(other[name] != first[name] for name in KEPT if name != "labels.json")


@pytest.mark.slow
@pytest.mark.parametrize("words", [["data.workers=2"], ["data.cache=null"], ["data.cache=CACHE"], ["trainer.memory=lean"]])
def test_whoever_makes_and_keeps_the_batches(first: dict[str, bytes], tmp_path: Path, words: list[str]) -> None:
    given = [word.replace("CACHE", str(tmp_path / "cache")) for word in words]
    for name in ("cold", "warm"):
        assert main(*TYPED, *given, f"save_path={tmp_path / name}") == 0
        assert kept(tmp_path / name) == first


@pytest.mark.slow
def test_tested_apart_from_training(first: dict[str, bytes], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(*TYPED, "action=train", f"save_path={run}") == 0
    assert main("action=test", f"load_path={run}") == 0
    assert kept(run) == first
    assert main("action=test", f"load_path={run}") == 0
    assert kept(run) == first


@pytest.mark.slow
def test_broken_off_and_gone_on_with(first: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with broken_off(monkeypatch, epoch=1):
        main(*TYPED, f"save_path={tmp_path / 'run'}")
    assert main(*TYPED, "data.workers=1", f"save_path={tmp_path / 'run'}") == 0
    assert kept(tmp_path / "run") == first


@pytest.mark.slow
def test_two_processes_at_one_cache(first: dict[str, bytes], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "main.py"), *TYPED, f"data.cache={tmp_path}/cache"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen([*command, f"save_path={tmp_path}/{name}"], env=environment, cwd=ROOT) for name in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    assert kept(tmp_path / "a") == kept(tmp_path / "b") == first
    assert not [*(tmp_path / "cache").glob(".*")]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["alone", "serial", "local"])
def test_in_a_process_of_its_own_and_by_every_launcher(first: dict[str, bytes], tmp_path: Path, launcher: str) -> None:
    """With another order of sets and dicts of names, as each new process has."""
    environment: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    several = [] if launcher == "alone" else ["-m", f"launcher={launcher}", "seed=4,5"]
    typed = [word for word in TYPED if not several or word != "seed=4"]
    command = [sys.executable, str(ROOT / "main.py"), *several, *typed, f"save_path={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert kept(tmp_path / "run" / "seed=4" if several else tmp_path / "run") == first
