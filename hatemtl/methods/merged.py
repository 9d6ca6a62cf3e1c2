"""Starts from the merge of several saved runs, written into the weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hatemtl.encoders.fast import accelerate
from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, merge_each
from hatemtl.merging.lora import Updates
from hatemtl.methods import full, lora_formats
from hatemtl.methods.base import Attached, Method
from hatemtl.saved_runs.saved_run import SavedRun


@dataclass(frozen=True, kw_only=True)
class MergedWeights(Method):
    """Starts from the merge of saved LoRAs or fully trained encoders, written into the weights, all of which are trained."""

    sources: str = field()
    merge: Merge = field()
    library = full.LIBRARY
    takes = (*Method.takes, library.name)

    def starts_from(self) -> list[SavedRun]:
        runs = super().starts_from()
        libraries = {run.record["library"] for run in runs}
        if self.library.name in libraries and len(libraries) > 1:
            given = f"method.sources={self.sources!r}: these were saved by {', '.join(sorted(libraries))}"
            raise UserError(f"{given}; expected LoRAs (adapterhub, peft) or fully trained encoders (full), and not both")
        return runs

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        runs = self.starts_from()
        if runs[0].record["library"] == self.library.name:
            given = [(str(run.folder), run.tensors(full.WEIGHTS)) for run in runs]
            merged = merged_changes(self.merge, model.state_dict(), given)
            notes: tuple[str, ...] = ()
        else:
            sources = [lora_formats.read(run, model) for run in runs]
            found = merge_each(self.merge, sources, [str(run.folder) for run in runs])
            merged = ((f"{layer}.weight", update) for layer, update in found)
            notes = left_alone(runs, sources)
        weights = dict(model.named_parameters())
        with torch.no_grad():
            for key, update in merged:  # one at a time: all of them in double precision are twice the encoder
                weights[key].add_(update.to(weights[key]))
        accelerate(model.requires_grad_(True), own=True)
        return Attached(model, notes)


@dataclass(frozen=True, kw_only=True)
class KeptMerge(Method):
    """Starts from the merge of saved adapters, kept beside the encoder's weights; of LoRAs cut to `rank`, if that is one."""

    sources: str = field()
    merge: Merge = field()
    rank: int | None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise UserError(f"method.rank={self.rank}: expected a whole number from 1, or null, by which nothing is cut")


def left_alone(runs: Sequence[SavedRun], sources: Sequence[Updates]) -> tuple[str, ...]:
    """Notes each source that leaves layers as they are which another one changes."""
    changed = [[layer for layer, update in source.items() if update.B.any()] for source in sources]
    adapted, notes = dict.fromkeys(layer for layers in changed for layer in layers), []
    for run, own in zip(runs, changed, strict=True):
        if alone := [layer for layer in adapted if layer not in own]:
            some = ", ".join(alone[:2]) + (f" and {len(alone) - 2} more" if len(alone) > 2 else "")
            notes.append(f"{run.folder} does not adapt {some}, which another source does: there it is counted as zero")
    return tuple(notes)


def merged_changes(
    merge: Merge, start: Mapping[str, Tensor], sources: Sequence[tuple[str, Mapping[str, Tensor]]]
) -> Iterator[tuple[str, Tensor]]:
    """Merges how sources changed the weights that they started from, one weight after the other, in double precision."""
    for key, before in start.items():
        if not before.is_floating_point():
            continue
        for name, weights in sources:
            if key not in weights or weights[key].shape != before.shape:
                raise UserError(f"{name} has no {key} of shape {tuple(before.shape)}: it was trained on another encoder")
        changes = [{key: weights[key].detach().double() - before.detach().double()} for _, weights in sources]
        yield from merge_each(merge, changes)
