"""Trains a LoRA or an adapter of any other kind of the `peft` library, and loads one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hatemtl.encoders.pretrained import Transformer
from hatemtl.methods.base import Attached, Method, check_lora, try_out
from hatemtl.methods.peft_adapters.library import LIBRARY, add, check_kind, train


@dataclass(frozen=True, kw_only=True)
class PEFTLoRA(Method):
    """Trains a new LoRA on the frozen encoder; its update is scaled by alpha / rank."""

    rank: int
    alpha: int
    dropout: float
    targets: str | None
    leave_out: Sequence[int]
    library = LIBRARY

    def __post_init__(self) -> None:
        check_lora(rank=self.rank, alpha=self.alpha, dropout=self.dropout)

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        options = {"r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout}
        return Attached(train(add(model, "LoraConfig", options, self.targets, self.leave_out, seed)))


@dataclass(frozen=True, kw_only=True)
class PEFTAdapter(Method):
    """Trains a new adapter of any kind that PEFT has on the frozen encoder, by the name of its configuration there."""

    kind: str
    options: Mapping[str, Any] | None
    targets: str | None
    leave_out: Sequence[int]
    library = LIBRARY

    def __post_init__(self) -> None:
        check_kind(self.kind, self.options or {})

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        wrapped = add(model, self.kind, self.options or {}, self.targets, self.leave_out, seed)
        return Attached(train(try_out(wrapped, f"method.kind={self.kind}")))


@dataclass(frozen=True, kw_only=True)
class LoadPEFT(Method):
    """Starts from the adapter of a saved run, to test it, to predict with it or to train it further."""

    path: str | None = field()
    library = LIBRARY
