"""Fuses and gates saved LoRAs in a bank: they stay frozen, and what is trained says how much each counts, layer by layer."""

from dataclasses import dataclass

from torch import nn

from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.merging.lora import Updates
from hatemtl.methods.bank.lora_bank import LIBRARY, Gating, fill, load
from hatemtl.methods.base import Attached, Method, module_name, to_load
from hatemtl.methods.lora_source import found, read
from hatemtl.saved_runs.saved_run import SavedRun


@dataclass(frozen=True, kw_only=True)
class Fusion(Method):
    """Trains attention over the outputs of saved LoRAs in every layer that they adapt; it starts as their exact average.

    sources: a glob of saved runs, in the order of their names. key_width: of queries and keys; weights of N sources lie in
    N - 1 dimensions, so few are needed.
    """

    sources: str
    key_width: int
    library = LIBRARY

    def __post_init__(self) -> None:
        if self.key_width < 1:
            raise UserError(f"method.key_width={self.key_width}: expected a whole number from 1; type method.key_width=4")

    def starts_from(self) -> list[SavedRun]:
        return found(self.sources, "lora_fusion")

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        gating = Gating(key_width=self.key_width)
        return Attached(fill(model, _read(self.starts_from(), model), gating=gating, name=name, seed=seed))


@dataclass(frozen=True, kw_only=True)
class Gate(Method):
    """Trains one weight a source and layer of saved LoRAs; it starts as their exact average.

    sources: a glob of saved runs, in the order of their names. input: whether the weights depend on the layer's input.
    softmax: whether they sum to 1; otherwise they may be of any size and sign.
    """

    sources: str
    input: bool
    softmax: bool
    library = LIBRARY

    def starts_from(self) -> list[SavedRun]:
        return found(self.sources, "lora_gate")

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        gating = Gating(input=self.input, softmax=self.softmax)
        return Attached(fill(model, _read(self.starts_from(), model), gating=gating, name=name, seed=seed))


@dataclass(frozen=True, kw_only=True)
class Load(Method):
    """Starts from the sources and gates of a saved run, to test it, to predict with it or to train its gates further."""

    path: str | None
    library = LIBRARY

    def starts_from(self) -> list[SavedRun]:
        return to_load(self.path, LIBRARY)

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        return Attached(load(model, self.starts_from()[0], name=name))


def _read(runs: list[SavedRun], model: nn.Module) -> dict[str, Updates]:
    """The sources by the names of their folders, told apart where these are equal."""
    sources: dict[str, Updates] = {}
    for run in runs:
        sources[module_name(run.folder.resolve().name, taken=list(sources))] = read(run, model)
    return sources
