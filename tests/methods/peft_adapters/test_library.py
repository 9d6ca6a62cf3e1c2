"""A saved adapter as PEFT is given it: of a kind that is trained here, and leading to no other model, file or module."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from methods.peft_adapters.test_train_and_load import adapter, load, lora
from methods.test_base import encoder, hidden, save
from safetensors.torch import load_file, save_file
from torch import nn

from hatemtl.errors import UserError
from hatemtl.methods.peft_adapters.library import REFUSED, WEIGHTS

CONFIG = "adapter/adapter_config.json"
TYPES = {config.__name__: str(kind.value) for kind, config in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
PROMPTS = ("CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING")


def change(run: Path, **keys: Any) -> None:
    """Gives the adapter's configuration other keys."""
    path = run / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def attach(run: Path) -> nn.Module:
    return load(run).attach(encoder(), name="run", seed=0).model


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Another model, of which a library would read a pickle and the name of a kernel."""
    folder = tmp_path / "elsewhere"
    encoder(seed=1).save_pretrained(folder)
    torch.save(encoder(seed=1).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_attn_implementation_internal": "someone/kernel"}))
    return folder


@pytest.fixture(autouse=True)
def _nothing_else_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a pickle, another model or its configuration fails, and so does asking the hub."""

    def read(*args: object, **kwargs: object) -> None:
        raise AssertionError("something else was read")

    monkeypatch.setattr(torch, "load", read)
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", read)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", read)
    monkeypatch.setattr(transformers.PretrainedConfig, "from_pretrained", read)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", read)
    for module in (peft.utils.save_and_load, peft.peft_model, peft.config):
        monkeypatch.setattr(module, "hf_hub_download", read, raising=False)
        monkeypatch.setattr(module, "check_file_exists_on_hf_hub", read, raising=False)


# Kinds


def test_another_model_is_no_adapter(tmp_path: Path, elsewhere: Path) -> None:
    save(lora(), tmp_path / "run")
    content = {"peft_type": "SHADOW", "shadow_model": str(elsewhere), "target_modules": r".*layer\.\d+$"}
    (tmp_path / "run" / CONFIG).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"adapter_config.json: peft_type='SHADOW': it hands over .*overwrite=true"):
        attach(tmp_path / "run")


@pytest.mark.parametrize("kind", [*(TYPES[name] for name in REFUSED), *PROMPTS, "lora", "NONE", None, 5, ["LORA"]])
def test_kinds_that_are_not_trained_are_not_loaded(kind: Any, tmp_path: Path) -> None:
    save(lora(), tmp_path / "run")
    (tmp_path / "run" / CONFIG).write_text(json.dumps({"peft_type": kind}))
    with pytest.raises(UserError) as told:
        attach(tmp_path / "run")
    assert f"{tmp_path / 'run' / CONFIG}: peft_type={kind!r}: " in str(told.value)


