"""Brings an adapter of the hub, of AdapterHub's, PEFT's or a published run's layout, into the layout of a saved run.

What is fetched is pinned: the folder is named after the repository and the commit. Weights are read as safetensors alone.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hatemtl.errors import UserError, unreadable
from hatemtl.machine import json_object
from hatemtl.machine.hub import NAME, fetch, parted

OWN = ("run.json", "config.yaml", "labels.json", "heads.safetensors")  # of a run that action=publish wrote
FILES = {"peft": "adapter_model.safetensors", "adapterhub": "adapter.safetensors"}
PICKLES = {"peft": "adapter_model.bin", "adapterhub": "pytorch_adapter.bin"}
SETTINGS = "adapter_config.json"
HEADS = ("classifier", "score", "pooler", "heads", "lm_head", "cls")  # modules of a model that are no encoder's
BODY = ("encoder", "embeddings", "layers", "layer")  # with which the paths of an encoder alone begin
AGAIN = "give another adapter, or the folder of a saved run"


def is_named(given: str) -> bool:
    """Tells whether this can only be a repository: OWNER/NAME or OWNER/NAME@REVISION, and no path that leads anywhere here.

    >>> is_named("me/adapter"), is_named("me/adapter@refs/pr/1"), is_named("me/one/two"), is_named("run")
    (True, True, False, False)

    What begins with adapters/ is none: runs lie there by default, and one that is gone, or typed in another folder, must not
    come from a stranger of that name.
    """
    here = given.startswith("adapters/") or os.path.exists(given) or os.path.isdir(os.path.dirname(given) or ".")
    return NAME.fullmatch(given) is not None and not here


def adopted(given: str) -> Path:
    """Fetches the adapter unless it is cached; gives the folder in which it lies as a saved run.

    Raises UserError where the hub has none in safetensors, or is out of reach.
    """
    repo, revision = parted(given)
    patterns = [*OWN, *(f"{place}{name}" for place in ("", "adapterhub/", "peft/") for name in (SETTINGS, *FILES.values()))]
    way_out = (
        f"no folder here is called {given} either; check the path, or fetch it where there is a network (`hf download "
        f"{repo}{f' --revision {revision}' if revision else ''}`) and copy the cache that HF_HOME names"
    )
    snapshot = fetch(given, kind="model", patterns=patterns, way_out=way_out)
    place = _cache() / f"{repo.replace('/', '--')}@{snapshot.name}"
    if not (place / "run.json").is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as work:
            made = Path(work) / "run"
            made.mkdir()
            _lay_out(snapshot, made, f"{repo}@{snapshot.name}")
            if not place.exists():
                os.replace(made, place)
        print(f"note: {given} is no folder here, so it was read from the hub: {place}")
    return place


def _cache() -> Path:
    return Path(os.environ.get("HATEMTL_CACHE") or "~/.cache/hatemtl").expanduser() / "hub"


def _lay_out(snapshot: Path, into: Path, name: str) -> None:
    """Lays what was fetched out as a saved run: a published one whole, another adapter without heads and tasks."""
    published = all((snapshot / file).is_file() for file in OWN)
    library, source = _found(snapshot, name)
    if published:
        for file in OWN[1:]:
            shutil.copy(snapshot / file, into / file)
        record = json_object.read(snapshot / "run.json", AGAIN)
    else:
        (into / "config.yaml").write_text("tasks: {}\nencoder: {}\n", encoding="utf-8")
        (into / "labels.json").write_text("{}\n", encoding="utf-8")
        settings = json_object.read(source / SETTINGS, AGAIN)
        base = settings.get("base_model_name_or_path") or settings.get("model_name") or "an encoder that it does not name"
        record = {"method": f"an adapter of the hub, {name}", "encoder": None, "encoder_source": base, "seed": None}
    adapter = into / "adapter"
    adapter.mkdir()
    _normal(library, source, adapter)
    told = {**record, "library": library, "hub": name, "sources": {}}
    (into / "run.json").write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _found(snapshot: Path, name: str) -> tuple[str, Path]:
    """The library of the adapter that is there, and its folder."""
    for place in (snapshot / "adapterhub", snapshot, snapshot / "peft"):
        for library, weights in FILES.items():
            if (place / weights).is_file() and (place / SETTINGS).is_file():
                return library, place
    if (snapshot / SETTINGS).is_file():
        pickle = PICKLES["peft" if "peft_type" in json_object.read(snapshot / SETTINGS, AGAIN) else "adapterhub"]
        raise UserError(
            f"{name} has no adapter in safetensors ({' or '.join(FILES.values())}), and hatemtl reads no pickle, such as "
            f"{pickle}; ask its author to save it with use_safetensors, or {AGAIN}"
        )
    raise UserError(f"{name} of the hub holds no adapter of PEFT or AdapterHub, {SETTINGS} is missing; {AGAIN}")


def _normal(library: str, source: Path, into: Path) -> None:
    """Copies an adapter as one of the encoder alone, without heads and without the name that a model with one gives it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file  # and torch, which readers of results do without

    settings = json_object.read(source / SETTINGS, AGAIN)
    try:
        tensors = load_file(source / FILES[library])
    except (OSError, SafetensorError) as error:
        raise unreadable(source / FILES[library], error, AGAIN) from error
    before = "base_model.model." if library == "peft" else ""
    paths = {key.removeprefix(before): tensor for key, tensor in tensors.items()}
    paths = {key: tensor for key, tensor in paths.items() if not {*key.split(".")[:2]} & {*HEADS}}
    first = {key.partition(".")[0] for key in paths}
    prefix = f"{first.pop()}." if len(first) == 1 and not first & {*BODY} else ""
    save_file({before + key.removeprefix(prefix): tensor for key, tensor in paths.items()}, into / FILES[library])
    if library == "peft":
        settings = _without_head(settings, lambda path: path.removeprefix(prefix))
    (into / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _without_head(settings: Mapping[str, Any], bare: Callable[[str], str]) -> dict[str, Any]:
    targets = settings.get("target_modules")
    if isinstance(targets, list):
        targets = [bare(str(path)) for path in targets]
    return {**settings, "target_modules": targets, "modules_to_save": None, "task_type": None}
