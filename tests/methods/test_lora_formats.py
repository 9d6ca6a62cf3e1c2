"""A LoRA from one library into the other: what both compute is the same, on every architecture that both adapt."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.peft_adapters.test_train_and_load import adapter, hub_lora, lora
from methods.test_base import KINDS, RATES, encoder, hidden, save
from peft import PeftModel
from safetensors.torch import load_file, save_file

from hatemtl.errors import UserError
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.merging.mean import Mean
from hatemtl.methods import lora_formats
from hatemtl.methods.adapterhub import library as ah_library
from hatemtl.methods.adapterhub.merged import MergedAdapters
from hatemtl.saved_runs.saved_run import SavedRun

every_kind = pytest.mark.parametrize("kind", KINDS)


def in_peft(run: Path, kind: str) -> Any:
    """The encoder with the run's adapter, converted, as PEFT alone loads it."""
    tensors, config = lora_formats.to_peft(lora_formats.read(SavedRun(run), encoder(kind)), base="someone/encoder")
    folder = run.parent / "peft"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return PeftModel.from_pretrained(encoder(kind), str(folder))


def in_adapterhub(run: Path, kind: str) -> Any:
    """The encoder with the run's adapter, converted, as AdapterHub alone loads it."""
    body = encoder(kind)
    tensors, config = lora_formats.to_adapterhub(lora_formats.read(SavedRun(run), body), name="given", depth=2)
    folder = run.parent / "adapterhub"
    folder.mkdir()
    save_file(tensors, folder / "adapter.safetensors")
    around = lora_formats.settings(config, name="given", encoder=body.config)
    (folder / "adapter_config.json").write_text(json.dumps(around))
    model, seen = ah_library.enable(body), {}
    model.load_adapter(str(folder), set_active=True, use_safetensors=True, loading_info=seen)
    assert not seen["missing_keys"] and not seen["unexpected_keys"]
    return model


@every_kind
def test_adapterhubs_lora_computes_the_same_in_peft(kind: str, tmp_path: Path) -> None:
    said = hidden(save(hub_lora(), tmp_path / "run", kind))
    assert not torch.allclose(said, hidden(encoder(kind)), atol=1e-2)
    torch.testing.assert_close(hidden(in_peft(tmp_path / "run", kind)), said, atol=1e-6, rtol=1e-6)


@every_kind
def test_pefts_lora_computes_the_same_in_adapterhub(kind: str, tmp_path: Path) -> None:
    said = hidden(save(lora(), tmp_path / "run", kind))
    assert not torch.allclose(said, hidden(encoder(kind)), atol=1e-2)
    torch.testing.assert_close(hidden(in_adapterhub(tmp_path / "run", kind)), said, atol=1e-6, rtol=1e-6)


def test_factors_are_copied_to_the_last_bit(tmp_path: Path) -> None:
    save(hub_lora(), tmp_path / "run")
    first = load_file(tmp_path / "run" / ah_library.WEIGHTS)
    updates = lora_formats.read(SavedRun(tmp_path / "run"), encoder())
    tensors, config = lora_formats.to_adapterhub(updates, name="run", depth=2)
    assert tensors.keys() == first.keys() and all(torch.equal(tensors[key], first[key]) for key in first)
    saved = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert {key: saved["config"][key] for key in config} == config


@pytest.mark.parametrize(
    "settings",
    [
        {"leave_out": [0]},
        {"targets": r".*layer\.1\..*query"},
        {"targets": r".*(layer\.0\..*(query|value)|layer\.1\.output\.dense)"},
    ],
    ids=str,
)
def test_some_layers_alone_are_adapted_in_the_other_library_too(settings: dict[str, Any], tmp_path: Path) -> None:
    said = hidden(save(lora(**settings), tmp_path / "run"))
    torch.testing.assert_close(hidden(in_adapterhub(tmp_path / "run", "bert")), said, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("body", ["bert", "roberta"])
def test_other_scales_and_ranks_come_over(body: str, tmp_path: Path) -> None:
    """rsLoRA's scale, and ranks that differ by layer, which AdapterHub's LoRA does not know."""
    method = adapter("LoraConfig", {"r": 3, "lora_alpha": 6, "use_rslora": True, "rank_pattern": {"value": 5}})
    said = hidden(save(method, tmp_path / "run", body))
    torch.testing.assert_close(hidden(in_adapterhub(tmp_path / "run", body)), said, atol=2e-6, rtol=1e-5)


def test_peft_gets_a_rank_and_a_scale_by_layer() -> None:
    def update(rank: int, scale: float) -> LoRAUpdate:
        return LoRAUpdate(torch.ones(rank, 32), torch.ones(32, rank), scale)

    query, key = "encoder.layer.0.attention.self.query", "encoder.layer.0.attention.self.key"
    _, config = lora_formats.to_peft({query: update(4, 2.0), key: update(2, 2.0)}, base="me/x@refs/pr/2")
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/x", "refs/pr/2")
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 8, [key, query])
    assert list(config["rank_pattern"].values()) == [2] and list(config["alpha_pattern"].values()) == [4]


def test_a_layer_that_adapterhub_cannot_adapt_is_told(tmp_path: Path) -> None:
    save(lora(targets=r".*attention\.output\.dense"), tmp_path / "run")
    with pytest.raises(UserError, match=r"no layer such as encoder.layer.0.attention.output.dense; type export.format=peft"):
        in_adapterhub(tmp_path / "run", "bert")


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_merge_takes_sources_of_either_library(kind: str, tmp_path: Path) -> None:
    save(hub_lora(), tmp_path / "part_1", kind, change=1)
    save(lora(), tmp_path / "part_2", kind, change=2)
    merge = MergedAdapters(sources=str(tmp_path / "part_*"), merge=Mean(weights=None), rank=None, **RATES)
    merged = merge.attach(encoder(kind), name="run", seed=0).model
    body = encoder(kind)
    with torch.no_grad():
        for part in ("part_1", "part_2"):
            for path, update in lora_formats.read(SavedRun(tmp_path / part), encoder(kind)).items():
                body.get_submodule(path).weight += 0.5 * update.dense().float()
    torch.testing.assert_close(hidden(merged), hidden(body), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [hub_lora, lora])
def test_a_source_that_diverged_is_told_with_its_layer(method: Any, tmp_path: Path) -> None:
    save(method(), tmp_path / "part_1")
    path = next((tmp_path / "part_1" / "adapter").glob("*.safetensors"))
    key, tensor = next(item for item in load_file(path).items() if "layer.1.attention.self.value" in item[0])
    save_file(load_file(path) | {key: tensor.fill_(torch.inf)}, path)
    with pytest.raises(UserError, match=r"part_1/.*layer\.1\.attention\.self\.value.*no finite number.*diverged"):
        lora_formats.read(SavedRun(tmp_path / "part_1"), encoder())


def test_a_source_of_peft_that_is_no_lora_is_told(tmp_path: Path) -> None:
    save(adapter("IA3Config"), tmp_path / "part_1")
    merge = MergedAdapters(sources=str(tmp_path / "part_*"), merge=Mean(weights=None), rank=None, **RATES)
    with pytest.raises(UserError, match=r"no LoRA \(IA3\)"):
        merge.attach(encoder(), name="run", seed=0)
