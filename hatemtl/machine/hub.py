"""Fetches models and data from the hub: the only door in from the network; says what to do where it is shut."""

from pathlib import Path
from typing import Literal

from hatemtl.errors import UserError


def fetch(repo: str, *, kind: Literal["model", "dataset"], patterns: list[str], revision: str | None, way_out: str) -> Path:
    """Fetches the files of hub repository `repo` that match `patterns`, unless cached; gives their local folder.

    way_out: what a user without network can type instead; it ends the error.
    """
    from huggingface_hub import errors, snapshot_download

    unreachable = (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError)
    try:
        return Path(snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=patterns))
    except errors.HFValidationError as error:
        raise UserError(f"{repo!r} is no name of a hub {kind}, expected OWNER/NAME; {way_out}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"the hub has no {kind} {repo!r} (or it is private: `hf auth login`); {way_out}") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"the hub's {kind} {repo!r} has no revision {revision!r}; {way_out}") from error
    except unreachable as error:
        raise UserError(f"the hub's {kind} {repo!r} is neither cached here nor within reach; {way_out}") from error
