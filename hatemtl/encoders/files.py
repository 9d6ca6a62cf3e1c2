"""Guards a pretrained encoder's files: none may lead to code, pickles or weights from elsewhere; the weights must fit."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hatemtl.errors import UserError
from hatemtl.machine import json_object

# Keys that make transformers import or download code while a model is loaded (`auto_map` by design, the attention ones
# because 4.57 takes a hub kernel's name from them, CVE-2026-4372), or read files that no one has looked at before.
CODE, FILES = "runs code from elsewhere", "leads to other files"
REFUSED_KEYS = {
    **dict.fromkeys(("auto_map", "_attn_implementation_internal", "custom_pipelines"), CODE),
    **dict.fromkeys(("configuration_files", "transformers_weights", "backbone", "use_pretrained_backbone"), FILES),
}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
WAY_OUT = "type encoder=minilm (installed with hatemtl) or encoder.source=FOLDER of a downloaded encoder"
AGAIN = f"download the encoder again, or {WAY_OUT}"


def guard(folder: Path) -> None:
    """Raises UserError where a file names code or weights from elsewhere, before any library reads it."""
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: adapter_config.json there leads to other weights; remove it, or {WAY_OUT}")
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        for key, value in _items(json_object.read(path, AGAIN) if path.is_file() else {}):
            kernel = key.endswith("attn_implementation") and "/" in str(value)
            if key in REFUSED_KEYS or kernel:
                raise UserError(
                    f"{path}: carries {key}={value!r:.80}, which {CODE if kernel else REFUSED_KEYS[key]} when the model is "
                    f"loaded; do not load this encoder, or remove the key if you wrote the file yourself"
                )


def _items(content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        yield from content.items()
        content = [*content.values()]
    for value in content if isinstance(content, list) else ():
        yield from _items(value)


def weight_files(folder: Path, source: str) -> list[str]:
    """Names the files of weights. Raises UserError where there is neither model.safetensors nor what an index names."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (index := folder / INDEX).is_file():
        if others := sorted(path.name for path in folder.glob("model*.safetensors")):
            raise UserError(
                f"encoder.source={source}: has {others[0]}, but neither {WEIGHTS} nor {INDEX}; if all weights are in that "
                f"file, rename it to {WEIGHTS}; else {AGAIN}"
            )
        raise UserError(
            f"encoder.source={source}: has no {WEIGHTS}, and hatemtl reads no pickled weights; "
            f"name a revision that has them (encoder.source=OWNER/NAME@refs/pr/N), make a folder that has them "
            f"(uv run scripts/convert_encoder.py {source} FOLDER), or {WAY_OUT}"
        )
    files = json_object.read(index, AGAIN).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise UserError(f"{index}: has no weight_map, expected one from each weight to its file; {AGAIN}")
    for file in files.values():  # judged by name, for in a hub's cache every file is a link to one elsewhere
        if not isinstance(file, str) or Path(file).name != file or Path(file).suffix != ".safetensors":
            raise UserError(
                f"{index}: names {file!r} as a file of weights, expected the name of a .safetensors file beside it; "
                f"do not load this encoder, or {AGAIN}"
            )
        if not (folder / file).is_file():
            raise UserError(f"{index}: {file} is missing; {AGAIN}")
    return sorted({*files.values()})


def check_fit(model: nn.Module, seen: Mapping[str, Any], folder: Path, prefix: str) -> None:
    """Raises UserError where weights of the body were missing or of another shape, or there were more of them.

    seen: what transformers says of the loading. prefix: by which a model with a head names the body. A pooler may be
    missing, and heads may be there: encoders are published with those that they were pretrained with.
    """
    missing = [key for key in seen["missing_keys"] if not key.startswith("pooler.")]
    missing += [key for key, parameter in model.named_parameters() if parameter.is_meta]  # an index lied
    parts = {key.split(".")[0] for key in model.state_dict()}
    others = [key if isinstance(key, str) else key[0] for key in seen["mismatched_keys"]]  # transformers 5 adds shapes
    unexpected = (key.removeprefix(f"{prefix}.") for key in seen["unexpected_keys"])
    extra = [key for key in unexpected if key.split(".")[0] in parts]
    said = []
    for what, keys in {"missing": missing, "of another shape": others, "too many": extra}.items():
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            said.append(f"{len(keys)} {what} ({', '.join(sorted(keys)[:3])}{more})")
    if said:
        raise UserError(
            f"the weights in {folder} do not fit the {type(model).__name__} of its config.json: {', '.join(said)}; {AGAIN}"
        )
