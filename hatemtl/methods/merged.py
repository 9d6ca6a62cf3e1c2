"""Starts from the merge of several saved runs: kept as a LoRA, as an adapter, or written into the weights."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hatemtl.encoders.fast import accelerate
from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, merge_each, merge_factors
from hatemtl.merging.lora import Updates
from hatemtl.methods import full, lora_formats
from hatemtl.methods.adapterhub.configuration_strings import kinds, union
from hatemtl.methods.adapterhub.library import add, load_all, own_parameters, train, updates
from hatemtl.methods.adapterhub.several_adapters import LIBRARY
from hatemtl.methods.base import Attached, Method, try_out
from hatemtl.saved_runs.saved_run import SavedRun

# The kinds of adapter whose matrices are the weights of linear layers that read the tokens of posts, but for their gates.
LINEAR = {"seq_bn", "par_bn", "inv", "gated"}


@dataclass(frozen=True, kw_only=True)
class MergedAdapters(Method):
    """Starts from the merge of saved adapters of one kind; the sources stay loaded, frozen and inactive.

    LoRAs of any rank, scale and layers, of either library, are merged as updates ΔW, and the result is a LoRA, cut to
    `rank`. Adapters of another kind and one configuration are merged parameter by parameter, as differences to the weights
    that they started from, which is the same for all runs of this seed.
    """

    sources: str = field()
    merge: Merge = field()
    rank: int | None
    library = LIBRARY

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise UserError(f"method.rank={self.rank}: expected a whole number from 1, or null, by which nothing is cut")

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        runs = self.starts_from()
        adapted, names = self._loaded(model, runs, name, seed)
        if not lora_formats.is_lora(runs[0]):
            add(adapted, name, adapted.adapters_config.get(names[0]), seed)
            start = own_parameters(adapted, name)
            with torch.no_grad():
                for key, change in _changes(self.merge, start, [(each, own_parameters(adapted, each)) for each in names]):
                    start[key].add_(change.to(start[key]))
            return Attached(try_out(train(adapted, name), f"method.sources={self.sources!r}"))
        sources = [updates(adapted, source) for source in names]
        merged, lost = merge_factors(self.merge, sources, self.rank, names)
        rank = max(update.rank for update in merged.values())
        add(adapted, name, union([adapted.adapters_config.get(source) for source in names], rank), seed)
        for key, own in updates(adapted, name).items():
            own.B.zero_()  # under it fresh rows of A, where no source has any, add nothing and can learn
            if update := merged.get(key):
                own.A[: update.rank].copy_(update.A)
                own.B[:, : update.rank].copy_(update.scale * update.B)
        return Attached(train(adapted, name), _left_alone(runs, sources), lost)

    def each(self, model: Transformer, *, seed: int, linear: bool) -> Iterator[tuple[Transformer, dict[str, nn.Parameter]]]:
        runs = self.starts_from()
        adapted, names = self._loaded(copy.deepcopy(model), runs, "merged", seed)
        for run, name in zip(runs, names, strict=True):
            own = own_parameters(adapted, name)
            if linear:
                own = {key: p for key, p in own.items() if p.ndim == 2 and key.endswith(".weight") and ".gate." not in key}
                if (others := sorted(kinds(adapted.adapters_config.get(name)) - LINEAR)) or not own:
                    raise UserError(
                        f"merge=regmean weighs linear layers by what they read of posts, and {run.folder} "
                        f"({run.record['method']}) has {', '.join(others) or 'products in place of matrices'}; type "
                        f"merge=fisher, which takes adapters of any kind, or merge=mean"
                    )
            yield train(adapted, name), own

    def _loaded(self, model: Transformer, runs: Sequence[SavedRun], name: str, seed: int) -> tuple[Any, list[str]]:
        adapted, names = load_all(model, runs, name)
        if all(map(lora_formats.is_lora, runs)):
            return adapted, names
        given, configs = f"method.sources={self.sources!r}", [adapted.adapters_config.get(source) for source in names]
        for source, config, run in zip(names, configs, runs, strict=True):
            if config != configs[0]:
                raise UserError(
                    f"{given}: {names[0]} and {source} are adapters of different configurations, and only LoRAs can be "
                    f"merged then; name sources of one method"
                )
            if run.record["seed"] != seed:
                raise UserError(
                    f"{given}: {run.folder} started from the weights of seed {run.record['seed']}, this run has seed "
                    f"{seed}, and the entries of such adapters mean the same only if they started alike; type "
                    f"seed={run.record['seed']}, or train them with one seed"
                )
            if run.record.get("sources") and not self.merge.is_mean:
                raise UserError(
                    f"{given}: {run.folder} started from {', '.join(run.record['sources'])}, not from what its seed draws, "
                    f"and this merge needs what each changed since its start; type merge=mean, or leave it out"
                )
        return adapted, names


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
            merged = _changes(self.merge, model.state_dict(), [(str(run.folder), run.tensors(full.WEIGHTS)) for run in runs])
            notes: tuple[str, ...] = ()
        else:
            sources = [lora_formats.read(run, model) for run in runs]
            found = merge_each(self.merge, sources, [str(run.folder) for run in runs])
            merged = ((f"{layer}.weight", update) for layer, update in found)
            notes = _left_alone(runs, sources)
        weights = dict(model.named_parameters())
        with torch.no_grad():
            for key, update in merged:  # one at a time: all of them in double precision are twice the encoder
                weights[key].add_(update.to(weights[key]))
        accelerate(model.requires_grad_(True), own=True)
        return Attached(model, notes)


def _left_alone(runs: Sequence[SavedRun], sources: Sequence[Updates]) -> tuple[str, ...]:
    """Notes each source that leaves layers as they are which another one changes."""
    changed = [[layer for layer, update in source.items() if update.B.any()] for source in sources]
    adapted, notes = dict.fromkeys(layer for layers in changed for layer in layers), []
    for run, own in zip(runs, changed, strict=True):
        if alone := [layer for layer in adapted if layer not in own]:
            some = ", ".join(alone[:2]) + (f" and {len(alone) - 2} more" if len(alone) > 2 else "")
            notes.append(f"{run.folder} does not adapt {some}, which another source does: there it is counted as zero")
    return tuple(notes)


def _changes(
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
