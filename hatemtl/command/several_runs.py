"""Gathers the runs of a sweep (`-m`) as Hydra composes them, names them apart, and hands all to whoever carries them."""

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hatemtl.command.faults import mending
from hatemtl.command.suggestions import explain, is_mistyped
from hatemtl.command.words import config_dir, parsed, quoted, typed_words
from hatemtl.errors import UserError
from hatemtl.harmless import shown
from hatemtl.machine.interruption import interruptible
from hatemtl.machine.startup import PROGRAM, starting

LISTED = (
    "tasks",
    "regulariser",
    "augmentation",
    "evaluations",
    "experiment",
)  # groups of which several options may be chosen
T = TypeVar("T")


@dataclass(eq=False)
class Turn:
    """One run of a sweep. words: its overrides. config: what it is known by, of one that trains and can be composed.

    hydra: what Hydra says of the run. settings: what the keys that were typed came to. name: what sets it apart.
    """

    words: Sequence[str]
    cfg: Any
    hydra: Any
    config: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    name: str = ""
    moved: bool = field(default=False)

    def is_group(self, key: str) -> bool:
        """Tells whether a key chooses an option, or options, of a group."""
        return "@" in key or key in LISTED or key in self.hydra.hydra.runtime.choices

    @property
    def save_path(self) -> str | None:
        """Gives the folder that the run leaves; None where it says none, or nothing that there is."""
        try:
            return None if self.cfg.save_path is None else str(self.cfg.save_path)
        except OmegaConfBaseException:
            return None

    def move(self, save_path: Path) -> None:
        """Gives the run a folder of its own."""
        self.cfg.save_path, self.moved = str(save_path), True

    def command(self) -> tuple[str, ...]:
        """Gives what `main.py` takes to do this run alone."""
        words = [word for word in self.words if not (self.moved and word.startswith("save_path="))]
        moved = [f"save_path={quoted(str(self.save_path))}"] if self.moved else []
        return (*config_dir(), *words, *moved)

    def do(self, what: Callable[[Any], T]) -> T:
        """Does something with the run's configuration, as if it were the only one."""
        HydraConfig.instance().cfg = self.hydra
        try:
            return what(self.cfg)
        except OmegaConfBaseException as error:  # it refers to what is not there
            raise UserError(str(error)) from error


def same_run(*also: str) -> list[str] | None:
    """Gives the command that starts once more the run that this process is at; None where no command started it.

    also: overrides that nobody typed.
    """
    if not HydraConfig.initialized():
        return None
    of_hydra = [word for word in sys.argv[1:] if word.lstrip("+~").startswith("hydra.")]
    return [*PROGRAM, *config_dir(), *of_hydra, *typed_words(), *also]


_turns: list[Turn] = []  # of the sweep, whose runs Hydra composes one after another in this process
_carry: list[Callable[[Sequence[Turn]], bool]] = []


def in_sweep() -> bool:
    """Tells whether Hydra composes the run as one of several."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def plan(cfg: Any, carry: Callable[[Sequence[Turn]], bool], *, config: Callable[[Any], Mapping[str, Any] | None]) -> None:
    """Adds the run to its sweep, to be done when all are known.

    carry: does all runs, and tells whether they ended well. config: gives what a run that trains is known by.
    """
    hydra = HydraConfig.instance().cfg
    words = typed_words()
    try:
        known = config(cfg)
        OmegaConf.update(cfg, "save_path", cfg.save_path)  # as it is now, where it reads what Hydra says of the run
    except (UserError, OmegaConfBaseException):  # to be told when it is done
        known = None
    _turns.append(Turn(words, cfg, hydra, known, {key: _came_to(key, value, cfg) for key, value in _typed(words).items()}))
    _carry[:] = [carry]


def _typed(words: Sequence[str]) -> dict[str, str]:
    of = {key.lstrip("+~"): value for key, _, value in (word.partition("=") for word in words)}
    return {key: value for key, value in of.items() if key != "save_path"}  # which is a place, and sets nothing apart


def _came_to(key: str, typed: str, cfg: Any) -> Any:
    """Gives the value of a key, and of a group what was typed."""
    choices = HydraConfig.get().runtime.choices
    if "@" in key or key in choices or key in LISTED:
        return typed.strip("[]").replace(",", "+")
    try:
        value = OmegaConf.select(cfg, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        return typed


class Sweep(Callback):
    """Hydra's callback of a sweep: has its runs done when all are composed, and exits with 1 where one failed."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        _turns.clear()

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        if not _turns:
            return
        try:
            with starting(), interruptible(), mending(config):
                well = _carry[0](apart(_turns))
        except (UserError, OmegaConfBaseException) as error:
            print(f"error: {shown(str(error), lines=True)}", file=sys.stderr)
            sys.exit(2)
        except Exception:  # a bug, of which Hydra would make a warning
            traceback.print_exc()
            sys.exit(1)
        finally:
            _turns.clear()
        if not well:
            sys.exit(1)


