"""Methods of AdapterHub's `adapters` library: train an adapter of any kind, load what was saved."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from adapters.configuration import LoRAConfig
from torch import nn

from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.methods.adapterhub.configuration_strings import configuration
from hatemtl.methods.adapterhub.library import (
    LIBRARY,
    PATTERN,
    SETUP,
    active,
    add,
    enable,
    load,
    train,
    try_out,
)
from hatemtl.methods.adapterhub.several_adapters import restore, save
from hatemtl.methods.base import check_leave_out, check_lora, module_name, saved_by, to_load
from hatemtl.methods.lora_source import folders
from hatemtl.saved_runs.saved_run import SavedRun


def matching(sources: str, method: str) -> list[SavedRun]:
    """The finished runs that a glob matches, in order, at least one: AdapterHub's, and PEFT's, of which LoRAs are taken."""
    runs = folders(sources, method)
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
        check_lora(rank=self.rank, alpha=self.alpha, dropout=self.dropout)
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
        return to_load(self.path, LIBRARY)

    def attach(self, model: Transformer, *, name: str, seed: int) -> nn.Module:
        adapted, run = enable(model), self.starts_from()[0]
        if (run.folder / SETUP).is_file():
            return restore(adapted, run, name, seed)
        load(adapted, run, name)
        return train(adapted, name)
