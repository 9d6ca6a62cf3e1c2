"""Methods of AdapterHub's `adapters` library, which only this file imports: train a LoRA, load one, merge several."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, ClassVar

import adapters
import torch
from adapters.configuration import LoRAConfig
from adapters.methods.lora import LoRA as LoRAModule
from adapters.methods.lora import LoRALayer, LoRALinearTorch, LoRAMergedLinear
from safetensors import SafetensorError
from torch import nn

from hatemtl.artifacts import SavedRun
from hatemtl.encoder import Transformer
from hatemtl.errors import UserError
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.merging.mean import Merge
from hatemtl.methods.base import check_leave_out, draw_lora_A, module_name, saved_by
from hatemtl.methods.bert_layer import fuse
from hatemtl.methods.lora_linear import LoRALinear

LIBRARY = "adapterhub"
WEIGHTS = "adapter/adapter.safetensors"
# The adapter's name inside the name of a parameter, whatever the kind of adapter.
PATTERN = re.compile(r"\.(?:loras|adapters|prefix_tunings|refts)\.([^.]+)\.")


def enable(model: Transformer) -> Any:
    """Gives the model AdapterHub's methods, in place; it is typed as anything, for they are added at run time."""
    without_bias = {path for path, m in model.named_modules() if isinstance(m, nn.Linear) and m.bias is None}
    with torch.random.fork_rng(devices=[]):  # it draws weights for layers that it then gives their own
        adapters.init(model)  # type: ignore[attr-defined]
    for path, module in model.named_modules():
        if path in without_bias:
            module.bias = None  # ModernBERT's query-key-value layer would come out with a random one
    return model


def add(model: Any, name: str, config: LoRAConfig, seed: int) -> None:
    """Adds a LoRA whose A's are drawn by layer; no other random draw moves."""
    with torch.random.fork_rng(devices=[]):
        model.add_adapter(name, config=config)
    for path, layer, lora in loras(model, name):
        for projection, A, _ in _factors(layer, lora):
            draw_lora_A(A, seed=seed, layer=path + projection)


def load(model: Any, run: SavedRun, name: str) -> None:
    """Loads a saved run's adapter under `name`, from safetensors and nothing else.

    Raises UserError where it is broken or leaves a weight untrained.
    """
    run.weights(WEIGHTS)  # the library would fall back to a pickle where this file is missing
    seen: dict[str, list[str]] = {}
    try:
        with torch.random.fork_rng(devices=[]):
            model.load_adapter(str(run.folder / "adapter"), load_as=name, use_safetensors=True, loading_info=seen)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{run.folder / 'adapter'} cannot be read ({error}); train it again with overwrite=true") from error
    if missing := seen.get("missing_keys"):
        raise UserError(f"{run.folder / WEIGHTS} lacks {', '.join(missing[:3])}; train it again with overwrite=true")


def train(model: Any, name: str) -> Any:
    """Freezes the body, activates adapter `name` and, where it is a plain LoRA, computes it by LoRALinear and BertLayer."""
    model.train_adapter(name)
    adapted = list(loras(model, name))
    plain = [(layer, lora) for _, layer, lora in adapted if _plain(layer, lora)]
    for layer, lora in plain:
        layer.forward = LoRALinear(layer, lora.lora_A, lora.lora_B, lora.scaling)
    if type(model.adapters_config.get(name)) is LoRAConfig and len(plain) == len(adapted):
        fuse(model)
    return model


def _plain(layer: LoRALayer, lora: LoRAModule) -> bool:
    if type(layer) is not LoRALinearTorch or layer.fan_in_fan_out or type(lora) is not LoRAModule:
        return False
    return not (lora.use_gating or lora.use_dora or isinstance(lora.lora_dropout, nn.Dropout))


def active(model: Any) -> list[str]:
    """The names of the adapters in the active setup."""
    return list(model.active_adapters.flatten()) if model.active_adapters else []


def save(model: Any, name: str, folder: Path) -> None:
    """Writes adapter/adapter_config.json and adapter/adapter.safetensors."""
    model.save_adapter(str(folder / "adapter"), name, use_safetensors=True)


def loras(model: nn.Module, name: str) -> Iterable[tuple[str, LoRALayer, LoRAModule]]:
    """Every layer that LoRA `name` adapts: its path, the layer, the LoRA on it."""
    for path, module in model.named_modules():
        if isinstance(module, LoRALayer) and name in module.loras:
            yield path, module, module.loras[name]


