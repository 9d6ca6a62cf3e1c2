"""The check for machines with a GPU is whole: a part that fails ends no other, and a folder that is there is spared."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from benchmarks.gpu_check import apart, took, verdict

# A python that sees one GPU and does nothing: it writes down what it was told, and fails where it is to train on a GPU.
STUB = """#!/usr/bin/env bash
echo "$@" >>"$0.told"
case "$*" in
*gpus) echo 1 ;;
*save_path=*/cpu) ;;
*main.py*) exit 1 ;;
esac
"""
PARTS = [
    "the same on both",
    "own layers, ELECTRA-small",
    "own layers, ELECTRA-small, bf16",
    "own layers, DeBERTa-v3",
    "own layers, DeBERTa-v3, bf16",
    "killed",
    "a process group of one",
    "side by side",
    "two processes, ddp",
    "two processes, fsdp",
    "a run by the command",
    "beside others",
]


def check(out: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    given = {**os.environ, "OMP_NUM_THREADS": "1", "OUT": str(out), "PYTHON": sys.executable, "SIZE": "200", **environment}
    command = [str(ROOT / "benchmarks" / "gpu_check.sh"), *words]
    return subprocess.run(command, env=given, capture_output=True, text=True)


def parts(done: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    """How each part ended, by its name."""
    lines = [line.removeprefix("- ").split(": ", 1) for line in done.stdout.splitlines() if line.startswith("- ")]
    return {name: how.split()[0] for name, how in lines if how.endswith("gone") or "not tried" in how}


@pytest.mark.trust  # of a script that few changes reach, for it takes some ten minutes
def test_all_is_checked(tmp_path: Path) -> None:
    done = check(tmp_path / "out", "--dry")
    assert done.returncode == 0, done.stdout + done.stderr
    assert parts(done) == dict.fromkeys(PARTS, "done")
    assert [line.partition(": scores")[0] for line in done.stdout.splitlines() if "differ" in line] == [
        "one saved run tested on both, float32",
        "one saved run tested on both, bf16 against float32",
        "trained on each, float32",
        *(
            f"{encoder}, own layers against the library's, {precision}"
            for encoder in ("electra_small", "deberta_v3_base")
            for precision in ("32", "bf16")
        ),
        "killed and gone on with",
        "a process group of one",
        "two runs side by side",
        "two processes, ddp",
        "two processes, fsdp",
    ]
    assert "WRONG" not in done.stdout and "posts/s" in done.stdout and "| MiB at most" in done.stdout


def test_one_gpu_is_enough_and_a_part_that_fails_ends_no_other(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    done = check(tmp_path / "out", PYTHON=str(stub))
    assert done.returncode == 1
    assert parts(done) == {
        **{name: "FAILED" for name in PARTS if not name.startswith("two")},
        "two processes": "not",
    }
    told = [line for line in Path(f"{stub}.told").read_text().splitlines() if "main.py" in line or "throughput" in line]
    assert "trainer.accelerator=cpu" in told[0]
    assert all("trainer.accelerator=gpu" in line or "--device cuda" in line for line in told[1:])
    assert not any("trainer.devices=2" in line for line in told)


def test_no_part_begins_when_the_time_is_over(tmp_path: Path) -> None:
    done = check(tmp_path / "out", "--dry", LIMIT="0")
    assert done.returncode == 1 and parts(done) == dict.fromkeys(PARTS, "FAILED")


@pytest.mark.parametrize(("words", "gpus", "said"), [((), "0", "sees no GPU"), (("--try",), "1", "--try: expected --dry")])
def test_what_it_cannot_do_is_said(tmp_path: Path, words: tuple[str, ...], gpus: str, said: str) -> None:
    done = check(tmp_path / "out", *words, PYTHON=f"echo {gpus}")
    assert done.returncode == 2 and said in done.stderr and not [*tmp_path.iterdir()]


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    done = check(tmp_path, "--dry")
    assert done.returncode == 2 and "is there already" in done.stderr and not [*tmp_path.iterdir()]


def test_scores_are_compared_post_by_post(tmp_path: Path) -> None:
    def saved(name: str, posts: list[str], scores: list[list[float]]) -> Path:
        (tmp_path / name).mkdir()
        frame = pd.DataFrame({"post_id": posts, "task": "label", "scores": [np.array(row, np.float32) for row in scores]})
        frame.to_parquet(tmp_path / name / "predictions.parquet")
        return tmp_path / name

    run = saved("run", ["a", "b"], [[0.5, 0.5], [0.25, 0.75]])
    assert apart(run, saved("other", ["b", "a"], [[0.25, 0.75], [0.5, 0.625]])) == 0.125
    assert np.isnan(apart(run, saved("posts", ["a", "c"], [[0.5, 0.5], [0.25, 0.75]])))
    assert np.isnan(apart(run, saved("numbers", ["a", "b"], [[0.5, 0.5], [0.25, float("nan")]])))


@pytest.mark.parametrize(
    ("off", "other_code", "well", "said"),
    [
        (1e-5, False, True, ": well"),
        (0.0, False, True, ": well"),
        (1e-3, False, False, "differ by 1.0e-03 at most, 1e-04 allowed: WRONG"),
        (float("nan"), False, False, "WRONG: other posts, or no numbers"),
        (0.0, True, False, "WRONG: one code computed both"),
        (1e-5, True, True, ": well"),
    ],
)
def test_a_difference_is_judged(off: float, other_code: bool, well: bool, said: str) -> None:
    text, found = verdict("two", off, 1e-4, other_code=other_code)
    assert found is well and text.endswith(said)


def test_what_a_run_took_is_told() -> None:
    record = {"examples_per_second": 10.4, "tokens_per_second": 99.6, "precision": "bf16", "machine": "M"}
    told = took({**record, "ledger": {"peak_memory_bytes": 3 * 2**20}})
    assert told == "10 posts/s, 100 tokens/s, 3 MiB at most, bf16, M"
