"""Writes a saved run for another program: checks what is asked for; an adapter as PEFT or AdapterHub loads it."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safetensors.torch import save_file

from hatemtl.encoders.pretrained import Encoder, Transformer
from hatemtl.errors import UserError, did_you_mean
from hatemtl.methods.base import module_name
from hatemtl.network.assembly import check_encoder
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.using import export_folder

FORMATS = ("peft", "adapterhub", "merged", "onnx")


def check(format: str | None, path: str | None, encoder: Encoder, run: Path, *, overwrite: bool) -> tuple[str, Path]:
    """Gives the format and the folder to be written for the saved run in `run`.

    Raises UserError where one is missing or cannot be.
    """
    if format not in FORMATS:
        raise UserError(f"export.format={format}: {did_you_mean(str(format), FORMATS)}")
    if not path:
        raise UserError(f"export.path={path}: expected the folder to write; type export.path=FOLDER")
    export_folder.check(Path(path), run, encoder, overwrite=overwrite)
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


def adapter(run: SavedRun, encoder: Encoder, library: str, folder: Path, *, seed: int, overwrite: bool = False) -> str:
    """Writes the run's adapter as PEFT or AdapterHub loads it, converted where it was saved by the other; says how."""
    model, own = encoder.model(dropout=True, seed=seed), run.record["library"]
    check_encoder(run, model, encoder)
    if own not in ("peft", "adapterhub"):
        raise UserError(
            f"export.format={library}: {run.folder} was saved by {run.record['method']} ({own}) on {encoder.source} and "
            f"holds no adapter of that kind; type export.format=merged"
        )
    if own == library:
        content: Callable[[Path], object] = partial(shutil.copytree, run.folder / "adapter", dirs_exist_ok=True)
    else:
        content = _converted(run, encoder, library, model)
    export_folder.write(folder, run, encoder, library, content, overwrite=overwrite)
    if library == "peft":
        return f'PeftModel.from_pretrained(model, "{folder}") loads it'
    # AdapterHub looks for a pickle where it is not told otherwise
    return f'model.load_adapter("{folder}", set_active=True, use_safetensors=True) loads it'


def _converted(run: SavedRun, encoder: Encoder, library: str, model: Transformer) -> Callable[[Path], object]:
    """Gives what writes a LoRA of the other library for this one."""
    from hatemtl.methods import lora_formats, lora_source

    try:
        updates = lora_source.read(run, model)
    except UserError as error:
        raise UserError(
            f"export.format={library}: both libraries hold plain LoRAs alone, not what {run.record['method']} trained on "
            f"{encoder.source} ({error}); type export.format={run.record['library']}, or export.format=merged"
        ) from error
    if library == "peft":
        tensors, config = lora_formats.to_peft(updates, base=encoder.source)
        weights = "adapter_model.safetensors"
    else:
        name = module_name(run.folder.resolve().name)
        tensors, inner = lora_formats.to_adapterhub(updates, name=name, depth=model.config.num_hidden_layers)
        config, weights = lora_formats.settings(inner, name=name, encoder=model.config), "adapter.safetensors"

    def convert(target: Path) -> None:
        save_file(tensors, target / weights, metadata={"format": "pt"})
        (target / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    return convert
