"""Writes a saved run for another program: an adapter as PEFT or AdapterHub loads it, and the guarded folder of an export."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from hatemtl.command.faults import kept_elsewhere
from hatemtl.encoders.pretrained import Encoder, Transformer, fingerprint
from hatemtl.errors import Refusal, UserError, did_you_mean
from hatemtl.methods.base import module_name
from hatemtl.network.assembly import check_encoder
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.saved_runs.writing import share

MARKER = "hatemtl_export.json"
FORMATS = ("peft", "adapterhub", "merged", "onnx")


def check(format: str | None, path: str | None, encoder: Encoder, run: Path, *, overwrite: bool) -> tuple[str, Path]:
    """The format and the folder to be written for the saved run in `run`. Raises UserError where one cannot be."""
    if format not in FORMATS:
        raise UserError(f"export.format={format}: {did_you_mean(str(format), FORMATS)}")
    if not path:
        raise UserError(f"export.path={path}: expected the folder to write; type export.path=FOLDER")
    check_folder(Path(path), run, encoder, overwrite=overwrite)
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


def check_carried(form: str, run: SavedRun) -> None:
    """Raises UserError where the run makes something of a text that no such folder could tell its reader of."""
    rewritten = [name for name, asked in (run.config.get("preprocess") or {}).items() if asked]
    if rewritten and form != "merged":
        raise UserError(
            f"export.format={form}: {run.folder} rewrites posts before it reads them ({', '.join(rewritten)}), and whoever "
            f"loads such a folder would not; type export.format=merged, whose load.py does"
        )
    if form in ("merged", "onnx") and (counting := [*run.record.get("lexicons", {})]):
        raise UserError(
            f"export.format={form}: {run.folder} reads the counts of a word list beside each post (tasks "
            f"{', '.join(counting)}), which no reader of such a folder makes; use action=predict, or train it with "
            f"tasks.{counting[0]}.head.lexicon=null"
        )


def adapter(run: SavedRun, encoder: Encoder, library: str, folder: Path, *, seed: int, overwrite: bool = False) -> str:
    """Writes the run's adapter as PEFT or AdapterHub loads it, converted where it was saved by the other; says how."""
    model, own = encoder.model(dropout=True, seed=seed), run.record["library"]
    check_encoder(run, fingerprint(model), encoder)
    if own not in ("peft", "adapterhub"):
        raise UserError(
            f"export.format={library}: {run.folder} was saved by {run.record['method']} ({own}) on {encoder.source} and "
            f"holds no adapter of that kind; type export.format=merged"
        )
    if own == library:
        content: Callable[[Path], object] = partial(shutil.copytree, run.folder / "adapter", dirs_exist_ok=True)
    else:
        content = _converted(run, encoder, library, model)
    write(folder, run, encoder, library, content, overwrite=overwrite)
    if library == "peft":
        return f'PeftModel.from_pretrained(model, "{folder}") loads it'
    # AdapterHub looks for a pickle where it is not told otherwise
    return f'model.load_adapter("{folder}", set_active=True, use_safetensors=True) loads it'


def _converted(run: SavedRun, encoder: Encoder, library: str, model: Transformer) -> Callable[[Path], object]:
    """Gives what writes a LoRA of the other library for this one."""
    from hatemtl.methods import lora_formats

    try:
        updates = lora_formats.read(run, model)
    except Refusal as error:
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


def check_folder(folder: Path, run: Path, encoder: Encoder, *, overwrite: bool, key: str = "export.path") -> None:
    """Raises UserError where the folder cannot be written, or what no export left would be lost; it may be an empty one.

    key: where it was typed.
    """
    given = f"{key}={folder}"
    if folder.name in ("", ".."):
        raise UserError(f"{given}: expected the folder to write; type {key}=FOLDER")
    above = Path(os.path.realpath(folder)).parents
    runs = [
        ("a saved run", place) for place in above if all((place / file).is_file() for file in ("run.json", "config.yaml"))
    ]
    kept = [("the saved run", run), ("the encoder", Path(encoder.source)), *runs]  # an encoder of the hub is no folder here
    own = [("the working folder", Path.cwd()), ("the home folder", Path(os.path.expanduser("~")))]  # it may lie in these
    for what, place in [*kept, *own]:
        around, within = _lies_in(place, folder), _lies_in(folder, place)
        if around or (within and (what, place) not in own):
            how = "is" if around and within else "holds" if around else "lies in"
            raise UserError(f"{given} {how} {what}, {place}, which an export leaves alone; give another")
    if folder.is_symlink():
        raise UserError(f"{given} is a link to {os.readlink(folder)}; give the folder itself, or another")
    stands = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not stands.is_dir():
        raise UserError(f"{given}: {stands} is no folder; give another")
    if not os.access(stands, os.W_OK | os.X_OK):
        raise UserError(f"{given}: {stands} cannot be written; give another")
    if stands == folder and any(folder.iterdir()):
        _check_left(folder, given)
        if not overwrite:
            raise UserError(f"{given} exists already; give another, or overwrite=true to replace it")


def write(
    folder: Path,
    run: SavedRun,
    encoder: Encoder,
    form: str,
    content: Callable[[Path], object],
    *,
    overwrite: bool,
    key: str = "export.path",
) -> None:
    """Lets `content` fill a hidden neighbour of `folder`, then renames it: the folder is whole or as it was.

    It is marked as an export of the run. Raises UserError as `check_folder` does, whenever what stands there came,
    and where the system refuses it, which then is kept elsewhere.
    """

    def whole(folder: Path) -> None:
        check_folder(folder, run.folder, encoder, overwrite=overwrite, key=key)
        hidden, old = (folder.with_name(f".{folder.name}.{os.getpid()}{end}") for end in ("", ".replaced"))
        try:
            hidden.mkdir(parents=True)
            content(hidden)
            share(hidden)
            # by its name alone: the folder may be given away, and where runs lie is its owner's affair
            said: dict[str, Any] = {"format": form, "run": run.folder.resolve().name, "digest": run.digest()}
            said |= {"hatemtl": version("hatemtl"), "files": sorted(_files(hidden))}
            (hidden / MARKER).write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            if not overwrite or not folder.exists() or not any(folder.iterdir()):
                os.replace(hidden, folder)  # fails where a folder that holds anything, a file or a link came meanwhile
                return
            os.replace(folder, old)
            try:
                _check_left(old, f"{key}={folder}")  # again: by its own name anyone could have changed it until now
                os.replace(hidden, folder)
            except BaseException:
                os.replace(old, folder)
                raise
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)

    with kept_elsewhere(folder, whole, given=f"{key}="):
        whole(folder)


def _check_left(folder: Path, given: str) -> None:
    """Raises UserError where an export did not leave the folder, or not all that it holds."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        marker = None
    match marker:
        case {"format": str(), "files": [*files]}:
            others = sorted(_files(folder) - {MARKER, *map(str, files)})
        case _:
            raise UserError(f"{given} has no valid {MARKER}, so no export left it; give another, or an empty one")
    if others:
        raise UserError(f"{given} holds {', '.join(others[:4])}, which no export left there; move it away, or give another")


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


def _lies_in(inner: Path, outer: Path) -> bool:
    """Tells whether one is the other or lies in it, by whatever names they are called."""
    place = Path(os.path.realpath(inner))
    return os.path.exists(outer) and any(os.path.exists(p) and os.path.samefile(p, outer) for p in (place, *place.parents))