def _factors(layer: LoRALayer, lora: LoRAModule) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Views of A and B for each projection of the layer: one, or q, k and v where an encoder keeps them in one matrix."""
    if not isinstance(layer, LoRAMergedLinear):
        return [("", lora.lora_A, lora.lora_B)]
    names = [name for name in "qkv" if name in lora.attn_matrices]
    return [
        (f".{name}", A, B)
        for name, A, B in zip(names, lora.lora_A.chunk(len(names)), lora.lora_B.chunk(len(names)), strict=True)
    ]


def updates(model: nn.Module, name: str) -> dict[str, LoRAUpdate]:
    """LoRA `name` as one update a layer."""
    return {
        path + projection: LoRAUpdate(A.detach(), B.detach(), lora.scaling)
        for path, layer, lora in loras(model, name)
        for projection, A, B in _factors(layer, lora)
    }


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Trains a new LoRA (Hu et al. 2022, arXiv:2106.09685) on the frozen encoder.

    rank: r. alpha: the update is scaled by alpha / r. dropout: on the LoRA's input. attention: which of q, k, v carry one.
    intermediate, output: whether the two feed-forward layers carry one. leave_out: layers without any, counted from 0.
    """

    rank: int
    alpha: float
    dropout: float
    attention: Sequence[str]
    intermediate: bool
    output: bool
    leave_out: Sequence[int]
    learning_rate: float
    body_dropout: bool
    library: ClassVar[str] = LIBRARY
    adapter_pattern: ClassVar[re.Pattern[str]] = PATTERN
    active = staticmethod(active)
    save = staticmethod(save)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"method.rank={self.rank}: expected a whole number from 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"method.dropout={self.dropout}: expected a probability below 1")
        if not isinstance(self.intermediate, bool) or not isinstance(self.output, bool):
            raise UserError("method.intermediate and method.output are true or false")  # Hydra reads "no" as a word
        if not set(self.attention) <= set("qkv"):
            raise UserError(
                f"method.attention={list(self.attention)}: expected some of q, k, v; type method.attention=[q,v]"
            )
        if not (self.attention or self.intermediate or self.output):
            raise UserError("method: LoRA on no layer at all; type method.attention=[q,k,v]")

    def starts_from(self) -> list[SavedRun]:
        return []

    def attach(self, model: Transformer, *, name: str, seed: int) -> nn.Module:
        adapted = enable(model)
        config = LoRAConfig(
            r=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            selfattn_lora=bool(self.attention),
            attn_matrices=list(self.attention),
            intermediate_lora=self.intermediate,
            output_lora=self.output,
            leave_out=check_leave_out(self.leave_out, model.config.num_hidden_layers),
        )
        add(adapted, name, config, seed)
        return train(adapted, name)


@dataclass(frozen=True, kw_only=True)
class Load:
    """Starts from the adapter of a saved run, to test it, to predict with it or to train it further."""

    path: str | None
    learning_rate: float
    body_dropout: bool
    library: ClassVar[str] = LIBRARY
    adapter_pattern: ClassVar[re.Pattern[str]] = PATTERN
    active = staticmethod(active)
    save = staticmethod(save)

    def starts_from(self) -> list[SavedRun]:
        if self.path is None:
            raise UserError("method=ah_load needs the saved run to load; type load_path=FOLDER")
        return [saved_by(SavedRun(self.path), LIBRARY, f"load_path={self.path}")]

    def attach(self, model: Transformer, *, name: str, seed: int) -> nn.Module:
        adapted = enable(model)
        load(adapted, self.starts_from()[0], name)
        return train(adapted, name)


@dataclass(frozen=True, kw_only=True)
class MergeLoRA:
    """Starts from the merge of several saved LoRAs; the sources stay loaded, frozen and inactive.

    sources: a glob of saved runs, at least one; each is loaded under its folder's name.
    """

    sources: str
    merge: Merge
    learning_rate: float
    body_dropout: bool
    library: ClassVar[str] = LIBRARY
    adapter_pattern: ClassVar[re.Pattern[str]] = PATTERN
    active = staticmethod(active)
    save = staticmethod(save)

    def starts_from(self) -> list[SavedRun]:
        if not self.sources:
            raise UserError("method=ah_merge16 needs the saved runs to merge; type method.sources=\"'adapters/run_*'\"")
        folders = sorted(folder for folder in glob(self.sources) if Path(folder).is_dir())
        if not folders:
            raise UserError(
                f"method.sources={self.sources!r} matches no saved run (from {Path.cwd()}); train one with save_path=FOLDER"
            )
        return [saved_by(SavedRun(folder), LIBRARY, f"method.sources={self.sources!r}") for folder in folders]

    def attach(self, model: Transformer, *, name: str, seed: int) -> nn.Module:
        adapted = enable(model)
        names: list[str] = []
        for run in self.starts_from():
            names.append(module_name(run.folder.resolve().name, taken=[*names, name]))
            load(adapted, run, names[-1])
        if any(not updates(adapted, source) for source in names):
            raise UserError(
                f"method.sources={self.sources!r}: not every source is a LoRA, and this method merges nothing else"
            )
        merged, _ = self.merge([updates(adapted, source) for source in names])
        add(adapted, name, _union([adapted.adapters_config.get(source) for source in names], merged), seed)
        with torch.no_grad():
            for path, layer, lora in loras(adapted, name):
                for projection, A, B in _factors(layer, lora):
                    # fresh rows of A under zeros of B, where no source has any, add nothing and can learn
                    if (update := merged.get(path + projection)) is None:
                        continue
                    A[: update.rank].copy_(update.A)
                    B[:, : update.rank].copy_(update.B)
        return train(adapted, name)


def _union(configs: Sequence[LoRAConfig], merged: Mapping[str, LoRAUpdate]) -> LoRAConfig:
    """The configuration of a LoRA on every layer that any source adapts, of the merged rank and scale."""
    rank = max(update.rank for update in merged.values())
    return configs[0].replace(
        r=rank,
        alpha=next(iter(merged.values())).scale * rank,  # a merge gives every layer one scale
        selfattn_lora=any(config.selfattn_lora for config in configs),
        attn_matrices=[name for name in "qkv" if any(name in config.attn_matrices for config in configs)],
        intermediate_lora=any(config.intermediate_lora for config in configs),
        output_lora=any(config.output_lora for config in configs),
        leave_out=sorted(set.intersection(*(set(config.leave_out) for config in configs))),
    )
