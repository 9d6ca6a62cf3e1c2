"""Methods of the `peft` library: train a LoRA, train an adapter of any of its kinds, load one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from hatemtl.encoders.pretrained import Transformer
from hatemtl.methods.base import check_lora, to_load
from hatemtl.methods.peft_adapters.library import (
    LIBRARY,
    PATTERN,
    active,
    add,
    check_forward,
    check_kind,
    check_pattern,
    kinds,
    load,
    save,
    train,
)
from hatemtl.saved_runs.saved_run import SavedRun


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Trains a new LoRA on the frozen encoder.

    rank: r. alpha: the update is scaled by alpha / r. dropout: on the LoRA's input.
    targets: a regular expression over layer paths; None takes the layers that ah_lora16 adapts.
    leave_out: layers of the encoder without any, counted from 0.
    """

    rank: int
    alpha: int
    dropout: float
    targets: str | None
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
        check_pattern(self.targets)

    def starts_from(self) -> list[SavedRun]:
        return []

    def attach(self, model: Transformer, *, name: str, seed: int) -> nn.Module:
        options = {"r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout}
        return train(add(model, kinds()["LoraConfig"], options, targets=self.targets, leave_out=self.leave_out, seed=seed))


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Trains a new adapter of any kind that PEFT has on the frozen encoder.

    kind: the name of its configuration in PEFT. options: keys of that configuration; None keeps PEFT's defaults.
    targets: a regular expression over layer paths; None takes those of ah_lora16, or of the kind's paper.
    leave_out: layers of the encoder without any, counted from 0.
    """

    kind: str
    options: Mapping[str, Any] | None
    targets: str | None
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
        check_pattern(self.targets)
        check_kind(self.kind, self.options)

    def starts_from(self) -> list[SavedRun]:
        return []

    def attach(self, model: Transformer, *, name: str, seed: int) -> nn.Module:
        config = kinds()[self.kind]
        wrapped = add(model, config, self.options or {}, targets=self.targets, leave_out=self.leave_out, seed=seed)
        check_forward(wrapped, f"{self.kind} on {model.config.model_type}")
        return train(wrapped)


@dataclass(frozen=True, kw_only=True)
class Load:
    """Starts from the adapter of a saved run, to test it, to predict with it or to train it further."""

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
        return train(load(model, self.starts_from()[0]))
