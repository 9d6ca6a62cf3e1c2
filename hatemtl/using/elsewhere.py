"""Keeps what was computed where there is room for it, once its own place takes it no more."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from tempfile import mkdtemp

from hatemtl.errors import UserError


@contextmanager
def kept_elsewhere(target: Path, write: Callable[[Path], object], *places: Path, given: str = "") -> Iterator[None]:
    """Lets `write` write into a new folder of another place what the system refuses of what is written inside.

    places: tried in turn, and the system's temporary folder behind them. given: what the user typed before the target.
    Raises UserError that tells where it lies, or what was raised inside where no place takes it.
    """
    try:
        yield
    except (OSError, UserError) as error:
        if isinstance(error, UserError) and not isinstance(error.__cause__, OSError):
            raise
        for place in (*places, None):
            folder = None
            try:
                folder = Path(mkdtemp(prefix="hatemtl_", dir=place))
                write(kept := folder / target.name)
                break
            except OSError:
                if folder:
                    shutil.rmtree(folder, ignore_errors=True)
        else:
            raise
        way = "move it to where it shall stand" if target.is_dir() else f"type mv {quote(str(kept))} {quote(str(target))}"
        raise UserError(
            f"{given}{target} cannot be written ({error}); what it was to hold is kept as {kept}: make room, and {way}"
        ) from error
