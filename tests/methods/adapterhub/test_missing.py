"""Where AdapterHub's library is not installed, its methods say what to type."""

import sys
from collections.abc import Callable
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from conftest import Outcome


@pytest.mark.parametrize("method", ["method=ah_lora16", "method=ah_merge16"])
def test_what_to_type_is_told_before_anything_is_written(
    cli: Callable[..., Outcome], sample: list[str], method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("hatemtl.methods.adapterhub")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("hatemtl.methods.adapterhub", raising=False)  # by which Hydra would find what other tests imported
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "conftest" not in str(finder)])
    all_of = Distribution.discover
    monkeypatch.setattr(Distribution, "discover", lambda **of: [] if of.get("name") == "adapters" else all_of(**of))
    ended = cli(*sample, method, f"save_path={tmp_path / 'run'}")
    assert ended.code == 2 and not [*tmp_path.iterdir()]
    assert ended.err.startswith("error: AdapterHub's methods (method=ah_…) and runs need the package adapters")
    assert "type `uv sync`" in ended.err and "method=peft_lora16" in ended.err
