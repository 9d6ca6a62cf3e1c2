"""The end of training is told once, by what is left; what was spent is kept for the run that goes on."""

import io
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from hatemtl.machine.ledger import Cost, Ledger
from hatemtl.training.spending import LEDGER, Others, Spending


class Batch:
    tokens = 100

    def __len__(self) -> int:
        return 4


def trained(folder: Path, monkeypatch: pytest.MonkeyPatch, cost: Cost, *, steps: int, seconds: float) -> str:
    """What is printed in so many steps of 100, of so many seconds each; two epochs, of which the first is not over."""
    now, out = [0.0], io.StringIO()
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    spending = Spending(Ledger(cost), folder, Console(file=out, width=200))
    spending.ledger.counters = {}
    data = SimpleNamespace(pool=SimpleNamespace(lengths=torch.full((9,), 100)), rows=lambda split: slice(0, 3))
    trainer: Any = SimpleNamespace(global_step=0, max_epochs=2, current_epoch=0, datamodule=data)
    optimization = SimpleNamespace(total_epochs=2, patience=3, evaluate_every=None)
    module: Any = SimpleNamespace(
        plan=SimpleNamespace(ends=[50, 100]), optimization=optimization, device=torch.device("cpu")
    )
    spending.on_train_start(trainer, module)
    for _ in range(steps):
        now[0] += seconds
        trainer.global_step += 1
        spending.on_train_batch_end(trainer, module, None, Batch(), 0)
    return out.getvalue()


def test_the_end_is_told_after_a_minute_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trained(tmp_path, monkeypatch, Cost(), steps=5, seconds=10.0) == ""
    assert not (tmp_path / LEDGER).exists()
    told = trained(tmp_path, monkeypatch, Cost(), steps=20, seconds=10.0)
    # after 6 steps of 100 tokens in 60 s: 94 steps of 10 s, and three validations of 300 tokens at a third of 0.1 s a token
    assert told.count("training will end") == 1 and "in 16 min" in told and "optimization.patience=3" in told
    assert "cost" not in told
    assert json.loads((tmp_path / LEDGER).read_text())["posts"] == {"training": 72}  # at 180 s


def test_what_other_processes_read_is_booked_with_what_this_one_reads() -> None:
    ledger, met = Ledger(Cost()), list[Any]()
    crew = SimpleNamespace(gather=lambda mine: [met.append(mine) or mine, (3, 50), (1, 20)])  # type: ignore[func-returns-value]
    one, trainer, module = Others(ledger), SimpleNamespace(), SimpleNamespace(crew=crew)
    given: Any = trainer, module
    one.on_train_batch_end(*given, None, Batch(), 0)
    one.on_validation_start(*given)
    for _ in range(2):
        one.on_validation_batch_end(*given, None, Batch(), 0)
    one.on_validation_end(*given)
    one.on_train_epoch_end(*given)
    assert met == [(4, 100), (8, 200), (0, 0)]  # since all met last
    assert ledger.posts == {"training": 8, "validating": 4} and ledger.tokens == {"training": 140, "validating": 70}


def test_the_price_is_that_of_all_sittings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path, monkeypatch, Cost(per_hour=60), steps=6, seconds=10.0)  # a minute costs 1
    told = trained(tmp_path, monkeypatch, Cost(per_hour=60), steps=6, seconds=10.0)
    assert "it will have cost about 18.17 (60 an hour)" in told  # two minutes are spent, and 970 s are left
    assert json.loads((tmp_path / LEDGER).read_text())["sittings"] == 2
    for broken in ("{", '{"seconds": 3}', '{"posts": {"training": "x"}}', '{"device": [[]]}'):  # it is begun anew
        (tmp_path / LEDGER).write_text(broken)
        assert trained(tmp_path, monkeypatch, Cost(per_hour=60), steps=6, seconds=10.0)
