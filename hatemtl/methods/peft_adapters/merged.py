"""Starts from the merge of several saved LoRAs, kept as one LoRA in PEFT's format, without AdapterHub."""

from dataclasses import dataclass
from typing import Any

import torch

from hatemtl.encoders.pretrained import Transformer
from hatemtl.merging.base import merge_factors
from hatemtl.methods import lora_formats
from hatemtl.methods.base import Attached
from hatemtl.methods.merged import KeptMerge, left_alone
from hatemtl.methods.peft_adapters.library import LIBRARY, NAME, add, train


@dataclass(frozen=True, kw_only=True)
class MergedLoRA(KeptMerge):
    """Starts from the merge of saved LoRAs of any rank, scale, layers and library, as updates ΔW, cut to `rank`."""

    library = LIBRARY

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        runs = self.starts_from()
        loras = [lora_formats.read(run, model) for run in runs]
        merged, lost = merge_factors(self.merge, loras, self.rank, [str(run.folder) for run in runs])
        rank = max(1, *(update.rank for update in merged.values()))
        adapted: Any = add(model, "LoraConfig", {"r": rank, "lora_alpha": rank}, sorted(merged), [], seed)
        layers = dict(adapted.get_base_model().named_modules())
        with torch.no_grad():
            for path, update in merged.items():  # further rows of A are fresh, and can learn
                A, B = layers[path].lora_A[NAME].weight, layers[path].lora_B[NAME].weight
                A[: update.rank].copy_(update.A)
                B[:, : update.rank].copy_(update.scale * update.B)
        return Attached(train(adapted), left_alone(runs, loras), lost)
