"""The ledger: phases add up to the time that went by, sittings to a run."""

import time
from pathlib import Path
from typing import Any

import pytest

from hatemtl.errors import UserError
from hatemtl.machine.ledger import Cost, Ledger
from hatemtl.machine.written_ledger import added


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def spent(clock: list[float], cost: Cost) -> Ledger:
    ledger = Ledger(cost)
    ledger.counters = {}  # whatever this machine has
    clock[0] += 10
    ledger.turn("preparing")
    clock[0] += 5
    ledger.of_which("tokenizing", 2)
    ledger.turn("training")
    ledger.read(32, 900)
    ledger.read(8, 100)
    clock[0] += 3585
    return ledger


def test_every_second_has_a_phase_and_a_price(clock: list[float], tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"12345")
    (tmp_path / "gone").write_bytes(b"123")
    entry = spent(clock, Cost(per_hour=1.18, watts=50)).entry(tmp_path, but=["gone"])
    assert entry["seconds"] == {"loading": 10, "tokenizing": 2, "preparing": 3, "training": 3585}
    assert (entry["posts"], entry["tokens"]) == ({"training": 40}, {"training": 1000})
    assert entry["price"] == pytest.approx(1.18)
    assert (entry["joules"], entry["energy_source"], entry["watts"]) == (50 * 3600, "estimate", 50)
    assert entry["disk_bytes"] == 5 and entry["peak_memory_bytes"] > 0


def test_a_counter_goes_before_the_estimate(clock: list[float], tmp_path: Path) -> None:
    ledger = spent(clock, Cost())
    ledger.counters = {"NVML": lambda: 7.0, "RAPL": lambda: 0.5}
    entry = ledger.entry(tmp_path)
    assert (entry["joules"], entry["energy_source"], entry["watts"]) == (7.5, "NVML+RAPL", None)
    assert entry["price"] is None


def test_a_counter_that_fails_in_the_middle_ends_no_run(clock: list[float], tmp_path: Path) -> None:
    def lost() -> float:
        raise OSError("nvmlDeviceGetTotalEnergyConsumption says 999")

    ledger = spent(clock, Cost(watts=50))
    ledger.counters = {"NVML": lost, "RAPL": lambda: 0.5}
    ledger.turn("validating")
    entry = ledger.entry(tmp_path)
    assert (entry["joules"], entry["energy_source"], entry["watts"]) == (50 * 3600, "estimate", 50)


@pytest.mark.parametrize(("watts", "joules", "source"), [(None, None, None), (50, 50 * 3600, "estimate")])
def test_of_several_machines_no_counter_of_one_tells(
    clock: list[float], tmp_path: Path, watts: float | None, joules: float | None, source: str | None
) -> None:
    ledger = Ledger(Cost(watts=watts), devices=2, nodes=2)
    clock[0] += 3600
    entry = ledger.entry(tmp_path)
    assert (ledger.counters, entry["joules"], entry["energy_source"]) == ({}, joules, source)


def test_sittings_add_up(clock: list[float], tmp_path: Path) -> None:
    one = spent(clock, Cost(per_hour=2, watts=50)).entry(tmp_path)
    two = added(one, {**one, "seconds": {"training": 5, "testing": 1}, "peak_memory_bytes": 1, "disk_bytes": 9})
    assert two["seconds"] == {**one["seconds"], "training": 3590, "testing": 1}
    assert (two["sittings"], two["price"], two["joules"]) == (2, 4, 2 * 50 * 3600)
    assert (two["peak_memory_bytes"], two["disk_bytes"]) == (one["peak_memory_bytes"], 9)
    assert (two["device"], two["per_hour"]) == (one["device"], 2)
    three: dict[str, Any] = added(two, {**one, "price": None, "per_hour": None, "device": "another"})
    assert three["price"] is None  # a part of it is not known
    assert (three["device"], three["per_hour"]) == ([one["device"], "another"], 2)
    assert added(three, one)["device"] == [one["device"], "another"]
    assert added(None, one) == one


@pytest.mark.parametrize("given", [{"per_hour": -1.0}, {"watts": float("inf")}])
def test_a_cost_is_no_less_than_nothing(given: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"cost\.(per_hour|watts)=.*at least 0"):
        Cost(**given)
