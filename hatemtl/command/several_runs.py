"""Carries a sweep (`-m`), each run of which goes through `main.py`, past those that fail; ends it with a table of all."""

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hatemtl.errors import UserError
from hatemtl.harmless import shown


@dataclass
class Turn:
    """One run of a sweep. words: its overrides. told: the folder that it left, or the first line of what is wrong."""

    words: Sequence[str] = ()
    state: str = "interrupted"
    told: str = "the rest was not begun"

    def finished(self, folder: object, *, before: bool = False) -> None:
        """Records where the run lies. before: whether an earlier command finished it."""
        self.state, self.told = "was finished before" if before else "finished", str(folder)


_turns: list[Turn] = []  # of the sweep, whose runs Hydra starts one after another in this process


@contextmanager
def in_turn() -> Iterator[Turn]:
    """Carries a sweep past a run that fails inside; what else ends a run ends its sweep. One run alone fails as ever."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        yield Turn()
        return
    words: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    turn = Turn(words)
    _turns.append(turn)
    try:
        yield turn
    except Exception as error:
        said = str(error)
        if isinstance(error, UserError | OmegaConfBaseException):
            print(f"error: {shown(said, lines=True)}", file=sys.stderr)
        else:  # a bug, to be seen with its stack
            traceback.print_exc()
            said = f"{type(error).__name__}: {said}"
        turn.state, turn.told = "failed", said.split("\n")[0]
    except BaseException:
        _print_table()
        raise


class Sweep(Callback):
    """Hydra's callback of a sweep: prints the table at its end, and exits with 1 where a run failed."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        _turns.clear()

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        _print_table()
        if any(turn.state == "failed" for turn in _turns):
            sys.exit(1)


def _print_table() -> None:
    from hatemtl.command import console  # and what a run needs, which a sweep that was refused as a whole does without

    common = set(_turns[0].words).intersection(*(turn.words for turn in _turns)) if len(_turns) > 1 else set()
    apart = [" ".join(word for word in turn.words if word not in common) for turn in _turns]
    console.sweep(console.Console(), [(run, turn.state, turn.told) for run, turn in zip(apart, _turns, strict=True)])
