"""Writes a saved run for another program: checks what is asked for; an adapter as PEFT or AdapterHub loads it."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from safetensors.torch import save_file

from hatemtl.encoders.pretrained import Encoder, fingerprint
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


def adapter(run: SavedRun, encoder: Encoder, library: str, folder: Path, *, seed: int, overwrite: bool = False) -> str:
    """Writes the run's adapter as PEFT or AdapterHub loads it, converted where it was saved by the other; says how."""
    model = encoder.model(dropout=True, seed=seed)
    check_encoder(run, fingerprint(model), encoder)
    own = run.record["library"]
    if own == library:

        def copy(target: Path) -> None:
            shutil.copytree(run.folder / "adapter", target, dirs_exist_ok=True)

        write(run, encoder, library, folder, copy, overwrite=overwrite)
        return loading(library, folder)
    if own not in ("peft", "adapterhub"):
        raise UserError(
            f"export.format={library}: {run.folder} was saved by {run.record['method']} ({own}) on {encoder.source} and "
            f"holds no adapter of that kind; type export.format=merged"
        )
    from hatemtl.methods import lora_formats

    try:
        updates = lora_formats.read(run, model)
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

    def convert(target: Path) -> None:
        save_file(tensors, target / weights, metadata={"format": "pt"})
        (target / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    write(run, encoder, library, folder, convert, overwrite=overwrite)
    return loading(library, folder)


def loading(library: str, folder: Path) -> str:
    """Tells how the adapter is loaded; AdapterHub looks for a pickle where it is not told otherwise."""
    if library == "peft":
        return f'PeftModel.from_pretrained(model, "{folder}") loads it'
    return f'model.load_adapter("{folder}", set_active=True, use_safetensors=True) loads it'


def write(
    run: SavedRun, encoder: Encoder, form: str, folder: Path, content: Callable[[Path], object], *, overwrite: bool
) -> None:
    """Lets `content` fill the folder, and marks it as an export of this run in this format."""
    marker = {"format": form, "run": str(run.folder), "digest": run.digest(), "hatemtl": version("hatemtl")}
    export_folder.write(folder, content, marker, _sources(run.folder, encoder), overwrite=overwrite)


def _sources(run: Path, encoder: Encoder) -> dict[str, Path]:
    """Gives what is exported, by what it is; an encoder of the hub is no folder here."""
    return {"the saved run": run, "the encoder": Path(encoder.source)}
