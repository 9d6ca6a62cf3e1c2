"""What methods share, and the small encoders and saved runs that their tests start from."""

import math
import os
import re
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    ElectraConfig,
    ElectraModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace
from hatemtl.methods.base import LOADERS, Component, components, draw_lora_A, saved_by
from hatemtl.saved_runs.saved_run import SavedRun, write_config, write_labels, write_record

SIZE: dict[str, Any] = {
    **{"vocab_size": 20, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"max_position_embeddings": 32, "attn_implementation": "eager"},
}
# What DeBERTa-v3 has of its own; distances of 4 and more share a bucket.
V3: dict[str, Any] = {
    **{"relative_attention": True, "pos_att_type": "p2c|c2p", "share_att_key": True, "position_buckets": 8},
    **{"norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0},
}
KINDS = {
    "bert": (BertModel, BertConfig(**SIZE)),
    "electra": (ElectraModel, ElectraConfig(**SIZE, embedding_size=16)),
    "roberta": (RobertaModel, RobertaConfig(**SIZE)),
    "deberta": (DebertaV2Model, DebertaV2Config(**SIZE, **V3)),
    # q, k and v in one matrix, no biases, the second layer's attention is local
    "modernbert": (ModernBertModel, ModernBertConfig(**SIZE, pad_token_id=0, local_attention=8)),
}
# RoBERTa by another name: what is said of its layers alone is tested on it, and nothing else again.
KIN = {"xlm-roberta": (XLMRobertaModel, XLMRobertaConfig(**SIZE))}
RATES = {"learning_rate": 1e-3, "body_dropout": False}


def encoder(kind: str = "bert", seed: int = 0) -> PreTrainedModel:
    """A small random encoder, as `Encoder.model` gives one."""
    cls, config = (KINDS | KIN)[kind]
    torch.manual_seed(seed)
    model = cls(config).eval()
    if hasattr(model, "pooler"):
        model.pooler = None
    return model


@torch.no_grad()
def hidden(model: nn.Module) -> Tensor:
    """What an encoder says of three posts, one of them padded, in evaluation mode."""
    tokens = torch.randint(3, 20, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[1, 7:] = 0
    return model.eval()(input_ids=tokens, attention_mask=mask).last_hidden_state[mask.bool()]


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save(method: Any, folder: Path, kind: str = "bert", *, name: str = "run", change: int = 1) -> nn.Module:
    """A saved run of `method` without training: what it trains is moved by a random step, seeded with `change`."""
    model = method.attach(encoder(kind), name=name, seed=0).model
    draw = torch.Generator().manual_seed(change)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    record(folder, library=method.library.name)
    method.library.save(model, name, folder)
    return model


def saved(method: Any, folder: Path, kind: str = "bert", *, change: int = 1) -> None:
    """As `save`, for tests that read the files alone: they are made once for all and copied."""
    if (key := (repr(method), kind, change)) not in SAVED:
        SAVED[key] = Path(tempfile.mkdtemp(dir=os.environ["HATEMTL_CACHE"])) / "run"
        save(method, SAVED[key], kind, change=change)
    shutil.copytree(SAVED[key], folder, dirs_exist_ok=True)


SAVED: dict[tuple[str, str, int], Path] = {}


def record(folder: Path, library: str) -> Path:
    """What makes a folder a saved run, but for its weights."""
    methods = {
        "adapterhub": "ah_lora16",
        "peft": "peft_lora16",
        "full": "full",
        "bank": "lora_fusion",
        "mtl_lora": "mtl_lora",
    }
    write_config(folder, {"tasks": {"target": {"mask_pattern": None}}})
    write_labels(folder, {"target": LabelSpace("multilabel", ("a", "b"))})
    write_record(
        folder,
        {
            "method": methods[library],
            "library": library,
            "encoder": "mark",
            "encoder_source": "someone/encoder",
            "sources": {},
            "seed": 0,
        },
    )
    return folder


# A of a LoRA


def draw(rank: int, *, seed: int = 0, layer: str = "layer.0.query", width: int = 64) -> Tensor:
    A = torch.full((rank, width), torch.nan)
    draw_lora_A(A, seed=seed, layer=layer)
    return A


def test_A_is_drawn_as_lora_draws_it() -> None:
    """Uniform as torch's nn.Linear, which Hu et al.'s loralib takes for A: kaiming_uniform_ with a = √5."""
    A, reference = draw(512), torch.empty(512, 64)
    nn.init.kaiming_uniform_(reference, a=math.sqrt(5), generator=torch.Generator().manual_seed(0))
    assert A.abs().max() <= 64**-0.5
    assert A.abs().max() == pytest.approx(float(reference.abs().max()), rel=1e-3)
    assert A.std() == pytest.approx(float(reference.std()), rel=0.02)
    assert abs(A.mean()) < 1e-3


def test_A_depends_on_seed_and_layer_alone() -> None:
    before = torch.get_rng_state()
    first = draw(8)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    assert torch.equal(first, draw(8))
    assert not torch.equal(first, draw(8, seed=1))
    assert not torch.equal(first, draw(8, layer="layer.1.query"))
    assert torch.equal(first, draw(16)[:8])


def test_A_takes_the_dtype_it_is_given() -> None:
    A = nn.Parameter(torch.zeros(8, 64, dtype=torch.bfloat16))
    draw_lora_A(A, seed=0, layer="layer.0.query")
    assert torch.equal(A.detach(), draw(8).bfloat16())
    assert A.requires_grad


# Components


def test_components_count_every_parameter_once() -> None:
    model = nn.ModuleDict({"body": nn.Linear(3, 4), "adapters": nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(5, 1)})})
    model.requires_grad_(False)["adapters"]["b"].weight.requires_grad_(True)
    library: Any = SimpleNamespace(pattern=re.compile(r"adapters\.([^.]+)\."), active=lambda model: ["b"])
    method: Any = SimpleNamespace(library=library)
    assert components(method, model) == [
        Component("encoder", "body", 16, 0, True),
        Component("a", "adapter", 6, 0, False),
        Component("b", "adapter", 6, 5, True),
    ]
    library.pattern = None
    assert components(method, model) == [Component("encoder", "body", 28, 5, True)]


# Sources


@pytest.mark.parametrize(
    ("library", "expected"), [("adapterhub", LOADERS["adapterhub"]), ("peft", "peft_load"), ("full", "method=full")]
)
def test_a_run_of_another_library_is_refused_with_the_method_that_loads_it(
    library: str, expected: str, tmp_path: Path
) -> None:
    run = SavedRun(record(tmp_path / "run", library))
    assert saved_by(run, "load_path=run", library) is run
    with pytest.raises(UserError, match=rf"^load_path=run: .*\({library}\), expected one saved by another; .*{expected}$"):
        saved_by(run, "load_path=run", "another")
