import runpy
import sys
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, Outcome

from hatemtl.batches.sampling import Use, apart, in_parts

BATCHES = [np.arange(8 * i, 8 * i + 8) for i in range(20)]
HAS = {
    "all": np.ones(160, dtype=bool),
    "even": np.arange(160) % 2 == 0,
    "early": np.arange(160) < 44,  # half of the sixth batch
    "none": np.zeros(160, dtype=bool),
}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_batch_is_used_once_for_each_task_with_the_posts_that_it_annotates(accumulate: int) -> None:
    uses = apart(BATCHES, HAS, accumulate, np.random.default_rng(0))
    assert Counter(task for _, task in uses) == {"all": 20, "even": 20, "early": 6}
    for task, has in HAS.items():
        rows = [rows.tolist() for rows, only in uses if only == task]
        assert sorted(rows) == [mine for batch in BATCHES if (mine := batch[has[batch]].tolist())]


def test_tasks_take_turns_at_random() -> None:
    orders = []
    for seed in range(200):
        order = [task for _, task in apart(BATCHES, HAS, 1, np.random.default_rng(seed))]
        orders.append([task == "even" for task in order])
    assert np.mean(orders, axis=0) == pytest.approx(np.full(46, 20 / 46), abs=0.15)
    assert len({str(order) for order in orders}) == 200


def test_accumulated_batches_are_of_one_task_but_for_the_rests_at_the_end() -> None:
    tasks = [task for _, task in apart(BATCHES, HAS, 3, np.random.default_rng(0))]
    steps = [set(tasks[i : i + 3]) for i in range(0, len(tasks), 3)]
    assert all(len(step) == 1 for step in steps[: 6 + 6 + 2])
    assert [task for task, _ in groupby(tasks[42:])] == ["all", "even"]


@pytest.mark.slow
def test_one_command_compares_the_ways_to_step_and_to_mix(
    cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four runs, each with a save_path of its own, and their table."""
    monkeypatch.chdir(tmp_path)
    corpora = [
        *("tasks=[label,target]", "corpus@tasks.label.corpus=sample", "corpus@tasks.target.corpus=sample"),
        *("tasks.label.corpus.size=300", "tasks.target.corpus.size=100", "tasks.target.corpus.seed=1"),
    ]
    ways = ["sampling.step=joint,per_task", "sampling.batch=mixed,alternating"]
    done = cli("-m", *ways, *corpora, "encoder=tiny", "optimization.epochs=1", "action=[train,test]")
    assert done.code == 0, done.err
    runs = [path for path in (tmp_path / "adapters").iterdir() if (path / "results.csv").exists()]
    settings = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs]
    found = {(config["sampling"]["step"], config["sampling"]["batch"]) for config in settings}
    assert found == {(step, batch) for step in ("joint", "per_task") for batch in ("mixed", "alternating")}
    monkeypatch.setattr(sys, "argv", ["table.py", "adapters/label+target-*", "--metric", "*macro_f1"])
    monkeypatch.syspath_prepend(str(ROOT / "analysis"))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "analysis" / "table.py"), run_name="__main__")
    assert not ended.value.code


@pytest.mark.parametrize("accumulate", [2, 3, 7])
def test_the_parts_of_a_step_are_shares_of_its_annotated_posts(accumulate: int) -> None:
    uses = [Use(rows) for rows in BATCHES]
    parted = [*in_parts(uses, HAS, accumulate)]
    assert [use.rows.tolist() for use in parted] == [use.rows.tolist() for use in uses]
    for i in range(0, len(parted), accumulate):
        step = parted[i : i + accumulate]  # the last may be short
        for task, has in HAS.items():
            counts = np.array([has[use.rows].sum() for use in step])
            found = [use.parts[task] for use in step if use.parts is not None]
            assert found == pytest.approx(counts / max(counts.sum(), 1))


def test_the_parts_of_steps_apart_are_of_the_one_task() -> None:
    uses = [Use(*use) for use in apart(BATCHES, HAS, 2, np.random.default_rng(0))]
    for use in in_parts(uses, HAS, 2):
        assert use.parts is not None
        assert {task for task, part in use.parts.items() if part} <= {use.only}
