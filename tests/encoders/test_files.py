"""An encoder's files: weights in safetensors beside the configuration, each in its place, and nothing from elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoders.test_pretrained import CONFIGS, at, change, hidden, ids, save, settings
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    CLIPConfig,
    DebertaV2ForMaskedLM,
    ElectraForPreTraining,
    ModernBertForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
    RobertaForMaskedLM,
    T5Config,
    ViTConfig,
)

from hatemtl.encoders.pretrained import Encoder
from hatemtl.errors import UserError

INDEX = "model.safetensors.index.json"
Weights = dict[str, Tensor]


def load(folder: Path) -> PreTrainedModel:
    return at(folder).model(dropout=False, seed=0)


def shards(folder: Path) -> dict[str, Any]:
    """Saves a BERT in several files; gives their index."""
    model = save("bert", folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 2
    return index


@pytest.fixture
def _no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a pickle fails, however it is asked for."""

    def read(*args: object, **kwargs: object) -> None:
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(torch, "load", read)


pytestmark = pytest.mark.usefixtures("_no_pickle")


# Weights in several files


def test_weights_in_several_files_are_read(tmp_path: Path) -> None:
    """The hub's cache keeps each as a link to a file of another name, elsewhere."""
    shards(tmp_path / "plain")
    expected = hidden(load(tmp_path / "plain"), ids())
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for number, path in enumerate(sorted((tmp_path / "plain").iterdir())):
        (tmp_path / "blobs" / f"{number:040d}").write_bytes(path.read_bytes())
        (tmp_path / "snapshot" / path.name).symlink_to(Path("../blobs") / f"{number:040d}")
    assert torch.equal(hidden(load(tmp_path / "snapshot"), ids()), expected)


