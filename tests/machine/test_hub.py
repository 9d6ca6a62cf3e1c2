from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import requests
from conftest import forget_sessions
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from hatemtl.errors import UserError
from hatemtl.machine.hub import fetch, parted


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty hub cache on a machine without network."""
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        forget_sessions()  # opened while online; below, those opened while offline
        yield tmp_path
    forget_sessions()


def test_without_network_and_cache_the_error_names_the_repository_and_the_way_out(offline: Path) -> None:
    with pytest.raises(UserError) as error:
        fetch("some/model", kind="model", patterns=["*.json"], way_out="type encoder=minilm")
    assert str(error.value) == ("the hub's model 'some/model' is neither cached here nor within reach; type encoder=minilm")


def test_what_is_cached_needs_no_network(offline: Path) -> None:
    repository = offline / "models--some--model"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    assert fetch("some/model", kind="model", patterns=["*.json"], way_out="-") == snapshot


def test_a_folder_here_is_no_repository_with_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parted("encoders/bert@2") == ("encoders/bert", "2")
    (tmp_path / "encoders" / "bert@2").mkdir(parents=True)
    assert parted("encoders/bert@2") == ("encoders/bert@2", None)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RepositoryNotFoundError, r"the hub has no dataset 'some/data' \(or it is private.*\); WAY OUT$"),
        (RevisionNotFoundError, "the hub's dataset 'some/data' has no revision 'r1'; WAY OUT$"),
        (HfHubHTTPError, "the hub's dataset 'some/data' is neither cached here nor within reach; WAY OUT$"),
    ],
)
def test_what_the_hub_answers_is_told_with_the_way_out(
    raised: type[HfHubHTTPError], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise raised("no", response=requests.Response())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=expected):
        fetch("some/data@r1", kind="dataset", patterns=["*"], way_out="WAY OUT")


def test_a_broken_connection_is_no_stack_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise requests.exceptions.SSLError("certificate")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match="within reach; WAY OUT"):
        fetch("some/data", kind="dataset", patterns=["*"], way_out="WAY OUT")
