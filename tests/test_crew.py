"""Several processes that train one run make of it what one process makes."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import main
from safetensors.torch import load_file

from hatemtl.errors import UserError
from hatemtl.machine.crew import ALONE, Crew, check
from hatemtl.saved_runs.saved_run import SavedRun, unfinished

MAIN = Path(__file__).parents[1] / "main.py"
TASKS = ("label", "target", "rationale")
# corpora of different posts, so that most lack an annotation; no dropout, whose places every process draws for itself
POSTS = [
    *("tasks=[label,target,rationale]", "encoder=tiny", "trainer.accelerator=cpu", "trainer.precision=32"),
    *(f"corpus@tasks.{task}.corpus=sample" for task in TASKS),
    *("tasks.label.corpus.size=150", "tasks.target.corpus.size=200", "tasks.rationale.corpus.size=150"),
    *(f"tasks.{task}.head.dropout=0" for task in TASKS),
    *("optimization.epochs=2", "optimization.encoder_lr=1e-4", "optimization.head_lr=1e-3"),
]


def begun(folder: Path, *words: str, devices: int = 1) -> "subprocess.Popen[str]":
    command = [sys.executable, str(MAIN), *POSTS, f"save_path={folder}", f"trainer.devices={devices}", *words]
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")} | {
        "OMP_NUM_THREADS": "1"
    }
    return subprocess.Popen(command, env=env, cwd=MAIN.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ran(folder: Path, *words: str, devices: int = 1) -> None:
    if devices == 1:
        assert main(*POSTS, f"save_path={folder}", "trainer.devices=1", *words) == 0
        return
    process = begun(folder, *words, devices=devices)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, (out, err)


def scores(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    table = pd.read_parquet(folder / "predictions.parquet")
    of = {(str(row.post_id), str(row.task)): np.asarray(row.scores, float) for row in table.itertuples()}
    assert len(of) == len(table)  # each post once
    return of


def same(one: Path, two: Path) -> None:
    first, second = scores(one), scores(two)
    assert first.keys() == second.keys()
    assert max(np.abs(first[key] - second[key]).max() for key in first) < 1e-5
    rows, others = ({row.metric: row.value for row in SavedRun(path).rows} for path in (one, two))
    assert rows == pytest.approx(others, abs=1e-5)
    for file in ("heads.safetensors", "adapter/adapter.safetensors"):
        a, b = load_file(one / file), load_file(two / file)
        pairs = zip(sorted(a), sorted(b), strict=True)  # the adapter bears the name of the run
        # where a gradient is all but zero, AdamW makes a whole step of what rounding left of it
        assert max(float((a[x] - b[y]).abs().max()) for x, y in pairs) < 1e-4
    logs, theirs = (pd.concat(map(pd.read_csv, sorted((path / "logs").rglob("metrics.csv")))) for path in (one, two))
    # but for the loss that is stepped for, which each process logs by its own posts
    logs, theirs = (table.drop(columns="train_loss").reset_index(drop=True) for table in (logs, theirs))
    pd.testing.assert_frame_equal(logs, theirs, rtol=1e-4, atol=1e-5)


STAGES = "optimization.stages=[{learns:heads,steps:3},{learns:encoder,epochs:0.5},{epochs:1.5}]"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([], id="sum", marks=pytest.mark.trust),
        pytest.param(["weighting=uncertainty", "sampling.step=per_task"], id="uncertainty", marks=pytest.mark.trust),
        pytest.param(["weighting=pcgrad", "optimization.accumulate=3"], id="pcgrad", marks=pytest.mark.slow),
        pytest.param(["weighting=famo", STAGES], id="stages", marks=pytest.mark.slow),
    ],
)
def test_two_processes_make_what_one_makes(words: list[str], tmp_path: Path) -> None:
    for devices in (1, 2):
        ran(tmp_path / str(devices), "action=[train,test]", *words, devices=devices)
    same(tmp_path / "1", tmp_path / "2")
    records = [SavedRun(tmp_path / str(devices)).record for devices in (1, 2)]
    assert [record["steps"] for record in records] == [records[0]["steps"]] * 2
    assert records[0]["ledger"]["posts"] == records[1]["ledger"]["posts"]
    assert records[0]["ledger"]["tokens"] == records[1]["ledger"]["tokens"]


@pytest.mark.slow
def test_a_merge_that_is_trained_on(tmp_path: Path) -> None:
    for rate in ("1e-3", "2e-3"):
        ran(tmp_path / "parts" / rate, f"optimization.encoder_lr={rate}", "optimization.epochs=1")
    merge = ["method=ah_merge16", f"method.sources='{tmp_path / 'parts' / '*'}'", "heads.merge=mean", "action=[train,test]"]
    for devices in (1, 2):
        ran(tmp_path / str(devices), *merge, devices=devices)
    same(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
def test_where_one_dies_both_end_with_a_message_and_the_run_goes_on(tmp_path: Path) -> None:
    words = ["optimization.epochs=6", "action=[train,test]", "weighting=uncertainty"]
    process = begun(tmp_path / "two", *words, devices=2)
    checkpoint, until = unfinished(tmp_path / "two") / "last.ckpt", time.monotonic() + 200
    while not checkpoint.exists() and time.monotonic() < until:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    os.kill(int(children[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "process 2 of 2 ended (signal 9) before the run was trained; the same command goes on" in err
    assert "Traceback" not in err
    assert not (tmp_path / "two").exists()
    ran(tmp_path / "two", *words, devices=2)
    ran(tmp_path / "one", *words)
    same(tmp_path / "one", tmp_path / "two")


GATHERED = """
import sys
from pathlib import Path

