"""Uploads: the real client of the hub against a stand-in for its HTTP on this machine."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_stand_in import stand_in
from huggingface_hub import CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from hatemtl.errors import UserError
from hatemtl.using.export import MARKER
from hatemtl.using.publish import upload


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    (place / "peft").mkdir(parents=True)
    for name, content in {"README.md": b"---\nlicense: mit\n---\n", "peft/w.safetensors": b"w" * 99, MARKER: b"{}"}.items():
        (place / name).write_bytes(content)
    return place


def test_a_folder_is_sent_as_one_commit_without_what_says_where_it_was_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: SimpleNamespace(private=True, siblings=None))
    with stand_in() as hub:
        assert "/me/x/commit/" in upload.send(folder, "me/x", private=True)
        (made,) = hub.created
        private = made.pop("visibility", None) == "private" or made.pop("private")  # by the client's version
        assert private is True and made == {"name": "x", "organization": "me", "type": "model"}
        assert hub.files == {"README.md": b"---\nlicense: mit\n---\n", "peft/w.safetensors": b"w" * 99}
        assert hub.tokens == {"Bearer hf_secret"}
        hub.refuses = 401
        with pytest.raises(
            UserError, match=r"refused \(the token may not write there\); the folder is written: .*overwrite=true"
        ):
            upload.send(folder, "me/x", private=True)
    with pytest.raises(UserError, match="the hub is not within reach; the folder is written"):  # it is shut
        upload.send(folder, "me/x", private=True)
    assert [path.name for path in upload.files(folder)] == ["README.md", "w.safetensors"]


def test_no_answer_is_no_network_in_every_version_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object) -> None:
        raise HfHubHTTPError.__bases__[0]("timed out")

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(HfApi, "model_info", silent)
    with pytest.raises(UserError, match="the hub is not within reach; the folder is written"):
        upload.send(folder, "me/x", private=True)


def test_what_was_published_before_goes_and_what_others_put_there_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    names = ["README.md", "peft/w.safetensors", "peft/old.json", "adapterhub/head.json", ".eval_results/a.yaml"]
    names += ["model-00001-of-00002.safetensors", "figure.png", ".gitattributes", "models/a.safetensors"]
    there: Any = SimpleNamespace(private=False, siblings=[SimpleNamespace(rfilename=name) for name in names])
    commits: list[Any] = []

    def commit(_api: HfApi, _id: str, operations: list[Any], **_: Any) -> Any:
        commits.append(operations)
        return SimpleNamespace(commit_url="some")

    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: there)
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: None)
    monkeypatch.setattr(HfApi, "create_commit", commit)
    assert upload.send(folder, "me/x", private=False) == "some"
    gone = {of.path_in_repo for of in commits[0] if isinstance(of, CommitOperationDelete)}
    assert gone == {*names[2:6]}
    with pytest.raises(UserError, match=r"publish.private=true: me/x is there already, and public; nothing was sent"):
        upload.send(folder, "me/x", private=True)
    assert len(commits) == 1


@pytest.mark.parametrize(
    "name", ["x", "me/", "/x", "me/x/y", "me/x y", "me/..", "me/x.", "https://huggingface.co/me/x", "me/-x", ""]
)
def test_what_is_no_name_of_a_repository_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "some")
    with pytest.raises(UserError, match=r"expected OWNER/NAME of letters"):
        upload.check(name, upload=False)


def test_nothing_is_sent_without_a_name_a_token_or_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    upload.check(None, upload=False)
    with pytest.raises(UserError, match="type publish.hub_id=OWNER/NAME"):
        upload.check(None, upload=True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match=r"without a token, and the environment has no HF_TOKEN; type HF_TOKEN="):
        upload.check("me/x", upload=False)
    monkeypatch.setenv("HF_TOKEN", "some")
    upload.check("me/x-1.0_a", upload=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE says that there is no network"):
        upload.check("me/x", upload=True)
