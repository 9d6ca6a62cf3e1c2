"""A saved run in the format of another program: an adapter of PEFT or AdapterHub, a plain encoder, an ONNX graph."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hatemtl.encoders.fast import restore
from hatemtl.encoders.pretrained import Encoder, Transformer
from hatemtl.errors import UserError, did_you_mean
from hatemtl.heads.base import Head
from hatemtl.methods.base import module_name
from hatemtl.network.assembly import check_encoder
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.using import export_folder

FORMATS = ("peft", "adapterhub", "merged", "onnx")
SIDE = ("heads.safetensors", "labels.json", "config.yaml")  # what it takes to read labels off a merged encoder
TOLERANCE = 1e-3  # of the largest hidden number, by which merging in float32 may change an encoder


def check(format: str | None, path: str | None, encoder: Encoder, run: Path, *, overwrite: bool) -> tuple[str, Path]:
    """The format and the folder to be written for the saved run in `run`.

    Raises UserError where one is missing or cannot be.
    """
    if format not in FORMATS:
        raise UserError(f"export.format={format}: {did_you_mean(str(format), FORMATS)}")
    if not path:
        raise UserError(f"export.path={path}: expected the folder to write; type export.path=FOLDER")
    export_folder.check(Path(path), _sources(run, encoder), overwrite=overwrite)
    if format in ("merged", "onnx") and encoder.quantize is not None:
        raise UserError(
            f"export.format={format}: nothing can be merged into weights of {encoder.quantize}; type encoder.quantize=null, "
            f"and the adapter is merged into the float weights"
        )
    lacking = [package for package in ("onnx", "onnxscript") if importlib.util.find_spec(package) is None]
    if format == "onnx" and lacking:
        raise UserError(
            f"export.format=onnx needs {' and '.join(lacking)}; type `uv sync --extra onnx`, or export.format=merged"
        )
    return format, Path(path)


def adapter(run: SavedRun, encoder: Encoder, library: str, folder: Path, *, seed: int, overwrite: bool = False) -> None:
    """Writes the run's adapter as PEFT or AdapterHub loads it, converted where it was saved by the other."""
    model = encoder.model(dropout=True, seed=seed)
    check_encoder(run, model, encoder)
    own = run.record["library"]
    if own == library:

        def copy(target: Path) -> None:
            shutil.copytree(run.folder / "adapter", target, dirs_exist_ok=True)

        return _write(run, encoder, library, folder, copy, overwrite)
    if own not in ("peft", "adapterhub"):
        raise UserError(
            f"export.format={library}: {run.folder} was saved by {run.record['method']} ({own}) on {encoder.source} and "
            f"holds no adapter of that kind; type export.format=merged"
        )
    from hatemtl.methods import lora_formats, lora_source

    try:
        updates = lora_source.read(run, model)
    except UserError as error:
        raise UserError(
            f"export.format={library}: both libraries hold plain LoRAs alone, not what {run.record['method']} trained on "
            f"{encoder.source} ({error}); type export.format={own}, or export.format=merged"
        ) from error
    if library == "peft":
        tensors, config = lora_formats.to_peft(updates, base=encoder.source)
        weights = "adapter_model.safetensors"
    else:
        name = module_name(run.folder.resolve().name)
        tensors, inner = lora_formats.to_adapterhub(updates, name=name, depth=model.config.num_hidden_layers)
        config, weights = lora_formats.settings(inner, name=name, encoder=model.config), "adapter.safetensors"

    def write(target: Path) -> None:
        save_file(tensors, target / weights, metadata={"format": "pt"})
        (target / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    return _write(run, encoder, library, folder, write, overwrite)


def merged(run: SavedRun, encoder: Encoder, *, seed: int) -> Transformer:
    """The encoder with what the run trained merged into its weights, in float32, as plain transformers computes it.

    Raises UserError where that is impossible, or would change what the encoder says.
    """
    plain, body = (encoder.model(dropout=True, seed=seed, pooler=pooler) for pooler in (True, False))
    check_encoder(run, body, encoder)
    library, way_out = run.record["library"], f"type export.format={run.record['library']}"
    rates: Any = {"path": str(run.folder), "learning_rate": 0.0, "body_dropout": False}
    attached: Any
    if library == "full":
        from hatemtl.methods.full import Full

        attached = Full(**rates).attach(body, name="run", seed=seed).model
        before = _hidden(attached)
    elif library == "peft":
        from hatemtl.methods.peft_adapters import library as peft_library
        from hatemtl.methods.peft_adapters import train_and_load as peft_hub

        attached = peft_hub.Load(**rates).attach(body, name="run", seed=seed).model
        before = _hidden(attached)
        attached = peft_library.fold(attached)
    elif library == "adapterhub":
        from hatemtl.methods.adapterhub import into_weights
        from hatemtl.methods.adapterhub import library as ah_library
        from hatemtl.methods.adapterhub import train_and_load as adapter_hub

        name = module_name(run.record["method"])  # by which it is named where it cannot be merged
        attached = adapter_hub.Load(**rates).attach(body, name=name, seed=seed).model
        before = _hidden(attached)
        if len(ah_library.active(attached)) != 1:
            raise UserError(
                f"export.format=merged: {run.folder} holds several adapters at work together on {encoder.source} "
                f"({run.record['method']}); {way_out}"
            )
        attached = into_weights.fold(attached, ah_library.active(attached)[0])
    else:
        raise UserError(
            f"export.format=merged: what {run.record['method']} ({library}) adds to {encoder.source} depends on the post or "
            f"its task, so no weights hold it; train one LoRA instead, method=ah_lora16, or for a merge method=ah_merge16"
        )
    state = attached.state_dict()
    plain.load_state_dict({**plain.state_dict(), **{key: state[key] for key in plain.state_dict() if key in state}})
    after = _hidden(plain)
    if not torch.allclose(before, after, rtol=0, atol=TOLERANCE * float(before.abs().max())):
        raise UserError(
            f"export.format=merged: merged into {encoder.source}, the adapter of {run.folder} ({run.record['method']}) "
            f"would compute something else (off by {float((before - after).abs().max()):.2g}); {way_out}"
        )
    return plain


@torch.no_grad()
def _hidden(model: nn.Module) -> Tensor:
    """What the model makes of two made-up texts of eight tokens, as its library computes them."""
    restore(model)
    tokens = (torch.arange(16) % model.config.vocab_size).view(2, 8)  # type: ignore[operator, union-attr]
    return model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state


def transformer(run: SavedRun, encoder: Encoder, folder: Path, *, seed: int, overwrite: bool = False) -> None:
    """Writes the merged encoder and its tokenizer as AutoModel and AutoTokenizer load them, the heads beside them."""
    model = merged(run, encoder, seed=seed)

    def write(target: Path) -> None:
        model.save_pretrained(target, safe_serialization=True)
        encoder.tokenizer().save_pretrained(target)
        for name in SIDE:
            shutil.copy(run.folder / name, target / name)

    _write(run, encoder, "merged", folder, write, overwrite)


class _Scorer(nn.Module):
    """Token ids in, a task's scores out, task after task."""

    def __init__(self, encoder: nn.Module, heads: Mapping[str, Any]) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, nn.ModuleDict(heads)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return tuple(head.scores(head(hidden, attention_mask)) for head in self.heads.values())  # type: ignore[operator]


def onnx(
    run: SavedRun, encoder: Encoder, heads: Mapping[str, Head], folder: Path, *, seed: int, overwrite: bool = False
) -> None:
    """Writes model.onnx, from input_ids and attention_mask (B, T) to each task's scores; tokenizer and labels beside."""
    for task, head in heads.items():
        if head.kind in ("masked", "choice"):
            raise UserError(
                f"export.format=onnx: the {head.kind} head of task {task!r} says nothing of one text; leave it out of tasks"
            )
    scorer = _Scorer(merged(run, encoder, seed=seed), heads).eval()
    tokens = torch.arange(24).view(3, 8) % scorer.encoder.config.vocab_size  # type: ignore[operator, union-attr]
    batch, length = torch.export.Dim("posts", min=1), torch.export.Dim("tokens", min=2)
    axes = {0: batch, 1: length}

    def write(target: Path) -> None:
        torch.onnx.export(
            scorer,
            (tokens, torch.ones_like(tokens)),
            target / "model.onnx",
            input_names=["input_ids", "attention_mask"],
            output_names=list(heads),
            dynamic_shapes=(axes, axes),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        encoder.tokenizer().save_pretrained(target)
        shutil.copy(run.folder / "labels.json", target / "labels.json")

    _write(run, encoder, "onnx", folder, write, overwrite)


def _write(
    run: SavedRun, encoder: Encoder, form: str, folder: Path, content: Callable[[Path], object], overwrite: bool
) -> None:
    marker = {"format": form, "run": str(run.folder), "digest": run.digest(), "hatemtl": version("hatemtl")}
    export_folder.write(folder, content, marker, _sources(run.folder, encoder), overwrite=overwrite)


def _sources(run: Path, encoder: Encoder) -> dict[str, Path]:
    """What is exported, by what it is; an encoder of the hub is no folder here."""
    return {"the saved run": run, "the encoder": Path(encoder.source)}