import pandas as pd
import torch

from hatemtl.command.configuration import requested
from hatemtl.command.used_run import using_alone
from hatemtl.machine.crew import called, joined
from hatemtl.saved_runs.saved_run import SavedRun, write_results
from hatemtl.using.judging import predictions

run, into = map(Path, sys.argv[1:])
saved, request = SavedRun(run), requested(using_alone(run, ["trainer.devices=2", "trainer.accelerator=cpu"]))
tasks = request.tasks_knowing(saved)
data = request.datamodule(tasks)
module = request.network(tasks, data.spaces, name=run.name).module
data.tokenize(request.encoder.tokenizer(), request.encoder.max_length, None)
with joined(called(), 2, None, torch.device("cpu")) as crew:
    module.crew = crew
    how = {"root": into, "logger": False, "bar": False}
    request.trainer.trainer(request.optimization, [], **how).test(module, data, verbose=False)
    parts = crew.gather(predictions(module, data.pool))
    assert len(parts) == 2 and all(0 < len(part) < sum(map(len, parts)) for part in parts)
    if crew.lead:
        pd.concat(parts).to_parquet(into / "predictions.parquet")
        write_results(into, module.rows)
"""


@pytest.mark.slow
def test_predictions_of_two_processes_are_gathered_each_post_once(tmp_path: Path) -> None:
    """Each process reads its rows of every batch, also of one with a single post; what both said is what one says."""
    run, into = tmp_path / "one", tmp_path / "both"
    into.mkdir()
    ran(run, "action=[train,test]", "batching.eval_batch_size=7")  # 20, 15 and 15 posts leave a batch of one
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    paths = {"PYTHONPATH": str(MAIN.parent)}
    command = [sys.executable, "-W", "ignore", "-c", GATHERED, str(run), str(into)]
    both = []
    for rank in "01":
        env = {**os.environ, **place, **paths, "RANK": rank, "LOCAL_RANK": rank}
        both.append(subprocess.Popen(command, env=env, cwd=MAIN.parent, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    one, two = scores(run), scores(into)  # in which no post is there twice
    assert one.keys() == two.keys()
    assert max(np.abs(one[key] - two[key]).max() for key in one) < 1e-5
    rows = {row.metric: row.value for row in SavedRun(run).rows if row.stage == "test"}
    table = pd.read_csv(into / "results.csv").set_index("metric")["value"]  # of metrics that add up both's counts
    assert {name: table[name] for name in rows} == pytest.approx(rows, abs=1e-5)


def test_a_process_alone_changes_nothing() -> None:
    value = {"a": torch.tensor(2.0)}
    weight = torch.nn.Parameter(torch.ones(2))
    ALONE.average_gradients([weight])
    ALONE.average([weight])
    assert ALONE.mean(value) == ALONE.any(value) == value
    assert ALONE.gather(3) == [3]
    assert weight.grad is None
    assert ALONE.lead
    assert not Crew(1, 2).lead


@pytest.mark.parametrize(
    ("crew", "devices", "nodes", "says"),
    [
        (Crew(0, 3), 2, 1, "3 processes were started for this run, and trainer.devices=2 trainer.nodes=1 ask for 2"),
        (None, 2, 3, "torchrun --nnodes=3 --nproc-per-node=2 main.py"),
    ],
)
def test_as_many_as_asked_for(crew: Any, devices: int, nodes: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check(crew, devices, nodes)
    check(Crew(0, 4), 2, 2)
    check(None, 2, 1)
