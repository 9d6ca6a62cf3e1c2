"""Trains a LoRA or an adapter of any other kind of the `peft` library, and loads one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hatemtl.encoders.pretrained import Transformer
from hatemtl.methods.base import Attached, Method, check_lora, to_load
from hatemtl.methods.peft_adapters.library import (
    LIBRARY,
    add,
    check_forward,
    check_kind,
    check_pattern,
    kinds,
    load,
    train,
)
from hatemtl.saved_runs.saved_run import SavedRun


@dataclass(frozen=True, kw_only=True)
class LoRA(Method):
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
    library = LIBRARY

    def __post_init__(self) -> None:
        check_lora(rank=self.rank, alpha=self.alpha, dropout=self.dropout)
        check_pattern(self.targets)

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        options = {"r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout}
        wrapped = add(model, kinds()["LoraConfig"], options, targets=self.targets, leave_out=self.leave_out, seed=seed)
        return Attached(train(wrapped))


@dataclass(frozen=True, kw_only=True)
class Adapter(Method):
    """Trains a new adapter of any kind that PEFT has on the frozen encoder.

    kind: the name of its configuration in PEFT. options: keys of that configuration; None keeps PEFT's defaults.
    targets: a regular expression over layer paths; None takes those of ah_lora16, or of the kind's paper.
    leave_out: layers of the encoder without any, counted from 0.
    """

    kind: str
    options: Mapping[str, Any] | None
    targets: str | None
    leave_out: Sequence[int]
    library = LIBRARY

    def __post_init__(self) -> None:
        check_pattern(self.targets)
        check_kind(self.kind, self.options)

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        config = kinds()[self.kind]
        wrapped = add(model, config, self.options or {}, targets=self.targets, leave_out=self.leave_out, seed=seed)
        check_forward(wrapped, f"{self.kind} on {model.config.model_type}")
        return Attached(train(wrapped))


@dataclass(frozen=True, kw_only=True)
class Load(Method):
    """Starts from the adapter of a saved run, to test it, to predict with it or to train it further."""

    path: str | None
    library = LIBRARY

    def starts_from(self) -> list[SavedRun]:
        return to_load(self.path, LIBRARY)

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        return Attached(train(load(model, self.starts_from()[0])))
