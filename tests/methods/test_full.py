"""Full fine-tuning: everything is trained, and comes back to the last bit."""

from pathlib import Path

import pytest
import torch
from methods.test_base import KINDS, RATES, encoder, hidden, record, save, trained
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from hatemtl.errors import UserError
from hatemtl.methods.base import LOADERS, components
from hatemtl.methods.full import WEIGHTS, Full


def full(path: Path | None = None) -> Full:
    return Full(path=None if path is None else str(path), **RATES)


def test_everything_is_trained_from_the_pretrained_weights() -> None:
    model = encoder()
    before = torch.get_rng_state()
    attached = full().attach(model, name="run", seed=0).model
    assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(hidden(attached), hidden(encoder()))
    assert set(trained(attached)) == {name for name, _ in model.named_parameters()}
    (body,) = components(full(), attached)
    assert (body.kind, body.active) == ("body", True)
    assert body.trained == body.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert full().starts_from() == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_what_is_loaded(kind: str, tmp_path: Path) -> None:
    model = save(full(), tmp_path / "run", kind)
    assert not torch.equal(hidden(model), hidden(encoder(kind)))
    loaded = full(tmp_path / "run").attach(encoder(kind), name="other", seed=5).model
    assert torch.equal(hidden(loaded), hidden(model))
    assert len(trained(loaded)) == len(list(model.parameters()))
    assert [run.folder for run in full(tmp_path / "run").starts_from()] == [tmp_path / "run"]


def test_what_is_saved_is_an_encoder_of_transformers(tmp_path: Path) -> None:
    model = save(full(), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run" / "encoder").iterdir()} == {"config.json", "model.safetensors"}
    assert set(load_file(tmp_path / "run" / WEIGHTS)) == set(model.state_dict())
    again = AutoModel.from_pretrained(tmp_path / "run" / "encoder", add_pooling_layer=False)
    torch.testing.assert_close(hidden(again), hidden(model))


def test_a_pickle_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(full(), tmp_path / "run")
    (tmp_path / "run" / WEIGHTS).rename(tmp_path / "run" / "encoder" / "pytorch_model.bin")

    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(UserError, match="has no encoder/model.safetensors"):
        full(tmp_path / "run").attach(encoder(), name="run", seed=0)


@pytest.mark.parametrize("way", ["lacking", "more", "wider"])
def test_weights_that_do_not_fit_are_told(way: str, tmp_path: Path) -> None:
    save(full(), tmp_path / "run")
    path, key = tmp_path / "run" / WEIGHTS, "embeddings.LayerNorm.bias"
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    match way:
        case "lacking":
            del weights[key]
        case "more":
            weights["more"] = torch.ones(1)
        case "wider":
            weights[key] = torch.ones(64)
    save_file(weights, path)
    with pytest.raises(UserError, match=rf"{path} does not fit this encoder .*overwrite=true"):
        full(tmp_path / "run").attach(encoder(), name="run", seed=0)


def test_of_an_encoder_the_tensors_alone_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save(full(), tmp_path / "run")
    (tmp_path / "run" / "encoder" / "config.json").write_text('{"auto_map": {"AutoModel": "modeling.Model"}}')
    (tmp_path / "run" / "encoder" / "adapter_config.json").write_text('{"peft_type": "SHADOW"}')

    def read(*args: object, **kwargs: object) -> None:
        raise AssertionError("a library read the folder")

    for cls in (AutoModel, PreTrainedModel, PretrainedConfig):
        monkeypatch.setattr(cls, "from_pretrained", read)
    assert torch.equal(hidden(full(tmp_path / "run").attach(encoder(), name="run", seed=0).model), hidden(model))


def test_an_adapter_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"saved by ah_lora16 .*; load it with method={LOADERS['adapterhub']}"):
        full(record(tmp_path / "run", "adapterhub")).starts_from()
    with pytest.raises(UserError, match="no such saved run"):
        full(tmp_path / "none").starts_from()
