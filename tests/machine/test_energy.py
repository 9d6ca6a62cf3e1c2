"""Counters of energy, as the system lays them out."""

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hatemtl.machine import energy
from hatemtl.machine.energy import Nvml, Rapl, counters


def lay_out(root: Path, **microjoules: int) -> Path:
    """Domains as powercap has them: packages, a part of one, and the whole platform, which holds the packages."""
    names = {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1", "intel-rapl:0:0": "core", "intel-rapl:2": "psys"}
    for (folder, name), value in zip(names.items(), microjoules.values(), strict=True):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "name").write_text(f"{name}\n")
        (root / folder / "energy_uj").write_text(f"{value}\n")
        (root / folder / "max_energy_range_uj").write_text("9999999\n")
    return root


def test_rapl_sums_packages_and_goes_on_where_a_counter_began_again(tmp_path: Path) -> None:
    meter = Rapl(lay_out(tmp_path, a=1_000_000, b=9_000_000, c=5, d=7))
    assert meter() == 0
    lay_out(tmp_path, a=3_500_000, b=9_500_000, c=99, d=99)
    assert meter() == pytest.approx(3.0)
    lay_out(tmp_path, a=3_500_000, b=500_000, c=99, d=99)  # from 9.5 J to the range of 10 J, and on to 0.5 J
    assert meter() == pytest.approx(4.0)


def test_without_a_counter_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "Rapl", lambda: Rapl(tmp_path))
    assert counters(None) == {}
    monkeypatch.setattr(energy, "Rapl", lambda: Rapl(lay_out(tmp_path, a=0, b=0, c=0, d=0)))
    assert [*counters(None)] == ["RAPL"]
    assert counters("GPU-of-no-driver") == {}  # the processor's share alone would be told for the whole


def test_nvml_is_asked_by_uuid_and_counts_from_its_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, asked = iter([5_000, 8_500]), []

    def total(handle: Any, out: Any) -> int:
        out._obj.value = next(looks)
        return 0

    driver = SimpleNamespace(
        nvmlInit_v2=lambda: 0,
        nvmlDeviceGetHandleByUUID=lambda uuid, handle: asked.append(uuid) or 0,
        nvmlDeviceGetTotalEnergyConsumption=total,
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert Nvml("GPU-1")() == 3.5
    assert asked == [b"GPU-1"]
    driver.nvmlInit_v2 = lambda: 12
    with pytest.raises(OSError, match="nvmlInit_v2 says 12"):
        Nvml("GPU-1")
