"""Encoders at their real size; what a pass of theirs cannot do without is what torch counts of the libraries' networks."""

import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import encoders
from benchmarks.flops import Method, evaluation_flops, shape_of, training_flops
from benchmarks.rival_networks import attentions, fused, network

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, "embedding_size": 32}
TOKENS = 7


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (kind, sizes) in encoders.SIZES.items():
        monkeypatch.setitem(encoders.SIZES, name, (kind, {**sizes, **SMALL}))


# of the hub's models, as their papers or cards have them
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("electra_small", 9.5),
        ("bert_base", 85.1),
        ("roberta_base", 85.1),
        ("deberta_v3_base", 85.1),
        ("modernbert_base", 110.4),
    ],
)
def test_a_size_is_the_real_one(name: str, millions: float, tmp_path: Path) -> None:
    """Parameters of the layers alone: vocabularies are the tokenizer's."""
    from transformers import AutoConfig, AutoModel

    kind, sizes = encoders.SIZES[name]
    with torch.device("meta"):
        model: Any = AutoModel.from_config(AutoConfig.for_model(kind, **sizes))
    layers = model.layers if name == "modernbert_base" else model.encoder.layer
    assert sum(p.numel() for p in layers.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", encoders.SIZES)
def test_an_encoder_is_made_once_known_by_its_name(name: str, tmp_path: Path) -> None:
    from hatemtl.encoders.pretrained import Encoder

    folder = encoders.folder(name, tmp_path)
    drawn = Encoder(source=str(encoders.described(name, tmp_path / "bare")), max_length=128, attention="auto", random={})
    assert drawn.model(dropout=False, seed=0).config.hidden_size == 32
    assert not [*(tmp_path / "bare" / name).glob("*.safetensors")]
    ours = Encoder(source=str(folder), max_length=128, attention="auto", random=None)
    model, tokenizer = ours.model(dropout=False, seed=0), ours.tokenizer()
    ids = torch.tensor([tokenizer("a mild day").input_ids])
    assert model(ids).last_hidden_state.shape == (1, ids.shape[1], 32)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert attentions(str(folder)) == (("eager",) if kind_has_no_sdpa(name) else ("eager", "sdpa"))


def kind_has_no_sdpa(name: str) -> bool:
    return name == "deberta_v3_base" or (name == "electra_small" and version("transformers") < "5")


def body(name: str, method: Method, folder: Path) -> Any:
    """A library's encoder under the method, without its head and pooler."""
    library: Any = "adapters" if method == "ah_seq_bn" else "transformers"
    whole = network(
        "label", 3, encoder=str(folder), method=method, library=library, dropout=False, attention="eager", mean=False
    )
    inner = whole.base_model.model if method == "ah_lora16" else whole
    found = getattr(inner, inner.base_model_prefix)
    if hasattr(found, "pooler"):
        found.pooler = None
    return found


def counted(step: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "method"),
    [(n, m) for n in ("bert_base", "electra_small", "roberta_base") for m in ("full", "ah_lora16", "ah_seq_bn")]
    + [("modernbert_base", "full")],  # whose rotations are small products
)
def test_operations_are_those_that_torch_counts(name: str, method: Method, tmp_path: Path) -> None:
    folder = encoders.folder(name, tmp_path)
    model, ids = body(name, method, folder), torch.arange(5, 5 + TOKENS)[None]
    shape = shape_of(encoders.config(folder), method)
    little = 1e-3 if name == "modernbert_base" else 0
    trained = counted(lambda: model(ids).last_hidden_state.sum().backward())
    assert trained == pytest.approx(training_flops(shape, TOKENS, TOKENS**2), rel=little, abs=0)
    if method != "ah_lora16":  # counted as merged
        with torch.no_grad():
            assert counted(lambda: model(ids)) == pytest.approx(
                evaluation_flops(shape, TOKENS, TOKENS**2), rel=little, abs=0
            )


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["modernbert_base", "deberta_v3_base"])
def test_operations_are_no_more_than_those_of_another_way_to_compute_it(name: str, tmp_path: Path) -> None:
    """PEFT has one LoRA for q, k and v of ModernBERT; transformers scores all of DeBERTa's places, near or not."""
    folder = encoders.folder(name, tmp_path)
    model, ids = body(name, "ah_lora16", folder), torch.arange(5, 5 + TOKENS)[None]
    shape = shape_of(encoders.config(folder), "ah_lora16")
    least, there = training_flops(shape, TOKENS, TOKENS**2), counted(lambda: model(ids).last_hidden_state.sum().backward())
    assert (0.8 if name == "modernbert_base" else 0.0) * there < least < (1.2 if name == "modernbert_base" else 1.0) * there


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["bert_base", "electra_small"])
def test_a_fused_rival_trains_in_float32_over_frozen_weights_of_bf16(name: str, tmp_path: Path) -> None:
    folder = str(encoders.folder(name, tmp_path))
    plain = network(
        "label", 3, encoder=folder, method="ah_lora16", library="transformers", dropout=False, attention=None, mean=False
    )
    made = fused(plain)
    assert {p.dtype for p in made.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in made.parameters() if not p.requires_grad} == {torch.bfloat16}
    (body,) = [m for m in made.modules() if m._compiled_call_impl is not None]
    assert body is getattr(made.base_model.model, made.base_model.model.base_model_prefix)
    assert all(m._compiled_call_impl is None for m in copy.deepcopy(made).modules())  # which an evaluation merges


def test_what_a_library_has_not_is_refused() -> None:
    ask: dict[str, Any] = {"encoder": str(encoders.installed()), "dropout": True, "attention": None, "mean": False}
    with pytest.raises(ValueError, match="ah_seq_bn: PEFT"):
        network("label", 3, method="ah_seq_bn", library="transformers", **ask)
    with pytest.raises(ValueError, match="AdapterHub"):
        network("label", 3, method="full", library="adapters", **ask)
