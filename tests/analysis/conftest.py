"""The scripts of analysis/ as a user calls them."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def script(request: pytest.FixtureRequest) -> ModuleType:
    """The script that a file of tests is named after."""
    return import_module(request.path.stem.removeprefix("test_"))


@pytest.fixture
def run(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The script, called from the folder that holds the runs: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = script.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
