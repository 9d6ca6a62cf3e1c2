"""Guards the folder that an export leaves, marked as one, so that the next may take its place and that of nothing else."""

import json
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hatemtl.encoders.pretrained import Encoder
from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import SavedRun, share
from hatemtl.using.elsewhere import kept_elsewhere

MARKER = "hatemtl_export.json"


def check(folder: Path, run: Path, encoder: Encoder, *, overwrite: bool) -> None:
    """Raises UserError where the folder cannot be written, or what no export left would be lost: a run, an encoder, or else.

    An empty folder may be used.
    """
    given = f"export.path={folder}"
    if folder.name in ("", ".."):
        raise UserError(f"{given}: expected the folder to write; type export.path=FOLDER")
    above = Path(os.path.realpath(folder)).parents
    runs = [
        ("a saved run", place) for place in above if all((place / file).is_file() for file in ("run.json", "config.yaml"))
    ]
    kept = [("the saved run", run), ("the encoder", Path(encoder.source)), *runs]  # an encoder of the hub is no folder here
    own = [("the working folder", Path.cwd()), ("the home folder", Path(os.path.expanduser("~")))]  # it may lie in these
    for what, place in [*kept, *own]:
        around, within = _lies_in(place, folder), _lies_in(folder, place)
        if around or (within and (what, place) not in own):
            how = "is" if around and within else "holds" if around else "lies in"
            raise UserError(f"{given} {how} {what}, {place}, which an export leaves alone; give another")
    if folder.is_symlink():
        raise UserError(f"{given} is a link to {os.readlink(folder)}; give the folder itself, or another")
    stands = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not stands.is_dir():
        raise UserError(f"{given}: {stands} is no folder; give another")
    if not os.access(stands, os.W_OK | os.X_OK):
        raise UserError(f"{given}: {stands} cannot be written; give another")
    if stands == folder and any(folder.iterdir()):
        _check_left(folder, given)
        if not overwrite:
            raise UserError(f"{given} exists already; give another, or overwrite=true to replace it")


def write(
    folder: Path, run: SavedRun, encoder: Encoder, form: str, content: Callable[[Path], object], *, overwrite: bool
) -> None:
    """Lets `content` fill a hidden neighbour of `folder`, then renames it: the folder is whole or as it was.

    It is marked as an export of the run in this format. Raises UserError as `check` does, whenever what stands there came,
    and where the system refuses it, which then is kept elsewhere.
    """

    def whole(folder: Path) -> None:
        check(folder, run.folder, encoder, overwrite=overwrite)
        hidden, old = (folder.with_name(f".{folder.name}.{os.getpid()}{end}") for end in ("", ".replaced"))
        try:
            hidden.mkdir(parents=True)
            content(hidden)
            share(hidden)
            said: dict[str, Any] = {"format": form, "run": str(run.folder), "digest": run.digest()}
            said |= {"hatemtl": version("hatemtl"), "files": sorted(_files(hidden))}
            (hidden / MARKER).write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            if not overwrite or not folder.exists() or not any(folder.iterdir()):
                os.replace(hidden, folder)  # fails where a folder that holds anything, a file or a link came meanwhile
                return
            os.replace(folder, old)
            try:
                _check_left(old, f"export.path={folder}")  # again: by its own name anyone could have changed it until now
                os.replace(hidden, folder)
            except BaseException:
                os.replace(old, folder)
                raise
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)

    with kept_elsewhere(folder, whole, given="export.path="):
        whole(folder)


def _check_left(folder: Path, given: str) -> None:
    """Raises UserError where an export did not leave the folder, or not all that it holds."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        marker = None
    match marker:
        case {"format": str(), "files": [*files]}:
            others = sorted(_files(folder) - {MARKER, *map(str, files)})
        case _:
            raise UserError(f"{given} has no valid {MARKER}, so no export left it; give another, or an empty one")
    if others:
        raise UserError(f"{given} holds {', '.join(others[:4])}, which no export left there; move it away, or give another")


def _files(folder: Path) -> set[str]:
    """The names of all that lies in the folder and those in it, but for folders."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


def _lies_in(inner: Path, outer: Path) -> bool:
    """Tells whether one is the other or lies in it, by whatever names they are called."""
    place = Path(os.path.realpath(inner))
    return os.path.exists(outer) and any(os.path.exists(p) and os.path.samefile(p, outer) for p in (place, *place.parents))
