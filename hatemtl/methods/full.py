"""Full fine-tuning: every weight of the encoder is trained, and the whole encoder is saved."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.methods.base import to_load
from hatemtl.saved_runs.saved_run import AGAIN, SavedRun

WEIGHTS = "encoder/model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Full:
    """Trains the whole encoder, from its pretrained weights or, with `path`, from a saved run's."""

    path: str | None
    learning_rate: float
    body_dropout: bool
    library: ClassVar[str] = "full"
    stores_bf16: ClassVar[bool] = True
    quantizable: ClassVar[bool] = False
    adapter_pattern: ClassVar[None] = None

    def starts_from(self) -> list[SavedRun]:
        return [] if self.path is None else to_load(self.path, self.library)

    def attach(self, model: Transformer, *, name: str, seed: int) -> nn.Module:
        for run in self.starts_from():
            try:
                model.load_state_dict(run.tensors(WEIGHTS))
            except RuntimeError as error:  # one is missing, too many or of another shape
                reason = str(error).splitlines()[-1].strip()
                raise UserError(f"{run.folder / WEIGHTS} does not fit this encoder ({reason}); {AGAIN}") from error
        return model.requires_grad_(True)

    def active(self, model: nn.Module) -> list[str]:
        return []

    def save(self, model: nn.Module, name: str, folder: Path) -> None:
        model.save_pretrained(folder / "encoder", safe_serialization=True)  # type: ignore[operator]
