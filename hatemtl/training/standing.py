"""Tells how far a training run has come on disk, for a command that ends before its time."""

from contextlib import suppress
from pathlib import Path

import torch

from hatemtl.command.request import Request
from hatemtl.errors import UserError
from hatemtl.saved_runs.claiming import CHECKPOINT, differences, named_after
from hatemtl.saved_runs.saved_run import SavedRun, read_config, unfinished


class Standing:
    """Finds where the run of a request stands: finished, begun in its folder at work, and how many epochs are kept."""

    def __init__(self, request: Request) -> None:
        self.save_path = request.save_path or Path(named_after(request.identity))
        self.finished, self.begun, self.epochs, self.total = False, False, 0, request.optimization.total_epochs
        work = unfinished(self.save_path)
        with suppress(UserError, OSError, RuntimeError, KeyError):  # what cannot be read cannot go on
            self.finished = self.save_path.is_dir() and not differences(SavedRun(self.save_path).config, request.identity)
            self.begun = (work / "config.yaml").is_file() and not differences(read_config(work), request.identity)
            if self.begun and (work / CHECKPOINT).is_file():
                self.epochs = torch.load(work / CHECKPOINT, weights_only=True, mmap=True)["epoch"] + 1

    @property
    def interrupted(self) -> str:
        """For whom it was broken off by."""
        if self.finished:
            where = "with the run finished"
        elif self.epochs:
            where = f"after epoch {self.epochs} of {self.total}; the same command goes on from there"
        else:
            where = "before the end of its first epoch; the same command begins anew"
        return f"{where}: save_path={self.save_path}"

    @property
    def kept(self) -> str:
        """Gives what is not lost by an error, to be said behind it."""
        if self.finished or not self.begun:
            return ""
        kept = f"; epoch {self.epochs} of {self.total} is kept, and the same command goes on from there"
        return f"{kept if self.epochs else ''}; other settings need overwrite=true"
