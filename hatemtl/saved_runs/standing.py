"""Tells how far a training run has come on disk, for a command that ends before its time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hatemtl.errors import UserError
from hatemtl.saved_runs.claiming import CHECKPOINT, differences, named_after
from hatemtl.saved_runs.saved_run import SavedRun, read_config, unfinished


@dataclass(frozen=True)
class Standing:
    """Finds where the run of one configuration stands.

    epochs: whole ones that are kept. total: that it trains at most. begun: whether its folder at work is there.
    """

    save_path: Path
    epochs: int
    total: int
    begun: bool
    finished: bool

    @property
    def interrupted(self) -> str:
        """For whom it was broken off by."""
        if self.finished:
            return f"with the run finished: save_path={self.save_path}"
        if self.epochs:
            again = "the same command goes on from there"
            return f"after epoch {self.epochs} of {self.total}; {again}: save_path={self.save_path}"
        return f"before the end of its first epoch; the same command begins anew: save_path={self.save_path}"

    @property
    def kept(self) -> str:
        """Gives what is not lost by an error, to be said behind it."""
        if self.finished or not self.begun:
            return ""
        kept = f"; epoch {self.epochs} of {self.total} is kept, and the same command goes on from there"
        return f"{kept if self.epochs else ''}; other settings need overwrite=true"


def standing(config: Mapping[str, Any], save_path: Path | None, total: int) -> Standing:
    """Looks for the run of this configuration where it is saved, and where it is at work."""
    save_path = save_path or Path(named_after(config))
    work = unfinished(save_path)
    finished = begun = False
    epochs = 0
    try:
        finished = save_path.is_dir() and not differences(SavedRun(save_path).config, config)
        begun = (work / "config.yaml").is_file() and not differences(read_config(work), config)
        if begun and (work / CHECKPOINT).is_file():
            epochs = torch.load(work / CHECKPOINT, weights_only=True, mmap=True)["epoch"] + 1
    except (UserError, OSError, RuntimeError, KeyError):
        pass  # what cannot be read cannot go on
    return Standing(save_path, epochs, total, begun, finished)
