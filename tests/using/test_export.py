"""Exports: what another program loads says what the run says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from encoders.test_pretrained import hidden, ids
from encoders.test_pretrained import save as save_encoder
from methods.test_base import RATES
from safetensors.torch import load_file

from hatemtl.batches.batching import LengthBuckets
from hatemtl.corpora.preprocess import AS_IS
from hatemtl.encoders.pretrained import Encoder, fingerprint
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace
from hatemtl.methods.adapterhub import library as ah_library
from hatemtl.methods.adapterhub import train_and_load as adapter_hub
from hatemtl.methods.full import Full
from hatemtl.methods.peft_adapters import library as peft_library
from hatemtl.network.assembly import Network
from hatemtl.network.module import MultitaskModule
from hatemtl.objective.weighting import Sum
from hatemtl.saved_runs.saved_run import SavedRun, write_config, write_labels, write_record
from hatemtl.training.trainer_settings import TrainerSettings
from hatemtl.using import export
from hatemtl.using.export import MARKER
from hatemtl.using.merged_encoder import LOADS, merged
from hatemtl.using.predictor import Predictor

LORA: dict[str, Any] = {"rank": 4, "alpha": 8, "dropout": 0.0, "leave_out": [], **RATES}
METHODS: dict[str, Any] = {
    "ah_lora": adapter_hub.AdapterHubLoRA(attention=["q", "v"], intermediate=True, output=True, **LORA),
    "peft_lora": peft_library.PEFTLoRA(targets=None, **LORA),
    "peft_dora": peft_library.PEFTAdapter(
        kind="LoraConfig", options={"r": 4, "use_dora": True}, targets=None, leave_out=[], **RATES
    ),
    "peft_pissa": peft_library.PEFTAdapter(
        kind="LoraConfig", options={"r": 4, "init_lora_weights": "pissa"}, targets=None, leave_out=[], **RATES
    ),
    "peft_ia3": peft_library.PEFTAdapter(kind="IA3Config", options=None, targets=None, leave_out=[], **RATES),
    "full": Full(path=None, **RATES),
}
TOLD = {"peft": "PeftModel.from_pretrained(", "adapterhub": "use_safetensors=True", "merged": "load.py"}
BOTTLENECK = adapter_hub.AdapterHubAdapter(config="seq_bn", reduction_factor=None, leave_out=[], **RATES)


def source(folder: Path, kind: str = "bert") -> Encoder:
    """A small random encoder on disk."""
    save_encoder(kind, folder / "encoder")
    return Encoder(source=str(folder / "encoder"), max_length=32, attention="eager", random=None)


def trained(method: Any, encoder: Encoder, folder: Path) -> tuple[SavedRun, torch.Tensor]:
    """A saved run of the method, its weights moved at random, and what it says."""
    body = encoder.model(dropout=False, seed=0)
    mark = fingerprint(body)
    model = method.attach(body, name="run", seed=0).model
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    run = folder / "run"
    write_config(run, {"tasks": {}, "encoder": {"max_length": 32}})
    write_labels(run, {"label": LabelSpace("multiclass", ("a", "b"))})
    write_record(
        run, {"method": "some", "library": method.library.name, "encoder": mark, "encoder_source": "x", "sources": {}}
    )
    method.library.save(model, "run", run)
    (run / "heads.safetensors").write_bytes(b"heads")
    return SavedRun(run), hidden(model.eval(), ids())


def predictor(run: SavedRun, encoder: Encoder, heads: dict[str, Any]) -> Predictor:
    """The saved run as a Predictor, with these heads in the place of its own."""
    model = LOADS[run.record["library"]](encoder.model(dropout=False, seed=0), run, "run", 0)
    given: Any = {"weights": dict.fromkeys(heads, 1.0), "weighting": Sum, "optimization": None, "seed": 0}
    made: Any = object.__new__(Predictor)
    made.saved, made.tokenizer = run, encoder.tokenizer()
    made.heads, made.spaces = heads, {task: head.space for task, head in heads.items()}
    made.network = Network(MultitaskModule(model, heads, **given), encoder, METHODS["full"], "", "run")
    trainer = TrainerSettings(accelerator="cpu", precision="32", compile=False, fast="auto", progress=False)
    batching = LengthBuckets(batch_size=32, window=50, eval_batch_size=128)
    made.lexicons = {}
    made.request = SimpleNamespace(seed=0, workers=0, trainer=trainer, batching=batching, preprocess=AS_IS)
    return made


def inside(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _load(model: Any, call: str) -> Any:
    """The model, once it did what it is told to."""
    eval(call, {"model": model})
    return model


@pytest.mark.parametrize("name", ["ah_lora", "peft_lora"])
@pytest.mark.parametrize("form", ["peft", "adapterhub"])
def test_an_adapter_is_written_for_either_library(name: str, form: str, tmp_path: Path) -> None:
    encoder = source(tmp_path)
    run, said = trained(METHODS[name], encoder, tmp_path)
    told = export.adapter(run, encoder, form, tmp_path / "out", seed=0)
    assert (tmp_path / "out" / MARKER).is_file()
    body: Any = encoder.model(dropout=False, seed=0)
    call, loads, it = told.partition(" loads it")
    assert loads and not it
    model: Any = ah_library.enable(body) if form == "adapterhub" else body
    model = eval(call, {"PeftModel": peft_library.peft.PeftModel, "model": model}) if form == "peft" else _load(model, call)
    torch.testing.assert_close(hidden(model.eval(), ids()), said, atol=1e-6, rtol=1e-6)
    if METHODS[name].library.name == form:  # a copy
        weights = next((run.folder / "adapter").glob("*.safetensors"))
        assert load_file(tmp_path / "out" / weights.name).keys() == load_file(weights).keys()


def test_what_cannot_be_is_told_before_anything_is_written(tmp_path: Path) -> None:
    encoder = source(tmp_path)
    full, _ = trained(METHODS["full"], encoder, tmp_path / "full")
    dora, _ = trained(METHODS["peft_dora"], encoder, tmp_path / "dora")
    with pytest.raises(UserError, match=r"saved by some \(full\) on .*and holds no adapter .*type export.format=merged"):
        export.adapter(full, encoder, "peft", tmp_path / "out", seed=0)
    with pytest.raises(UserError, match=r"both libraries hold plain LoRAs alone, .*use_dora.* type export.format=peft, or"):
        export.adapter(dora, encoder, "adapterhub", tmp_path / "out", seed=0)
    bottleneck, _ = trained(BOTTLENECK, encoder, tmp_path / "bottleneck")
    with pytest.raises(UserError, match=r"no LoRA .* type export.format=adapterhub, or"):
        export.adapter(bottleneck, encoder, "peft", tmp_path / "out", seed=0)
    with pytest.raises(UserError, match=r"the adapter some on the encoder bert is no mere change of its weights"):
        merged(bottleneck, encoder, seed=0)
    other = Encoder(source=str(tmp_path / "else" / "encoder"), max_length=32, attention="eager", random=None)
    save_encoder("bert", tmp_path / "else" / "encoder", seed=1)
    for action in (
        lambda: merged(full, other, seed=0),
        lambda: export.adapter(dora, other, "peft", tmp_path / "out", seed=0),
    ):
        with pytest.raises(UserError, match="was trained on another encoder"):
            action()
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_what_is_asked_for_must_be_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, out, run = source(tmp_path), str(tmp_path / "out"), tmp_path / "run"
    for form, path, message in (
        ("pefd", out, "export.format=pefd: did you mean 'peft'"),
        (None, out, "known: peft, adapterhub, merged, onnx"),
        ("peft", None, "type export.path=FOLDER"),
    ):
        with pytest.raises(UserError, match=message):
            export.check(form, path, encoder, run, overwrite=False)
    assert export.check("peft", out, encoder, run, overwrite=False) == ("peft", tmp_path / "out")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs onnx and onnxscript; type `uv sync --extra onnx`"):
        export.check("onnx", out, encoder, run, overwrite=False)


@pytest.mark.slow
def test_the_command_line_exports(cli: Any, sample: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli(*sample, f"save_path={run}").code == 0
    for form in ("peft", "adapterhub", "merged"):
        done = cli(*sample, "action=export", f"export.format={form}", f"export.path={tmp_path / form}", f"load_path={run}")
        assert (done.code, done.err) == (0, "")
        assert TOLD[form] in done.out
        assert any((tmp_path / form).glob("*.safetensors"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years")
    before = inside(run)
    for path, overwrite, code, said in (
        (tmp_path / "peft", "false", 2, "exists already"),
        (tmp_path / "peft", "true", 0, ""),
        (mine, "true", 2, "no export left it"),
        (run, "true", 2, "is the saved run"),
        (run / "new", "false", 2, "lies in the saved run"),
    ):
        again = cli(
            *sample,
            "action=export",
            "export.format=peft",
            f"export.path={path}",
            f"load_path={run}",
            f"overwrite={overwrite}",
        )
        assert again.code == code and said in again.err
    assert inside(run) == before and inside(mine) == {"thesis.tex": b"years"}
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert any(key.endswith("query.lora_A.weight") for key in tensors)
    no = cli(*sample, "action=export", "export.format=merged", "export.path=x", f"load_path={run}", "encoder.max_length=2")
    assert no.code == 2
