"""Encoders of 8 and 4 bits: LoRA through either library, our own heads; without `bitsandbytes`, the refusal."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.peft_adapters.test_train_and_load import NAMED, adapter
from methods.test_base import KINDS, RATES, encoder, hidden, record
from methods.test_base import trained as trained_of

from hatemtl.encoders.pretrained import Encoder, fingerprint, is_quantized, keep_trainable
from hatemtl.errors import UserError
from hatemtl.methods.adapterhub import train_and_load as adapter_hub
from hatemtl.methods.peft_adapters import library as peft_library
from hatemtl.saved_runs.saved_run import SavedRun

installed = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
every_width = pytest.mark.parametrize("bits", ["8bit", "4bit"])
LORA: dict[str, Any] = {"rank": 4, "alpha": 8, "dropout": 0.0, "leave_out": [], **RATES}
METHODS = {
    "ah": (
        adapter_hub.AdapterHubLoRA(attention=["q", "k", "v"], intermediate=True, output=True, **LORA),
        adapter_hub.LoadAdapterHub,
    ),
    "peft": (peft_library.PEFTLoRA(targets=None, **LORA), peft_library.LoadPEFT),
}


def small(bits: Any, kind: str = "bert") -> Any:
    """A small encoder of so many bits."""
    settings = Encoder(source=".", max_length=32, attention="eager", random=None, quantize=bits)
    return settings.quantized(encoder(kind))


def test_what_cannot_be_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"source": ".", "max_length": 32, "attention": "eager", "random": None}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package bitsandbytes; type `uv sync --extra quantize`"):
        Encoder(**given, quantize="4bit")


@installed
@every_width
def test_a_quantized_encoder_says_about_the_same(bits: str) -> None:
    wide, narrow = encoder(), small(bits)
    assert not is_quantized(wide) and is_quantized(narrow)
    error = (hidden(narrow) - hidden(wide)).norm() / hidden(wide).norm()
    assert 1e-4 < error < (0.05 if bits == "8bit" else 0.3)
    assert not [name for name, p in narrow.named_parameters() if p.requires_grad]
    kinds = {type(m).__name__ for m in narrow.modules() if "Linear" in type(m).__name__}
    assert kinds == {"Linear8bitLt" if bits == "8bit" else "Linear4bit"}


@installed
@every_width
@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_embeddings_are_about_those_of_the_same_weights_in_floats(bits: str, name: str) -> None:
    """Explanations by gradients stand on them: of a weight that is the quantized one's, written out."""
    method, _ = METHODS[name]
    narrow = small(bits)
    wide = encoder()
    for path, layer in [(path, m) for path, m in narrow.named_modules() if "Linear" in type(m).__name__]:
        rows = torch.eye(layer.in_features)
        with torch.no_grad():
            bias = layer.bias if layer.bias is not None else 0
            wide.get_submodule(path).weight.copy_((layer(rows) - bias).T)  # type: ignore[operator, union-attr]
    gradients = []
    for model in (wide, narrow):
        attached = method.attach(model, name="run", seed=0).model.eval()
        embeddings = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        said = attached(inputs_embeds=embeddings, attention_mask=torch.ones(2, 7)).last_hidden_state[:, 0, :4].sum()
        gradients.append(torch.autograd.grad(said, embeddings)[0])
    assert torch.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0) > 0.99


@installed
@every_width
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["bert", "electra", "roberta"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_a_lora_trains_is_evaluated_trains_on_and_comes_back(
    bits: str, name: str, kind: str, half: bool, tmp_path: Path
) -> None:
    method, loads = METHODS[name]

    def ready(model: Any) -> Any:
        keep_trainable(model)
        for parameter in model.parameters():
            if half and not parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.bfloat16()
        return model

    def said(model: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return hidden(model)

    model = ready(method.attach(small(bits, kind), name="run", seed=0).model)
    body = {key: p.detach().clone() for key, p in model.named_parameters() if not p.requires_grad}
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # or one loss could not be compared with another
    losses, optimizer = [], torch.optim.Adam(trained_of(model).values(), lr=1e-3)
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            states = model.train()(input_ids=torch.tensor([[3, 4, 5, 6]])).last_hidden_state
        loss = states.float()[..., :5].square().mean()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained_of(model).values())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        said(model)  # mid-way; on a CPU the library would repack 4-bit weights for good here
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, body[key]) for key, p in model.named_parameters() if key in body)
    before = said(model)
    record(tmp_path / "run", method.library.name)
    method.library.save(model, "run", tmp_path / "run")
    load = loads(path=str(tmp_path / "run"), **RATES)
    assert torch.equal(said(ready(load.attach(small(bits, kind), name="run", seed=0).model)), before)
    over_floats = hidden(load.attach(encoder(kind), name="run", seed=0).model)  # the same LoRA over the float weights
    assert (over_floats - before).norm() / before.norm() < 0.4


