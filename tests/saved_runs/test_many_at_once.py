"""A thousand runs of one sweep, tested at once by several processes while another reads: no row is lost."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import ranking
import tested_runs

from hatemtl.evaluations.base import Row
from hatemtl.saved_runs.saved_run import SavedRun, read_record, write_record, write_results

RUNS, PROCESSES = 1000, 8


def told(number: int) -> dict[str, float]:
    """The figures of a test of this run, as many as a task of eleven labels has."""
    return {f"figure_{i}": number + i / 64 for i in range(60)}


def leave(folder: Path, number: int) -> int:
    """Does what a test does with a run's files: results go beside what training left, and run.json is replaced."""
    run = folder / f"seed={number}"
    rows = [Row("test", "label", name, None, value) for name, value in told(number).items()]
    write_results(run, rows)
    write_record(run, {**read_record(run), "tested_precision": "32"})
    return os.getpid()


@pytest.mark.slow
def test_a_thousand_tests_at_once_lose_no_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gold, scores = tested_runs.classes(3, 1.0, np.random.default_rng(0))
    for number in range(RUNS):
        config = {"method": {"rank": number % 10}}
        own = {"val_label_macro_f1": number / RUNS}
        tested_runs.save(tmp_path / f"seed={number}", gold, scores, seed=number, rows=own, config=config)
    reads = 0
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("fork")) as pool:
        work = [pool.submit(leave, tmp_path, number) for number in range(RUNS)]
        while not all(one.done() for one in work):
            for number in range(0, RUNS, 97):  # what is read meanwhile is the old or the new, whole
                found = SavedRun(tmp_path / f"seed={number}").results
                assert {*found} - {"val_label_macro_f1"} in (set(), {f"test_label_{name}" for name in told(number)})
                reads += 1
        assert len({one.result() for one in work}) > 1
    assert reads
    for number in range(RUNS):
        wanted = {"val_label_macro_f1": number / RUNS, **{f"test_label_{k}": v for k, v in told(number).items()}}
        assert SavedRun(tmp_path / f"seed={number}").results == wanted
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".") or path.name.endswith(".tmp")]
    assert ranking.main([f"{tmp_path}/*", "--by", "test_label_figure_0", "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(",100" in line for line in lines) == 10, lines[:5]  # each rank with all its seeds
