"""Each file of a run that a script reads, broken in each way: one message, exit 2, and nothing written."""

import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from broken import BREAKS, as_anybody, contents, helps
from tested_runs import system
from tiers import tier

# Seven anchors of nine aliases each: five million values, were they walked through.
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 8)
)
ABSENT = ("absent", "a folder", "a loop", "dangling")
# What each script is called with, the files that it reads, and the ways of being broken in which it does without.
SCRIPTS: dict[str, tuple[list[str], dict[str, tuple[str, ...]]]] = {
    "table": (["a_*", "b_*", "--settings"], {"results.csv": ("cut",), "config.yaml": (*ABSENT, "cut")}),
    "ranking": (
        ["a_*", "--by", "test_label_ece"],
        {"results.csv": ("cut",), "config.yaml": (*ABSENT, "cut"), "run.json": ABSENT},
    ),
    "compare": (
        ["a_*", "b_*", "--metric", "test_label_accuracy"],
        {"results.csv": ("cut",), "predictions.parquet": (), "config.yaml": (), "run.json": (), "labels.json": ABSENT},
    ),
    "report": (
        ["a_*", "b_*", "--output", "report.html"],
        {"results.csv": ("cut",), "predictions.parquet": (), "config.yaml": (), "run.json": (), "labels.json": ()},
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("whole")
    system(at, "a", (0.8, 0.7), posts=60)
    system(at, "b", (0.6, 0.75), posts=60)
    return at


def cases() -> Iterator[Any]:
    for script, (words, files) in SCRIPTS.items():
        for file, well in files.items():
            for way in [*BREAKS, *(["a bomb"] if file.endswith(".yaml") else [])]:
                if way not in well and not (way == "utf-16" and file.endswith(".parquet")):
                    name = f"{script} {file} {way}"
                    yield pytest.param(script, words, file, way, id=name, marks=tier(name, fast=10))


@pytest.mark.parametrize(("script", "words", "file", "way"), [*cases()])
def test_a_broken_file(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    words: list[str],
    file: str,
    way: str,
) -> None:
    shutil.copytree(whole, at := tmp_path / "at")
    broken = at / "a_0" / file
    BREAKS[way](broken) if way in BREAKS else broken.write_text(BOMB)
    before = contents(at)
    monkeypatch.chdir(at)
    main = import_module(script).main
    with as_anybody():
        assert main(words) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"{script}.py: ")
    assert "a_0" in said and helps(way, said)
    assert contents(at) == before
