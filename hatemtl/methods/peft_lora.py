"""LoRA through the `peft` library, which only this file imports: train one, load one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import Linear as LinearWithLoRA
from peft.tuners.lora import LoraLayer
from torch import nn

from hatemtl.artifacts import SavedRun
from hatemtl.encoder import Transformer
from hatemtl.errors import UserError
from hatemtl.methods.base import check_leave_out, draw_lora_A, saved_by
from hatemtl.methods.bert_layer import fuse
from hatemtl.methods.lora_linear import LoRALinear

LIBRARY = "peft"
WEIGHTS = "adapter/adapter_model.safetensors"
PATTERN = re.compile(r"\.lora_(?:A|B|magnitude_vector)\.([^.]+)")
NAME = "default"  # PEFT saves an adapter of any other name in a folder below

# The layers that AdapterHub's LoRA on q, k, v, intermediate and output adapts, by the names each architecture gives them.
BERT_LIKE = r".*(attention\.self\.(query|key|value)|intermediate\.dense|layer\.\d+\.output\.dense)"
TARGETS = {
    "bert": BERT_LIKE,
    "electra": BERT_LIKE,
    "roberta": BERT_LIKE,
    "deberta-v2": r".*(attention\.self\.(query|key|value)_proj|intermediate\.dense|layer\.\d+\.output\.dense)",
    "modernbert": r".*(attn\.Wqkv|mlp\.Wi|mlp\.Wo)",
}


def active(model: nn.Module) -> list[str]:
    """The names of the active adapters."""
    return list(model.active_adapters)  # type: ignore[arg-type]


def train(model: PeftModel) -> PeftModel:
    """Computes every plain LoRA of the model by LoRALinear, and layers with no other by BertLayer."""
    others = False
    for module in model.modules():
        if not isinstance(module, LoraLayer):
            continue
        if _plain(module):
            A, B = module.lora_A[NAME], module.lora_B[NAME]
            module.forward = LoRALinear(module.base_layer, A.weight, B.weight, module.scaling[NAME])  # type: ignore[arg-type]
        else:
            others = True
    if not others:
        fuse(model.get_base_model())
    return model


def _plain(layer: LoraLayer) -> bool:
    if type(layer) is not LinearWithLoRA or type(layer.base_layer) is not nn.Linear or layer.lora_variant:
        return False
    return isinstance(layer.lora_dropout[NAME], nn.Identity) and layer.lora_B[NAME].bias is None and not layer.fan_in_fan_out


def save(model: nn.Module, name: str, folder: Path) -> None:
    """Writes adapter/adapter_config.json and adapter/adapter_model.safetensors."""
    model.save_pretrained(str(folder / "adapter"), safe_serialization=True)  # type: ignore[operator]
    (folder / "adapter" / "README.md").unlink(missing_ok=True)  # a card of blanks


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
    adapter_pattern: ClassVar[re.Pattern[str]] = PATTERN
    active = staticmethod(active)
    save = staticmethod(save)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"method.rank={self.rank}: expected a whole number from 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"method.dropout={self.dropout}: expected a probability below 1")
        try:
            re.compile(self.targets or "")
        except re.error as error:
            raise UserError(f"method.targets={self.targets!r}: no regular expression ({error})") from error

    def starts_from(self) -> list[SavedRun]:
        return []

    def attach(self, model: Transformer, *, name: str, seed: int) -> nn.Module:
        kind = model.config.model_type
        targets = self.targets or TARGETS.get(kind)
        if targets is None:
            raise UserError(f"method.targets: no default for {kind}; type method.targets='.*(query|value)'")
        left_out = check_leave_out(self.leave_out, model.config.num_hidden_layers)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            exclude_modules=rf".*\blayers?\.({'|'.join(map(str, left_out))})\..*" if left_out else None,
        )
        with torch.random.fork_rng(devices=[]):
            try:
                wrapped = get_peft_model(model, config, adapter_name=NAME)
            except ValueError as error:
                raise UserError(f"method.targets={targets!r}: {error}") from error
        for path, module in wrapped.get_base_model().named_modules():
            if hasattr(module, "lora_A") and NAME in module.lora_A:
                draw_lora_A(module.lora_A[NAME].weight, seed=seed, layer=path)
        return train(wrapped)


@dataclass(frozen=True, kw_only=True)
class Load:
    """Starts from the adapter of a saved run, to test it, to predict with it or to train it further."""

    path: str | None
    learning_rate: float
    body_dropout: bool
    library: ClassVar[str] = LIBRARY
    adapter_pattern: ClassVar[re.Pattern[str]] = PATTERN
    active = staticmethod(active)
    save = staticmethod(save)

    def starts_from(self) -> list[SavedRun]:
        if self.path is None:
            raise UserError("method=peft_load needs the saved run to load; type load_path=FOLDER")
        return [saved_by(SavedRun(self.path), LIBRARY, f"load_path={self.path}")]

    def attach(self, model: Transformer, *, name: str, seed: int) -> nn.Module:
        run = self.starts_from()[0]
        saved = run.tensors(WEIGHTS)
        try:
            with torch.random.fork_rng(devices=[]):
                loaded = PeftModel.from_pretrained(model, str(run.folder / "adapter"), adapter_name=NAME, is_trainable=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(
                f"{run.folder / 'adapter'} cannot be read ({error}); train it again with overwrite=true"
            ) from error
        if missing := sorted(set(get_peft_model_state_dict(loaded, adapter_name=NAME)) - set(saved)):
            raise UserError(f"{run.folder / WEIGHTS} lacks {', '.join(missing[:3])}; train it again with overwrite=true")
        return train(loaded)
