"""Lets several adapters of AdapterHub's library work together: puts them together, saves them as one run, loads them again.

adapter/setup.json          how they work together, their names in order, which is trained
adapter/NAME/               each adapter, and the fusion over them where there is one, in the library's own format
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from adapters.composition import Average, Fuse, Parallel, Stack
from adapters.configuration import AdapterFusionConfig, ConfigUnion
from adapters.methods.adapter_layer_base import AdapterLayerBase, ComposableAdapterLayerBase
from adapters.methods.bottleneck import BottleneckLayer
from adapters.methods.lora import LoRA, Vera
from adapters.methods.modeling import Adapter as Bottleneck
from adapters.methods.modeling import ParallelAdapter
from torch import nn

from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.machine import json_object
from hatemtl.methods.adapterhub import library
from hatemtl.methods.adapterhub.configuration_strings import kinds
from hatemtl.methods.adapterhub.library_fixes import added, in_order, late_average, weighted, without_residual
from hatemtl.methods.base import Library, fusion_width, module_name, try_out
from hatemtl.methods.lora_formats import SEVERAL
from hatemtl.saved_runs.saved_run import AGAIN, SavedRun
from hatemtl.saved_runs.writing import write_text
from hatemtl.seeds import seeded

# What the library would compute wrongly, or not at all, in each way of working together: by kind, with the reason.
FIRST_ALONE = "of several, the library lets only the first one act"
BOTTLENECKS = "the library fuses bottlenecks alone"
STACKED = {"reft": FIRST_ALONE, "inv": FIRST_ALONE, "dora": "a weight takes one magnitude"}
WRONG = {
    "Stack": STACKED,
    "Average": {**STACKED, "prefix": "the library cannot average prefixes"},
    "Fuse": {
        **dict.fromkeys(("dora", "vera", "ia3", "prefix", "reft"), BOTTLENECKS),
        **{"lora": f"{BOTTLENECKS} (for LoRAs type method=lora_fusion)", "inv": FIRST_ALONE},
    },
    "Parallel": {},
}
WAY_OUT = {
    "Stack": "go on with the source itself, method=ah_load, or let each answer by itself, method=ah_parallel",
    "Average": "type method=ah_parallel, which averages what they say at the end",
    "Fuse": "type method=ah_parallel, or train sources with method=ah_seq_bn",
    "Parallel": "name other sources",
}


def combine(model: Any, how: str, names: Sequence[str], trained: str | None, weights: Sequence[float] | None = None) -> Any:
    """Lets the adapters called `names` work together in every forward; all but the one called `trained` are frozen.

    how: one of `WRONG`; Average is in every layer, Parallel after the last, Fuse by the fusion called `trained`. weights: of
    an average, summing to 1.
    """
    check(model, how, names)
    shares = list(weights) if weights is not None else [1 / len(names)] * len(names)
    average, fuse = partial(Average, weights=shares, normalize_weights=False), partial(Fuse, name=trained)
    setup = {"Stack": Stack, "Average": average, "Parallel": Parallel, "Fuse": fuse}[how](*names)
    setup.weights = shares
    for layer in model.modules():
        if isinstance(layer, ComposableAdapterLayerBase):
            layer.mean = weighted
            here = [layer.adapter_modules[name] for name in names if name in layer.adapter_modules]
            if how == "Stack" and any(isinstance(adapter, LoRA | Vera | ParallelAdapter) for adapter in here):
                layer.compose_stack = partial(added, layer)  # each of these adds to the output, from the same input
    try:
        library.activate(model, setup, {trained} if trained else set())
    except ValueError as error:
        raise UserError(f"{error}; {WAY_OUT[how]}") from error
    if how == "Parallel":
        model.forward = partial(late_average, model.forward, dict(zip(names, shares, strict=True)))
    return try_out(model, f"{how} of {', '.join(names)}")


def check(model: Any, how: str, names: Sequence[str]) -> None:
    """Raises UserError where these adapters cannot work together in this way, with the reason and what to do instead."""
    encoder = model.config.model_type
    for name in names:
        config, several = model.adapters_config.get(name), f"{name} is made of several adapters on {encoder}"
        if how == "Fuse" and isinstance(config, ConfigUnion):
            raise UserError(f"{several}, which the library does not fuse; {WAY_OUT[how]}")
        for kind in sorted(kinds(config) & WRONG[how].keys()):
            raise UserError(f"{name} ({kind}) on {encoder}: {WRONG[how][kind]}; {WAY_OUT[how]}")
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, AdapterLayerBase)}
    for path, layer in layers.items() if how != "Parallel" else ():
        here = [name for name in names if name in layer.adapter_modules]
        if len({type(layer.adapter_modules[name]).__name__ for name in here}) > 1:
            raise UserError(
                f"{', '.join(here)} change {path} of {encoder} in different ways, which the library does not combine; "
                f"name sources of one kind"
            )
        if how != "Stack" and 0 < len(here) < len(names):
            raise UserError(
                f"{path} of {encoder} has an adapter in {', '.join(here)} alone; name sources that adapt the same layers"
            )


def add_fusion(
    model: Any, name: str, names: Sequence[str], config: AdapterFusionConfig, width: int | None, seed: int
) -> None:
    """Adds the fusion `name` over these adapters; width: of queries and keys, None for the encoder's own."""
    with seeded(seed, "fusion"):
        model.add_adapter_fusion(Fuse(*names, name=name), config=config)
        for layer in model.modules():
            if not isinstance(layer, BottleneckLayer) or name not in layer.adapter_fusion_layer:
                continue
            if names[0] not in layer.adapters:
                layer.delete_fusion_layer(name)  # a layer that the sources leave out
                continue
            fusion = layer.adapter_fusion_layer[name]
            fusion.dropout.p = config.dropout_prob  # the library takes none for the encoder's own
            fusion.register_forward_pre_hook(in_order)
            if width is not None:
                fusion.query = nn.Linear(fusion.dense_size, width).apply(Bottleneck.init_bert_weights)
                # a bias of keys would shift the scores of all sources alike
                fusion.key = nn.Linear(fusion.dense_size, width, bias=False).apply(Bottleneck.init_bert_weights)
            if isinstance(layer.adapters[names[-1]], ParallelAdapter):
                fusion.register_forward_pre_hook(without_residual)