@pytest.mark.parametrize(
    "name", ["evil.bin", "evil.pt", "../evil.safetensors", "deeper/evil.safetensors", "/", 5, None, [1]]
)
def test_an_index_names_safetensors_beside_it_alone(name: Any, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    index = shards(folder)
    first = sorted(set(index["weight_map"].values()))[0]
    name = str(tmp_path / "evil.safetensors") if name == "/" else name
    if isinstance(name, str):
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        if target.suffix != ".safetensors":
            torch.save(load_file(folder / first), target)
        (folder / first).rename(target.with_suffix(".safetensors"))
    index["weight_map"] = {key: name if file == first else file for key, file in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError) as told:
        load(folder)
    assert f"{folder / INDEX}: names {name!r} as a file of weights, expected" in str(told.value)
    assert "type encoder=minilm" in str(told.value)


def test_a_missing_file_of_weights_is_told(tmp_path: Path) -> None:
    first = sorted(set(shards(tmp_path)["weight_map"].values()))[0]
    (tmp_path / first).unlink()
    with pytest.raises(UserError, match=rf"{INDEX}: {first} is missing; .*type encoder=minilm"):
        load(tmp_path)


def test_a_weight_that_no_file_holds_is_told(tmp_path: Path) -> None:
    """The library believes the index, and would leave the weight without numbers."""
    file = shards(tmp_path)["weight_map"][key := "encoder.layer.1.output.LayerNorm.bias"]
    save_file({k: v for k, v in load_file(tmp_path / file).items() if k != key}, tmp_path / file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"1 missing \({key}\)"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds \\[\\], expected keys with values"),
        ("{}", "has no weight_map"),
        ('{"weight_map": ["a.safetensors"]}', "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
    ],
)
def test_a_broken_index_is_told(content: str, expected: str, tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(UserError, match=rf"{INDEX}: {expected}.*type encoder=minilm"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "model.fp16.safetensors"])
def test_weights_under_another_name_are_told(name: str, tmp_path: Path) -> None:
    save("bert", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(UserError, match=rf"has {name}, but neither model.safetensors nor {INDEX}; .*type encoder=minilm"):
        load(tmp_path)


# Weights that do not fit

Change = Callable[[Weights], Weights]
LAYER = "encoder.layer.1."


def without_layer(weights: Weights) -> Weights:
    return {key: tensor for key, tensor in weights.items() if LAYER not in key}


def with_layer(weights: Weights) -> Weights:
    return weights | {k.replace(LAYER, "encoder.layer.2."): v.clone() for k, v in weights.items() if LAYER in k}


def under_prefix(prefix: str) -> Change:
    return lambda weights: {f"{prefix}.{key}": tensor for key, tensor in weights.items()}


@pytest.mark.parametrize(
    ("alter", "expected"),
    [
        (without_layer, r"16 missing \(encoder.layer.1.attention.output.LayerNorm.bias, .* and 13 more\)"),
        (with_layer, r"16 too many \(encoder.layer.2.attention.output.LayerNorm.bias, .* and 13 more\)"),
        (lambda weights: under_prefix("bert")(with_layer(weights)), r"16 too many \(encoder.layer.2."),
        (under_prefix("model.encoder"), r"37 missing \(embeddings.LayerNorm.bias, "),
        (under_prefix("roberta"), r"37 missing \(embeddings.LayerNorm.bias, "),
        (lambda weights: {**weights, "embeddings.more.weight": torch.ones(1)}, r"1 too many \(embeddings.more.weight\)"),
        (lambda weights: {"linear.weight": torch.ones(1)}, r"37 missing \("),
    ],
    ids=["a layer less", "a layer more", "a layer more under a prefix", "nested", "of roberta", "embeddings", "of another"],
)
def test_weights_that_do_not_fit_are_told(alter: Change, expected: str, tmp_path: Path) -> None:
    save("bert", tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(alter(load_file(path)), path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"the weights in {tmp_path} do not fit .*{expected}.*type encoder=minilm") as told:
        load(tmp_path)
    assert "pooler" not in str(told.value)


def test_weights_of_another_architecture_or_width_are_told(tmp_path: Path) -> None:
    save("modernbert", tmp_path / "modernbert")
    save("bert", tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").write_bytes((tmp_path / "modernbert" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"37 missing"):
        load(tmp_path / "bert")
    save("bert", tmp_path / "wide")
    change(tmp_path / "wide", hidden_size=64)
    with pytest.raises(UserError, match=r"do not fit .*37 of another shape \(embeddings.LayerNorm.bias, .* and 34 more\)"):
        load(tmp_path / "wide")


# As the hub has them

HUB: list[tuple[str, type[PreTrainedModel]]] = [
    ("bert", BertForPreTraining),
    ("bert", BertForMaskedLM),
    ("bert", BertForQuestionAnswering),
    ("electra", ElectraForPreTraining),
    ("roberta", RobertaForMaskedLM),
    ("deberta", DebertaV2ForMaskedLM),
    ("modernbert", ModernBertForMaskedLM),
]


@pytest.mark.parametrize(("kind", "cls"), HUB, ids=lambda given: getattr(given, "__name__", given))
def test_pretrained_models_come_with_heads_that_are_left_out(kind: str, cls: Any, tmp_path: Path) -> None:
    save(kind, tmp_path)
    torch.manual_seed(1)
    published = cls(CONFIGS[kind][1]).eval()
    published.save_pretrained(tmp_path)
    if kind != "modernbert":  # old files hold a count of positions too
        path, prefix = tmp_path / "model.safetensors", published.base_model_prefix
        counts = {f"{prefix}.embeddings.position_ids": torch.arange(32)[None]}
        save_file(load_file(path) | counts, path, metadata={"format": "pt"})
    before = torch.get_rng_state()
    loaded = load(tmp_path)
    assert torch.equal(before, torch.get_rng_state())  # not even for a pooler that the files lack
    torch.testing.assert_close(hidden(loaded, ids()), hidden(published.base_model, ids()))


def test_old_names_of_norms_are_read(tmp_path: Path) -> None:
    saved = save("bert", tmp_path)
    path = tmp_path / "model.safetensors"
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    weights = {f"bert.{k}": v for k, v in load_file(path).items()}
    for new, name in old.items():
        weights = {key.replace(new, name): tensor for key, tensor in weights.items()}
    assert sum(key.endswith("LayerNorm.gamma") for key in weights) == 5
    save_file(weights, path, metadata={"format": "pt"})
    torch.testing.assert_close(hidden(load(tmp_path), ids()), hidden(saved, ids()))


def test_a_pooler_is_kept_where_there_is_one(tmp_path: Path) -> None:
    """None is made up: whoever reads an exported encoder would take it for a trained one."""
    saved = save("bert", tmp_path)
    path = tmp_path / "model.safetensors"
    pooler: Any = at(tmp_path).model(dropout=False, seed=0, pooler=True).pooler
    assert torch.equal(pooler.dense.weight, saved.pooler.dense.weight)
    save_file({k: v for k, v in load_file(path).items() if "pooler" not in k}, path, metadata={"format": "pt"})
    assert at(tmp_path).model(dropout=False, seed=0, pooler=True).pooler is None


def test_minilm_fits() -> None:
    Encoder(**settings("minilm")).model(dropout=False, seed=0, pooler=True)


# Files from elsewhere


@pytest.mark.parametrize(
    "keys",
    [
        {"configuration_files": ["config.4.0.0.json"]},
        {"transformers_weights": "../other/model.safetensors"},
        {"transformers_weights": "evil.safetensors.index.json"},
        {"text_config": {"use_pretrained_backbone": True, "backbone": "someone/model"}},
    ],
    ids=str,
)
def test_a_configuration_leads_to_no_other_files(keys: dict[str, Any], tmp_path: Path) -> None:
    save("bert", tmp_path / "other", seed=1)
    save("bert", tmp_path / "encoder")
    content = json.loads((tmp_path / "encoder" / "config.json").read_text()) | {"hidden_act": "relu"}
    (tmp_path / "encoder" / "config.4.0.0.json").write_text(json.dumps(content))
    change(tmp_path / "encoder", **keys)
    for use in (lambda e: e.model(dropout=False, seed=0), lambda e: e.tokenizer()):
        with pytest.raises(UserError, match="config.json: carries .*, which leads to other files"):
            use(at(tmp_path / "encoder"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "cls", ["BertModel", "AutoModel", "AutoTokenizer", "RagTokenizer", "NoSuchTokenizer", "pipeline", 5]
)
def test_a_tokenizer_is_a_fast_tokenizer(cls: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes whatever class of its own the file names; a model would read the pickle there."""
    torch.save(save("bert", tmp_path).state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "tokenizer_config.json").write_text("{}")
    change(tmp_path, name, tokenizer_class=cls)

    def build(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", build)
    monkeypatch.setattr(transformers.RagTokenizer, "from_pretrained", build)
    with pytest.raises(UserError, match=rf"{tmp_path}.*tokenizer_class={cls!r}.*type encoder=minilm"):
        at(tmp_path).tokenizer()


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": "' + "b" * (1 << 25) + '"}'], ids=["deep", "long"])
def test_a_configuration_without_end_is_told(content: str, tmp_path: Path) -> None:
    save("bert", tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json: "):
        load(tmp_path)


# Other families


@pytest.mark.parametrize(
    "config",
    [
        T5Config(d_model=32, num_layers=1, num_heads=4, d_ff=32, d_kv=8, vocab_size=16),
        CLIPConfig(),
        ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4),
    ],
    ids=lambda config: str(config.model_type),
)
@pytest.mark.parametrize("random", [None, {}], ids=["loaded", "random"])
def test_what_is_no_encoder_of_text_is_told(config: PretrainedConfig, random: Any, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"{config.model_type} is no encoder of text.*type encoder=minilm"):
        at(tmp_path, random=random).model(dropout=False, seed=0)
