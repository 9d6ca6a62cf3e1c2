"""Fetches models and data from the hub: the only door in from the network; says what to do where it is shut."""

import os
import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

from hatemtl.errors import UserError

NAME = re.compile(r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII)


def parted(name: str) -> tuple[str, str | None]:
    """Parts a repository from its revision; what is no OWNER/NAME@REVISION, or is a folder here, has none.

    >>> parted("me/adapter@refs/pr/1"), parted("me/adapter"), parted("/home/me@work/x")
    (('me/adapter', 'refs/pr/1'), ('me/adapter', None), ('/home/me@work/x', None))
    """
    match = None if os.path.isdir(name) else NAME.fullmatch(name)  # Path.is_dir fails at a long name
    return (match["repo"], match["revision"]) if match else (name, None)


def no_answer() -> tuple[type[Exception], ...]:
    """Names the errors of a hub that does not answer: the system's, requests' or httpx's, by huggingface_hub's version."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*(kind for kind in HfHubHTTPError.__bases__ if issubclass(kind, Exception)), OSError)


def fetch(name: str, *, kind: Literal["model", "dataset"], patterns: list[str], way_out: str) -> Path:
    """Fetches the files of a hub repository that match `patterns`, unless cached; gives their local folder.

    name: OWNER/NAME of the main branch, or OWNER/NAME@REVISION.

    way_out: what a user without network can type instead; it ends the error.
    """
    from huggingface_hub import errors, snapshot_download

    repo, revision = parted(name)
    unreachable = no_answer()
    download = partial(snapshot_download, repo, repo_type=kind, revision=revision, allow_patterns=patterns)
    try:
        return Path(download())
    except errors.HFValidationError as error:
        raise UserError(f"{repo!r} is no name of a hub {kind}, expected OWNER/NAME; {way_out}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"the hub has no {kind} {repo!r} (or it is private: `hf auth login`); {way_out}") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"the hub's {kind} {repo!r} has no revision {revision!r}; {way_out}") from error
    except unreachable as error:
        with suppress(*unreachable):  # of a commit, huggingface_hub 1 asks which files it has, though they are cached
            return Path(download(local_files_only=True))
        raise UserError(f"the hub's {kind} {repo!r} is neither cached here nor within reach; {way_out}") from error