def varied(settings: Mapping[str, Any], save_path: Path | None) -> Turn:
    """Composes the command that was typed as a run that trains with other settings, by key or group.

    Raises UserError where there is no such key or option.
    """
    left = ("action", "save_path", "launcher", "tune", *settings)
    words = [word for word in typed_words() if not _is_of(word, left)]
    words += ["action=train", *(f"{key}={_written(value)}" for key, value in settings.items())]
    try:
        whole = compose("config", overrides=words, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if not is_mistyped(error):
            raise
        at_work, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None  # it composes with one of its own
        try:
            raise UserError(explain(error, words)) from None
        finally:
            GlobalHydra.instance().hydra = at_work
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(whole)
    hydra, HydraConfig.instance().cfg = HydraConfig.instance().cfg, before
    cfg = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    turn = Turn(words, cfg, hydra, None, settings)
    if save_path is not None:
        turn.move(save_path)
    return turn


def _is_of(word: str, keys: Sequence[str]) -> bool:
    key = word.lstrip("+~").partition("=")[0]
    return key in keys or key.startswith(("tune.", "launcher."))


def _written(value: Any) -> str:
    """Writes a value such that Hydra reads this very value."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    plain = str(value)
    read = parsed(f"key={plain}")
    return plain if read is not None and read.value() == value and isinstance(read.value(), type(value)) else quoted(plain)


def apart(turns: Sequence[Turn]) -> list[Turn]:
    """Names the runs apart, gives those that would share a save_path one each, and leaves out what is there twice.

    A save_path that several share becomes the folder that holds theirs; without one, that is named after what they have in
    common. A run that stands there under another name, with the very same configuration, is found.
    Raises UserError where a shared save_path holds a run itself.
    """
    from hatemtl.saved_runs.sweep_names import names  # and what a run needs, which a sweep that is refused does without

    for turn, name in zip(turns, names([turn.settings for turn in turns]), strict=True):
        turn.name = name or " ".join(turn.words) or "run"
    places: dict[str | None, list[Turn]] = {}
    for turn in turns:
        places.setdefault(turn.save_path, []).append(turn)
    for place, sharing in places.items():
        if len({turn.name for turn in sharing}) > 1 and (place is not None or any(turn.config for turn in sharing)):
            _share_out(place, sharing)
    once: dict[tuple[str, str | None], Turn] = {}
    for turn in turns:
        once.setdefault((turn.name, turn.save_path), turn)
    return [*once.values()]


def _share_out(place: str | None, turns: Sequence[Turn]) -> None:
    from hatemtl.saved_runs.sweep_names import names, standing, standing_at, sweep_folder

    if place is not None and (Path(place) / "config.yaml").exists():
        raise UserError(
            f"save_path={place} is a saved run itself, and {len(turns)} runs of this sweep would share it; give another, in "
            f"which each has a folder of its own"
        )
    known = [turn.config for turn in turns if turn.config is not None]
    swept = [key for key in turns[0].settings if len({repr(turn.settings.get(key)) for turn in turns}) > 1]
    folder = Path(place if place is not None else sweep_folder(known, swept))
    there = standing(folder)
    for turn, name in zip(turns, names([turn.settings for turn in turns]), strict=True):
        if place is not None or turn.config is not None:
            turn.move(standing_at(there, turn.config, folder / name) if turn.config else folder / name)
