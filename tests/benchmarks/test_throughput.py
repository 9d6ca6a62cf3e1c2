from multiprocessing import Pipe
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.arms import ONE, Measurement, in_turns, jobs
from benchmarks.flops import Shape
from benchmarks.quality import OURS, RIVALS, SCORES, VARIANTS, difference
from benchmarks.quality import report as quality_report
from benchmarks.readings import THREE, Reading, Spread
from benchmarks.scaling import Point
from benchmarks.scaling import report as scaling_report
from benchmarks.throughput import rates, report, shares, speedups
from benchmarks.workers import ArmFailed, Job, Worker

MINILM = Shape(layers=6, hidden=384, feed_forward=1536)


class Clockwork:
    """A worker whose arm takes always as long, or breaks in a round."""

    def __init__(self, seconds: float, breaks_at: int = -1) -> None:
        self.seconds, self.left = seconds, breaks_at

    def measure(self, job: Job) -> Reading:
        self.left -= 1
        if self.left == -1:
            raise ArmFailed("broken")
        return Reading(posts=30, seconds=self.seconds, tokens=600, squares=12000, padded=800, peak=1e12, memory=3 * 2**20)


def measured(**seconds: float) -> list[Measurement]:
    workers = {name: Clockwork(value) for name, value in seconds.items()}
    return in_turns(workers, rounds=3, seed=0, say=lambda line: None)  # type: ignore[arg-type]


def test_every_round_measures_every_job_once_in_another_order() -> None:
    found = measured(trainer=3.0, hatemtl=1.0, adapterhub=2.0)
    orders = [[(m.arm, m.job) for m in found if m.round == number] for number in range(3)]
    for order in orders:
        assert sorted(map(str, order)) == sorted(
            str((arm, job)) for arm in ("trainer", "hatemtl", "adapterhub") for job in jobs(arm)
        )
    assert orders[0] != orders[1]


def test_an_arm_that_breaks_is_left_out_whole() -> None:
    said: list[str] = []
    workers = {"trainer": Clockwork(1.0), "hatemtl": Clockwork(1.0, breaks_at=5)}
    found = in_turns(workers, rounds=3, seed=0, say=said.append)  # type: ignore[arg-type]
    assert {m.arm for m in found} == {"trainer"}
    assert any("hatemtl: left out from round 2: broken" in line for line in said)


def test_a_process_that_has_ended_is_an_arm_that_failed() -> None:
    worker: Any = object.__new__(Worker)
    worker.pipe, theirs = Pipe()
    worker.process = SimpleNamespace(exitcode=-9, join=lambda timeout: None, is_alive=lambda: False)
    theirs.close()
    with pytest.raises(ArmFailed, match="ended with code -9"):
        worker.measure(Job("train", ONE))


def test_three_tasks_are_three_trainings_for_a_rival_and_one_for_hatemtl() -> None:
    table = rates(measured(trainer=2.0, hatemtl=1.0, adapterhub=2.0))
    assert [reading.seconds for reading in table["trainer", "training"]] == [2.0] * 3
    assert [reading.seconds for reading in table["trainer", "training, 3 tasks"]] == [6.0] * 3
    assert speedups(table, "trainer", "training")["hatemtl"] == Spread(2.0, 2.0, 2.0)
    assert speedups(table, "trainer", "evaluation, 3 tasks")["hatemtl"] == Spread(6.0, 6.0, 6.0)
    assert ("adapterhub", "training, 3 tasks") not in table
    assert {job.tasks for job in jobs("hatemtl")} == {ONE, THREE}


def test_shares_of_the_peak() -> None:
    table = rates(measured(hatemtl=1.0))
    once, twice = shares(table, MINILM, 1e12), shares(table, MINILM, 2e12)
    assert once["hatemtl", "training"] == pytest.approx(2 * twice["hatemtl", "training"])
    assert shares(table, MINILM) == once
    assert once["hatemtl", "training"] > 2 * once["hatemtl", "evaluation"]


def test_the_report_holds_ratios_and_no_seconds() -> None:
    text = report(rates(measured(trainer=2.0, hatemtl=1.0)), MINILM, {"machine": "M"})
    assert "2.00 (2.00–2.00)" in next(line for line in text.splitlines() if line.startswith("| hatemtl "))
    assert "75%" in text  # 600 of 800 positions hold a token
    (memory,) = [line for line in text.splitlines() if line.startswith("| hatemtl ") and line.count(" 3 |") == 4]
    assert memory
    assert "- machine :: M" in text


def test_differences_have_intervals() -> None:
    mine, other = [0.62, 0.64, 0.63], [0.61, 0.63, 0.62]
    middle, low, high = difference(mine, other, paired=False)
    assert low < 0 < middle < high
    assert difference(mine, [0.60, 0.63, 0.62], paired=True)[0] == pytest.approx(0.04 / 3)
    scores = {arm: {score: [0.6, 0.65, 0.61] for score in SCORES} for arm in (*VARIANTS, *RIVALS)}
    scores[OURS] = {score: [0.61, 0.64, 0.63] for score in SCORES}
    assert "| hatemtl " in quality_report(scores)


def test_growth_is_told_relative_to_the_first_point() -> None:
    def point(value: int) -> Point:
        return Point(series="tasks", value=value, posts=10, repeats=1, threads=1, device="cpu")

    found = [(point(n), {"training": 1.0 + n, "data path": 0.1, "preparation": 1.0, "memory": 1.0}) for n in (1, 2, 3)]
    table, lines = scaling_report(found)
    assert lines["tasks", "training"].slope == pytest.approx(1.0)
    assert "| training by tasks  |     1–3 |         2.00 |               +1.00 |" in table