@installed
@every_width
def test_only_what_needs_no_float_weights_stands_on_quantized_ones(bits: str) -> None:
    for name in ("lora", "rslora", "ia3"):
        hidden(adapter(*NAMED[name]).attach(small(bits), name="run", seed=0).model)
    with pytest.raises(UserError, match="init_lora_weights=pissa changes the weights; type encoder.quantize=null"):
        adapter(*NAMED["pissa"]).attach(small(bits), name="run", seed=0)
    with pytest.raises(UserError, match="BOFTConfig on a quantized bert: .*type encoder.quantize=null"):
        adapter("BOFTConfig").attach(small(bits), name="run", seed=0)
    lora = METHODS["ah"][0]
    with pytest.raises(UserError, match="modernbert.*type method=peft_lora16"):
        lora.attach(small(bits, "modernbert"), name="run", seed=0)
    hidden(METHODS["peft"][0].attach(small(bits, "modernbert"), name="run", seed=0).model)


@installed
@every_width
def test_the_fast_layers_leave_quantized_ones_alone(bits: str) -> None:
    for method, _ in METHODS.values():
        model = method.attach(small(bits), name="run", seed=0).model
        assert not {type(m.forward).__name__ for m in model.modules()} & {"LoRALinear", "Stack"}


@installed
@every_width
@pytest.mark.parametrize(("method", "load"), [("ah_lora16", "ah_load"), ("peft_lora16", "peft_load")])
def test_a_run_of_three_heads_is_trained_tested_and_loaded(
    cli: Any, sample: list[str], tmp_path: Path, bits: str, method: str, load: str
) -> None:
    run, tasks = (
        tmp_path / "run",
        ["tasks=[label,target]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=300"],
    )
    given = [*tasks, *sample, "optimization.epochs=2"]
    done = cli(*given, f"method={method}", f"encoder.quantize={bits}", "action=[train,test]", f"save_path={run}")
    assert (done.code, done.err) == (0, "")
    first = SavedRun(run).results
    loaded = [*given, f"method={load}", "action=test", "heads.load=true", f"load_path={run}"]
    assert cli(*loaded, f"encoder.quantize={bits}").code == 0
    assert SavedRun(run).results == pytest.approx(first, abs=1e-6)
    floats = cli(*loaded, f"save_path={tmp_path / 'floats'}")
    assert floats.code == 0 and f"trained over {bits} weights" in floats.out
    refused = cli(
        *given, "action=export", "export.format=merged", f"load_path={run}", "export.path=x", f"encoder.quantize={bits}"
    )
    assert refused.code == 2 and "type encoder.quantize=null" in refused.err
    merged = ["action=export", "export.format=merged", f"load_path={run}", f"export.path={tmp_path / 'merged'}"]
    assert cli(*given, *merged).code == 0


@installed
def test_full_fine_tuning_and_a_kept_prefix_are_refused(cli: Any, sample: list[str], tmp_path: Path) -> None:
    no = cli(*sample, "method=full", "encoder.quantize=8bit", f"save_path={tmp_path / 'a'}")
    assert no.code == 2 and "needs the weights" in no.err and "method=peft_lora16" in no.err
    prefix = ["data.cache_prefix=true", f"data.cache={tmp_path}", "method.leave_out=[0]", "encoder.quantize=8bit"]
    no = cli(*sample, *prefix, f"save_path={tmp_path / 'b'}")
    assert no.code == 2 and "type data.cache_prefix=false" in no.err


@installed
def test_the_mark_is_that_of_the_float_weights() -> None:
    assert set(KINDS) >= {"bert"}
    model = encoder()
    before = fingerprint(model)
    assert fingerprint(encoder()) == before
    assert is_quantized(small("8bit"))
