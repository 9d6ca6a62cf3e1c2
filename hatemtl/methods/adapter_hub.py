"""Methods of AdapterHub's `adapters` library: train an adapter of any kind, load what was saved, merge several LoRAs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, ClassVar

import torch
from adapters.configuration import LoRAConfig
from torch import nn

from hatemtl.artifacts import SavedRun
from hatemtl.encoder import Transformer
from hatemtl.errors import UserError
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.merging.mean import Merge
from hatemtl.methods.ah_config import configuration
from hatemtl.methods.ah_library import (
    LIBRARY,
    PATTERN,
    SETUP,
    active,
    add,
    enable,
    factors,
    is_lora,
    load,
    loras,
    train,
    try_out,
    updates,
)
from hatemtl.methods.ah_setup import restore, save
from hatemtl.methods.base import check_leave_out, module_name, saved_by

__all__ = [
    *("LIBRARY", "PATTERN", "Adapter", "Load", "LoRA", "MergeLoRA"),
    *("active", "add", "enable", "load", "loras", "save", "train", "updates"),
]


def matching(sources: str, method: str) -> list[SavedRun]:
    """The finished runs that a glob matches, in order, at least one: AdapterHub's, and PEFT's, of which LoRAs are taken."""
    if not sources:
        raise UserError(f"method={method} needs the saved runs to start from; type method.sources=\"'adapters/run_*'\"")
    folders = sorted(folder for folder in glob(sources) if Path(folder).is_dir())
    if not folders:
        raise UserError(
            f"method.sources={sources!r} matches no saved run (from {Path.cwd()}); train one with save_path=FOLDER"
        )
    runs = [SavedRun(folder) for folder in folders]
    return [r if r.record["library"] == "peft" else saved_by(r, LIBRARY, f"method.sources={sources!r}") for r in runs]


def load_all(model: Any, runs: Sequence[SavedRun], name: str) -> list[str]:
    """Loads every run's adapter, each under its folder's name, none under `name`; gives their names."""
    names: list[str] = []
    for run in runs:
        names.append(module_name(run.folder.resolve().name, taken=[*names, name]))
        load(model, run, names[-1])
    return names


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
    stores_bf16: ClassVar[bool] = True
    quantizable: ClassVar[bool] = True
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
class Adapter:
    """Trains a new adapter of any kind that AdapterHub has on the frozen encoder.

    config: names and keys as the library writes them, `lora[r=8]|par_bn`. reduction_factor: the encoder's width divided by
    that of the bottlenecks; None as the names have it. leave_out: layers without an adapter, counted from 0.
    """

    config: str
    reduction_factor: float | None
    leave_out: Sequence[int]
    learning_rate: float
    body_dropout: bool
    library: ClassVar[str] = LIBRARY
    stores_bf16: ClassVar[bool] = True
    quantizable: ClassVar[bool] = False
    adapter_pattern: ClassVar[re.Pattern[str]] = PATTERN
    active = staticmethod(active)
    save = staticmethod(save)

    def __post_init__(self) -> None:
        configuration(self.config, reduction_factor=self.reduction_factor, leave_out=self.leave_out)

    def starts_from(self) -> list[SavedRun]:
        return []

    def attach(self, model: Transformer, *, name: str, seed: int) -> nn.Module:
        left_out = check_leave_out(self.leave_out, model.config.num_hidden_layers)
        config = configuration(self.config, reduction_factor=self.reduction_factor, leave_out=left_out)
        adapted = enable(model)
        add(adapted, name, config, seed)
        return try_out(train(adapted, name), f"method.config={self.config!r}")


@dataclass(frozen=True, kw_only=True)
class Load:
    """Starts from the adapter of a saved run, or from several at work together, to test, to predict or to train further."""

    path: str | None
    learning_rate: float
    body_dropout: bool
    library: ClassVar[str] = LIBRARY
    stores_bf16: ClassVar[bool] = True
    quantizable: ClassVar[bool] = True
    adapter_pattern: ClassVar[re.Pattern[str]] = PATTERN
    active = staticmethod(active)
    save = staticmethod(save)

    def starts_from(self) -> list[SavedRun]:
        if self.path is None:
            raise UserError("method=ah_load needs the saved run to load; type load_path=FOLDER")
        return [saved_by(SavedRun(self.path), LIBRARY, f"load_path={self.path}")]

    def attach(self, model: Transformer, *, name: str, seed: int) -> nn.Module:
        adapted, run = enable(model), self.starts_from()[0]
        if (run.folder / SETUP).is_file():
            return restore(adapted, run, name, seed)
        load(adapted, run, name)
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
    stores_bf16: ClassVar[bool] = True
    quantizable: ClassVar[bool] = True
    adapter_pattern: ClassVar[re.Pattern[str]] = PATTERN
    active = staticmethod(active)
    save = staticmethod(save)

    def starts_from(self) -> list[SavedRun]:
        return matching(self.sources, "ah_merge16")

    def attach(self, model: Transformer, *, name: str, seed: int) -> nn.Module:
        adapted = enable(model)
        names = load_all(adapted, self.starts_from(), name)
        if not all(is_lora(adapted, source) for source in names):
            raise UserError(
                f"method.sources={self.sources!r}: not every source is a LoRA, and this method merges nothing else"
            )
        merged, _ = self.merge([updates(adapted, source) for source in names])
        add(adapted, name, _union([adapted.adapters_config.get(source) for source in names], merged), seed)
        with torch.no_grad():
            for path, layer, lora in loras(adapted, name):
                for projection, A, B in factors(layer, lora):
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
