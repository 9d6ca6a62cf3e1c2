"""A saved adapter as AdapterHub's library is given it: of a kind that is trained here, with no weights but its own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from methods.adapterhub.test_kinds_of_adapter import adapter
from methods.adapterhub.test_train_and_load import load, lora
from methods.test_base import encoder, hidden, save
from safetensors.torch import load_file, save_file
from torch import nn

from hatemtl.errors import UserError
from hatemtl.methods.adapterhub.library import WEIGHTS

CONFIG = "adapter/adapter_config.json"


def change(run: Path, inner: dict[str, Any], **keys: Any) -> None:
    """Gives the adapter's configuration other keys, and its file."""
    path = run / CONFIG
    content = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({**content, "config": {**content["config"], **inner}}))


def attach(run: Path) -> nn.Module:
    return load(run).attach(encoder(), name="run", seed=0).model


@pytest.fixture(autouse=True)
def _nothing_else_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a pickle, a tokenizer or another model fails."""

    def read(*args: object, **kwargs: object) -> None:
        raise AssertionError("something else was read")

    monkeypatch.setattr(torch, "load", read)
    for cls in (transformers.AutoTokenizer, transformers.AutoModel, transformers.PreTrainedModel, transformers.AutoConfig):
        monkeypatch.setattr(cls, "from_pretrained", read)


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ({"architecture": "prompt_tuning", "prompt_length": 3}, "prompt_tuning is refused: .*method=ah_prefix"),
        ({"architecture": "mtl_lora", "n_tasks": 2}, "mtl_lora is refused: .*method=mtl_lora"),
        (
            {"architecture": "union", "configs": [{"architecture": "prompt_tuning", "prompt_length": 3}]},
            "prompt_tuning is refused",
        ),
        ({"architecture": "unheard"}, "no adapter is called 'unheard'"),
        ({"architecture": ["lora"]}, "cannot be read"),
        ({"tokenizer_name_or_path": "someone/model"}, "lora has no key 'tokenizer_name_or_path'"),
        ({"__class__": "x"}, "lora has no key '__class__'"),
    ],
    ids=lambda given: "" if isinstance(given, dict) else given,
)
def test_what_is_not_trained_is_not_loaded(inner: dict[str, Any], expected: str, tmp_path: Path) -> None:
    save(lora(), tmp_path / "run")
    change(tmp_path / "run", inner)
    with pytest.raises(UserError, match=rf"adapter_config.json:? {expected}"):
        attach(tmp_path / "run")


@pytest.mark.parametrize("value", ["x", -1, {"a": 1}, None], ids=json.dumps)
@pytest.mark.parametrize("key", ["r", "alpha", "attn_matrices", "leave_out", "composition_mode", "init_weights", "vera_d"])
def test_a_configuration_that_was_tampered_with_is_told(key: str, value: Any, tmp_path: Path) -> None:
    save(lora(), tmp_path / "run")
    change(tmp_path / "run", {key: value})
    try:
        attach(tmp_path / "run")
    except UserError as error:
        assert "run" in str(error)


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, "{}", '{"config": {}}', '{"config": "lora", "name": "run"}'])
def test_a_configuration_is_a_json_object(content: str, tmp_path: Path) -> None:
    save(lora(), tmp_path / "run")
    (tmp_path / "run" / CONFIG).write_text(content)
    with pytest.raises(UserError, match=f"{tmp_path / 'run'}.*overwrite=true"):
        attach(tmp_path / "run")


def test_a_pickle_is_not_read_where_the_weights_are_broken(tmp_path: Path) -> None:
    save(lora(), tmp_path / "run")
    torch.save(load_file(tmp_path / "run" / WEIGHTS), tmp_path / "run" / "adapter" / "pytorch_adapter.bin")
    (tmp_path / "run" / WEIGHTS).write_bytes(b"broken")
    with pytest.raises(UserError, match="adapter.safetensors cannot be read"):
        attach(tmp_path / "run")


@pytest.mark.parametrize(
    "key",
    [
        "encoder.layer.0.attention.self.query.weight",
        "encoder.layer.0.attention.output.dense.loras.run.lora_A",
        "shared_parameters.run.phm_rule",
        "more",
    ],
)
def test_an_adapter_holds_no_weights_but_its_own(key: str, tmp_path: Path) -> None:
    """Those of the encoder would take the place of what it was loaded with, without a word."""
    save(lora(), tmp_path / "run")
    body: Any = encoder()
    saved = {name: weight.clone() for name, weight in load_file(tmp_path / "run" / WEIGHTS).items()}
    extra = torch.zeros_like(body.encoder.layer[0].attention.self.query.weight)
    save_file({**saved, key: extra}, tmp_path / "run" / WEIGHTS)
    with pytest.raises(UserError, match=rf"adapter.safetensors holds {key}, .*overwrite=true"):
        attach(tmp_path / "run")


@pytest.mark.parametrize(
    "config",
    ["lora[r=4]|par_bn[reduction_factor=8]", "compacter[phm_dim=2,reduction_factor=8]", "vera[r=4]", "prefix_tuning"],
)
def test_all_of_an_adapter_comes_back(config: str, tmp_path: Path) -> None:
    model = save(adapter(config), tmp_path / "run.v1", name="run_v1")
    assert torch.equal(hidden(attach(tmp_path / "run.v1")), hidden(model))