def save(model: Any, name: str, folder: Path) -> None:
    """Writes what is active into folder/adapter: one adapter, or several with how they work together."""
    setup, target = model.active_adapters, folder / "adapter"
    how, names = type(setup).__name__, list(setup.children)
    if how == "Stack" and len(names) == 1:
        library.save_one(model, name, target)
        return
    for each in names:
        library.save_one(model, each, target / each)
    if how == "Fuse":
        model.save_adapter_fusion(str(target / name), setup, use_safetensors=True)
    trained = name if how in ("Stack", "Fuse") else None
    content = {"how": how, "names": names, "trained": trained, "weights": setup.weights}
    write_text(folder / SEVERAL, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def load(model: Transformer, run: SavedRun, name: str, seed: int) -> Any:
    """Loads a saved run, one adapter or several; what was trained stands under `name` and is trained again."""
    adapted, path = library.enable(model), run.folder / SEVERAL
    if not path.is_file():
        library.load_one(adapted, run, name)
        return library.train(adapted, name)
    saved: Any = json_object.read(path, AGAIN)
    how, names, trained, weights = (saved.get(key) for key in ("how", "names", "trained", "weights"))
    known = isinstance(how, str) and how in WRONG and isinstance(names, list) and (trained or how != "Fuse")
    called = [*names, *([] if trained is None else [trained])] if known else []  # as their folders in the run's
    if not known or not all(isinstance(each, str) and re.fullmatch(r"[^/\\.]+", each) for each in called):
        raise UserError(f"{path}: expected one of {', '.join(WRONG)} and names of adapters; train the run again")
    if not isinstance(weights, list) or [type(each) for each in weights] != [float] * len(names):
        raise UserError(f"{path}: weights={weights!r:.80}, expected one for each of {', '.join(names)}; train the run again")
    taken: dict[str, str] = {trained: name} if trained else {}
    for each in names:
        taken.setdefault(each, module_name(each, taken=[*taken.values(), name]))
        library.load_one(adapted, run, taken[each], inside=f"adapter/{each}")
    if how == "Fuse":
        _load_fusion(adapted, run, trained, name, [taken[each] for each in names], seed)
    return combine(adapted, how, [taken[each] for each in names], trained=name if trained else None, weights=weights)


LIBRARY = Library(name="adapterhub", pattern=library.PATTERN, quantizable=True, save=save, load=load, active=library.active)
OVER_FLOATS = replace(LIBRARY, quantizable=False)  # of methods whose adapters may be of kinds that read the weights


def _load_fusion(model: Any, run: SavedRun, saved: str, name: str, names: Sequence[str], seed: int) -> None:
    inside = f"adapter/{saved}/model_adapter_fusion.safetensors"
    tensors = run.tensors(inside)
    path = (run.folder / inside).with_name("adapter_fusion_config.json")
    try:
        config = AdapterFusionConfig(**json_object.read(path, AGAIN)["config"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); {AGAIN}") from error
    add_fusion(model, name, names, config, fusion_width(tensors), seed)
    place = ".adapter_fusion_layer.{}.".format
    given = {key.replace(place(saved), place(name)): tensor for key, tensor in tensors.items()}
    own = {key: parameter for key, parameter in model.named_parameters() if place(name) in key}
    library.take_in(run.folder / inside, given, own)
