"""Compiled training learns what uncompiled training learns. It takes a minute or two: torch calls a C++ compiler."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import Outcome

from hatemtl.saved_runs.saved_run import SavedRun

RUN = ["optimization.epochs=2", "method.learning_rate=5e-3", "logger=csv", "trainer.accelerator=cpu"]
EXACT, FULL = ["trainer.precision=32"], ["method=full", "method.body_dropout=false", "method.learning_rate=1e-4"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("options", "off"),
    [
        pytest.param(["trainer.precision=bf16"], 0.02, id="bf16", marks=pytest.mark.trust),
        pytest.param([*EXACT, "method.leave_out=[0]", "data.cache_prefix=true"], 1e-4, id="prefix", marks=pytest.mark.slow),
        pytest.param([*EXACT, *FULL], 1e-4, id="full", marks=pytest.mark.trust),
    ],
)
def test_a_compiled_run_has_the_losses_of_one_that_is_not(
    options: list[str],
    off: float,
    cli: Callable[..., Outcome],
    sample: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    losses = []
    for compiled in ("false", "true"):
        torch._dynamo.reset()
        run = tmp_path / compiled
        done = cli(*sample, *RUN, *options, f"trainer.compile={compiled}", f"save_path={run}")
        assert done.code == 0, done.err
        record = json.loads((run / "run.json").read_text())
        assert record["compiled"] is (compiled == "true")
        assert record["matmul_flops_per_second"] > 0
        (log,) = run.glob("logs/**/metrics.csv")
        losses.append(pd.read_csv(log)["train_loss"].dropna().to_list())
        assert SavedRun(run).results
    eager, compiled_losses = losses
    assert len(eager) == len(compiled_losses) == 2
    assert eager[1] != eager[0]
    assert compiled_losses == pytest.approx(eager, rel=off)
