"""A clock that jumps, as that of a laptop that slept or a machine that is set right, changes nothing in a run."""

import time
from datetime import datetime, tzinfo
from itertools import count
from pathlib import Path

import pytest
from command.test_request import request, weights

from hatemtl.command import console
from hatemtl.saved_runs import claiming, failures
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.training import spending
from hatemtl.training.train import train

YEAR = 365 * 24 * 3600.0


def test_a_clock_that_jumps_by_years_changes_neither_numbers_nor_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(request(tmp_path / "quiet" / "run"))
    real, asked = time.time, count()

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.fromtimestamp(time.time(), tz)

    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(asked) * YEAR)
    for module in (console, spending, claiming, failures):
        monkeypatch.setattr(module, "datetime", Jumping)
    train(request(tmp_path / "jumping" / "run"))
    looked = next(asked)
    monkeypatch.undo()
    assert looked > 0  # somebody did look at it, if only what is printed
    one, other = SavedRun(tmp_path / "quiet" / "run"), SavedRun(tmp_path / "jumping" / "run")
    assert one.results == other.results
    assert weights(one) == weights(other)
    spent = other.record["ledger"]["seconds"].values()
    assert spent and all(0 <= seconds < 600 for seconds in spent)
