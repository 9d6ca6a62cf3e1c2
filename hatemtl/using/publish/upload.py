"""Sends a published folder to the hub, as one commit; the token comes from the environment alone."""

import os
import re
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants

from hatemtl.errors import UserError
from hatemtl.machine.hub import no_answer
from hatemtl.using.export import MARKER

TOKEN = "HF_TOKEN"
AGAIN = "type the same with overwrite=true to try again"
# What publishing writes, and may leave out the next time: what of it lies on the hub and not in the folder is deleted there.
OWNED = re.compile(r"(peft|adapterhub|\.eval_results)/.+|model[\w.-]*\.safetensors(\.index\.json)?", re.ASCII)
NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(?<![.-])", re.ASCII)


def check(hub_id: str | None, *, upload: bool) -> None:
    """Raises UserError where the name is none of a repository, or there is no token to send with."""
    if hub_id is None:
        if upload:
            raise UserError("publish.upload=true needs the repository to send to; type publish.hub_id=OWNER/NAME")
        return
    if NAME.fullmatch(hub_id) is None:
        raise UserError(
            f"publish.hub_id={hub_id}: expected OWNER/NAME of letters, digits, '-', '_' and '.', as me/hate-lora; type "
            f"publish.hub_id=OWNER/NAME"
        )
    if not os.environ.get(TOKEN):
        raise UserError(
            f"publish.hub_id={hub_id}: the hub lets nobody write without a token, and the environment has no {TOKEN}; type "
            f"{TOKEN}=... before the command, or leave publish.hub_id out to write the folder alone"
        )
    if upload and constants.HF_HUB_OFFLINE:
        raise UserError("publish.upload=true: HF_HUB_OFFLINE says that there is no network; unset it, or leave upload out")


def files(folder: Path) -> list[Path]:
    """Lists what of a folder is sent: all but what says where it was made."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)


def send(folder: Path, hub_id: str, *, private: bool) -> str:
    """Makes the repository if need be, and sends the folder's files in place of all that publishing left there before.

    Gives the address of the commit. Raises UserError where the hub refuses, or is out of reach, or where a private
    repository was asked for and it is public already.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    api, known = HfApi(token=os.environ[TOKEN]), None
    try:
        with suppress(RepositoryNotFoundError):
            known = api.model_info(hub_id)
        if private and known is not None and not known.private:
            raise UserError(
                f"publish.private=true: {hub_id} is there already, and public; nothing was sent, the folder is written: "
                f"{folder}; make it private on the hub, or give another publish.hub_id"
            )
        api.create_repo(hub_id, repo_type="model", private=private, exist_ok=True)
        each = {path.relative_to(folder).as_posix(): path for path in files(folder)}
        there = [file.rfilename for file in (known.siblings if known is not None else None) or ()]
        stale = [name for name in there if name not in each and OWNED.fullmatch(name)]
        sent = api.create_commit(
            hub_id,
            [*(CommitOperationAdd(name, path) for name, path in each.items()), *map(CommitOperationDelete, stale)],
            commit_message=f"Publish {folder.name} by hatemtl",
        )
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        said = "the token may not write there" if status in (401, 403) else str(error).splitlines()[0]
        raise UserError(f"publish.hub_id={hub_id}: refused ({said}); the folder is written: {folder}; {AGAIN}") from error
    except no_answer() as error:
        raise UserError(
            f"publish.hub_id={hub_id}: the hub is not within reach; the folder is written: {folder}; {AGAIN}"
        ) from error
    return str(sent.commit_url)
