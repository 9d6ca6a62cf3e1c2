"""A wait is timed to the line that ends it, and a command that never says it is an error."""

import time

import pytest

from benchmarks.startup import IMPORTS, report, until


@pytest.mark.slow  # starts of its own
def test_the_clock_stops_at_the_line() -> None:
    begun = time.perf_counter()
    seconds = until(["-c", "import time; print('epoch 1/1  loss'); time.sleep(3)"], "epoch 1/1", threads=1)
    assert 0 < seconds < time.perf_counter() - begun - 2  # the rest is waited for, and not counted
    for code in ("print('epoch 2/2')", "raise SystemExit(3)"):
        with pytest.raises(RuntimeError, match="without 'epoch 1/1'"):
            until(["-c", code], "epoch 1/1", threads=1)


def test_the_report_tells_the_ratio_and_the_limit() -> None:
    lines = report(
        {IMPORTS: [5.0, 6.0, 5.0], "--help": [0.5, 0.6, 0.5], "to the first step": [13.0, 12.0, 20.0]}
    ).splitlines()
    assert [cell.strip() for cell in lines[-2].split("|")[1:-1]] == ["--help", "0.10 (0.10–0.10)", "under 1 s"]
    assert [cell.strip() for cell in lines[-1].split("|")[1:-1]] == ["to the first step", "2.60 (2.00–4.00)", "over 12 s"]
