"""What AdapterHub's library computed when it was recorded, hatemtl's own bottlenecks compute, even where it is missing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.bottleneck.fixtures import HERE, encoder, said
from methods.test_base import RATES
from safetensors.torch import load_file

from hatemtl.encoders.fast import is_fast, restore
from hatemtl.methods.bottleneck.files import LIBRARY
from hatemtl.methods.bottleneck.train_and_load import BottleneckFusion, LoadBottlenecks

RECORDED: dict[str, Any] = json.loads((HERE / "recorded.json").read_text())


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", RECORDED)
def test_a_recorded_adapter_says_what_it_said(kind: str, fast: bool) -> None:
    model: Any = LoadBottlenecks(path=str(HERE / kind), **RATES).attach(encoder(), name="mine", seed=0).model
    assert is_fast(model) is (kind != "fusion")
    if not fast:
        restore(model)
    hidden, norms = said(model)
    torch.testing.assert_close(hidden, torch.tensor(RECORDED[kind]["hidden"]), atol=1e-5, rtol=1e-5)
    expected = {name.replace(".run.", ".mine."): norm for name, norm in RECORDED[kind]["gradients"].items()}
    assert norms == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", RECORDED)
def test_it_is_written_as_it_was_read(kind: str, tmp_path: Path) -> None:
    """All tensors, and of the configurations all that says how they are computed."""
    model: Any = LoadBottlenecks(path=str(HERE / kind), **RATES).attach(encoder(), name="run", seed=0).model
    LIBRARY.save(model, "run", tmp_path)
    files = sorted(path.relative_to(HERE / kind) for path in (HERE / kind / "adapter").rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    for file in files:
        if file.suffix == ".safetensors":
            mine, theirs = (load_file(folder / file) for folder in (tmp_path, HERE / kind))
            assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
        else:
            mine, theirs = (json.loads((folder / file).read_text()) for folder in (tmp_path, HERE / kind))
            for content in (mine, theirs):
                content.pop("model_name", None)
                content.get("config", {}).pop("architecture", None)
            assert mine == theirs


def test_a_new_fusion_starts_from_what_was_recorded() -> None:
    matrices: dict[str, Any] = {"query": True, "key": True, "value": True, "width": None, "dropout": 0.0}
    method = BottleneckFusion(sources=str(HERE / "[so]*"), **matrices, **RATES)
    model: Any = method.attach(encoder(), name="run", seed=0).model
    assert {name for name, p in model.named_parameters() if p.requires_grad} == RECORDED["fusion"]["gradients"].keys()
    assert LIBRARY.active is not None and LIBRARY.active(model) == ["other", "seq", "run"]
