"""Fine-tunes fully: every weight of the encoder is trained, and the whole encoder is saved."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hatemtl.encoders.fast import accelerate
from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.methods.base import Attached, Library, Method
from hatemtl.saved_runs.saved_run import AGAIN, SavedRun

WEIGHTS = "encoder/model.safetensors"


def save(model: Any, name: str, folder: Path) -> None:
    """Writes encoder/config.json and encoder/model.safetensors."""
    model.save_pretrained(folder / "encoder", safe_serialization=True)


def load(model: Any, run: SavedRun, name: str, seed: int) -> Any:
    """Gives the encoder the weights of a saved run, each of them."""
    try:
        model.load_state_dict(run.tensors(WEIGHTS))
    except RuntimeError as error:  # one is missing, too many or of another shape
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{run.folder / WEIGHTS} does not fit this encoder ({reason}); {AGAIN}") from error
    return model


LIBRARY = Library(name="full", pattern=None, quantizable=False, save=save, load=load)


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Trains the whole encoder, from its pretrained weights or, with `path`, from a saved run's."""

    path: str | None = field()
    library = LIBRARY

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        model.requires_grad_(True)
        if self.path is not None:
            super().attach(model, name=name, seed=seed)
        accelerate(model, own=True)
        return Attached(model)