# Keys


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "megatron.stranger"}, "megatron_config"),
        ({"corda_config": {"covariance_file": "evil.bin"}}, "corda_config"),
        ({"modules_to_save": ["embeddings"]}, "modules_to_save"),
        ({"shadow_model": "someone/model"}, "shadow_model"),
        ({"prompt_tuning_init_state_dict_path": "evil.bin"}, "prompt_tuning_init_state_dict_path"),
        ({"of_a_later_version": None}, "of_a_later_version"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_keys_that_lead_elsewhere_or_are_unknown_are_told(keys: dict[str, Any], expected: str, tmp_path: Path) -> None:
    save(lora(), tmp_path / "run")
    change(tmp_path / "run", **keys)
    with pytest.raises(UserError, match=rf"adapter_config.json: {expected}: .*overwrite=true"):
        attach(tmp_path / "run")


def test_what_peft_notes_of_the_model_is_not_followed(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(lora(), tmp_path / "run")
    assert json.loads((tmp_path / "run" / CONFIG).read_text())["auto_mapping"]  # it notes the model's class of every run
    (tmp_path / "stranger.py").write_text("raise AssertionError('a module was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    change(
        tmp_path / "run",
        auto_mapping={"base_model_class": "Model", "parent_library": "stranger"},
        base_model_name_or_path=str(elsewhere),
        revision="other",
        task_type="SEQ_CLS",
        peft_version="0.99.0",
        megatron_core="stranger",
        runtime_config={"ephemeral_gpu_offload": True},
        inference_mode=True,
    )
    loaded: Any = attach(tmp_path / "run")
    assert torch.equal(hidden(loaded), hidden(model))
    config = loaded.peft_config["default"]
    assert (config.auto_mapping, config.revision, config.task_type, config.inference_mode) == (None, None, None, False)
    load(tmp_path / "run").library.save(loaded, "run", tmp_path / "again")
    assert "elsewhere" not in (tmp_path / "again" / CONFIG).read_text()


@pytest.mark.parametrize("start", ["eva", "loftq", "pissa", "olora", "orthogonal", "corda", "lora_ga", "mica", "x.bin", 5])
def test_a_way_to_start_names_no_file(start: Any, tmp_path: Path) -> None:
    """It is read again, or told, but leads nowhere."""
    save(lora(), tmp_path / "run")
    change(tmp_path / "run", init_lora_weights=start, loftq_config={"loftq_bits": 4, "path": "evil.bin"})
    try:
        attach(tmp_path / "run")
    except UserError as error:
        assert str(tmp_path / "run") in str(error)


@pytest.mark.parametrize("value", ["(", -1, [], {"a": 1}, None], ids=json.dumps)
@pytest.mark.parametrize("key", ["r", "lora_alpha", "target_modules", "rank_pattern", "use_dora", "eva_config", "bias"])
def test_a_configuration_that_was_tampered_with_is_told(key: str, value: Any, tmp_path: Path) -> None:
    save(lora(targets=".*query"), tmp_path / "run")
    change(tmp_path / "run", **{key: value})
    try:
        attach(tmp_path / "run")
    except UserError as error:
        assert str(tmp_path / "run") in str(error)


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '"LORA"'])
def test_a_configuration_is_a_json_object(content: str, tmp_path: Path) -> None:
    save(lora(), tmp_path / "run")
    (tmp_path / "run" / CONFIG).write_text(content)
    with pytest.raises(UserError, match="adapter_config.json: .*overwrite=true"):
        attach(tmp_path / "run")


# Weights


def test_a_pickle_is_not_read_where_the_weights_are_broken(tmp_path: Path) -> None:
    save(lora(), tmp_path / "run")
    torch.save(load_file(tmp_path / "run" / WEIGHTS), tmp_path / "run" / "adapter" / "adapter_model.bin")
    (tmp_path / "run" / WEIGHTS).write_bytes(b"broken")
    with pytest.raises(UserError, match="adapter_model.safetensors cannot be read"):
        attach(tmp_path / "run")


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.encoder.layer.0.attention.self.query.base_layer.weight",
        "base_model.model.embeddings.LayerNorm.weight",
        "base_model.model.encoder.layer.0.attention.output.dense.lora_A.weight",
        "more",
    ],
)
def test_an_adapter_holds_no_weights_but_its_own(key: str, tmp_path: Path) -> None:
    """Those of the encoder would take the place of what it was loaded with, without a word."""
    save(lora(), tmp_path / "run")
    body: Any = encoder()
    tensor = body.embeddings.LayerNorm.weight if "Norm" in key else body.encoder.layer[0].attention.self.query.weight
    saved = {name: weight.clone() for name, weight in load_file(tmp_path / "run" / WEIGHTS).items()}
    save_file({**saved, key: torch.zeros_like(tensor)}, tmp_path / "run" / WEIGHTS)
    with pytest.raises(UserError, match=rf"adapter_model.safetensors holds {key}, .*overwrite=true"):
        attach(tmp_path / "run")


def test_another_kind_is_loaded_as_it_was(tmp_path: Path) -> None:
    model = save(adapter("IA3Config"), tmp_path / "run")
    change(tmp_path / "run", base_model_name_or_path="someone/model")
    assert torch.equal(hidden(attach(tmp_path / "run")), hidden(model))
