"""Starts from the merge of several saved runs, kept as a LoRA or as an adapter of another kind."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.merging.base import merge_factors
from hatemtl.methods import lora_formats
from hatemtl.methods.adapterhub.configuration_strings import kinds, union
from hatemtl.methods.adapterhub.library import add, load_all, own_parameters, train, updates
from hatemtl.methods.adapterhub.several_adapters import LIBRARY
from hatemtl.methods.base import Attached, try_out
from hatemtl.methods.merged import KeptMerge, left_alone, merged_changes
from hatemtl.saved_runs.saved_run import SavedRun

# The kinds of adapter whose matrices are the weights of linear layers that read the tokens of posts, but for their gates.
LINEAR = {"seq_bn", "par_bn", "inv", "gated"}


@dataclass(frozen=True, kw_only=True)
class MergedAdapters(KeptMerge):
    """Starts from the merge of saved adapters of one kind; the sources stay loaded, frozen and inactive.

    LoRAs of any rank, scale and layers, of either library, are merged as updates ΔW, and the result is a LoRA, cut to
    `rank`. Adapters of another kind and one configuration are merged parameter by parameter, as differences to the weights
    that they started from, which is the same for all runs of this seed.
    """

    library = LIBRARY

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        runs = self.starts_from()
        adapted, names = self._loaded(model, runs, name, seed)
        if not lora_formats.is_lora(runs[0]):
            add(adapted, name, adapted.adapters_config.get(names[0]), seed)
            start = own_parameters(adapted, name)
            with torch.no_grad():
                sources = [(each, own_parameters(adapted, each)) for each in names]
                for key, change in merged_changes(self.merge, start, sources):
                    start[key].add_(change.to(start[key]))
            return Attached(try_out(train(adapted, name), f"method.sources={self.sources!r}"))
        loras = [updates(adapted, source) for source in names]
        merged, lost = merge_factors(self.merge, loras, self.rank, names)
        rank = max(1, *(update.rank for update in merged.values()))
        add(adapted, name, union([adapted.adapters_config.get(source) for source in names], rank), seed)
        for key, own in updates(adapted, name).items():
            own.B.zero_()  # under it fresh rows of A, where no source has any, add nothing and can learn
            if update := merged.get(key):
                own.A[: update.rank].copy_(update.A)
                own.B[:, : update.rank].copy_(update.scale * update.B)
        return Attached(train(adapted, name), left_alone(runs, loras), lost)

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
