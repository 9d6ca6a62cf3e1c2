"""Fine-tunes fully: every weight of the encoder is trained, and the whole encoder is saved."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.methods.base import Attached, Library, Method, to_load
from hatemtl.saved_runs.saved_run import AGAIN, SavedRun

WEIGHTS = "encoder/model.safetensors"


def save(model: Any, name: str, folder: Path) -> None:
    """Writes encoder/config.json and encoder/model.safetensors."""
    model.save_pretrained(folder / "encoder", safe_serialization=True)


LIBRARY = Library(name="full", pattern=None, quantizable=False, active=lambda model: [], save=save)


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Trains the whole encoder, from its pretrained weights or, with `path`, from a saved run's."""

    path: str | None
    library = LIBRARY

    def starts_from(self) -> list[SavedRun]:
        return [] if self.path is None else to_load(self.path, self.library)

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        for run in self.starts_from():
            try:
                model.load_state_dict(run.tensors(WEIGHTS))
            except RuntimeError as error:  # one is missing, too many or of another shape
                reason = str(error).splitlines()[-1].strip()
                raise UserError(f"{run.folder / WEIGHTS} does not fit this encoder ({reason}); {AGAIN}") from error
        return Attached(model.requires_grad_(True))
