"""Where a result comes from, as run.json tells it."""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from conftest import ADAPTERHUB

from hatemtl.machine import provenance as module
from hatemtl.machine.provenance import peak_memory, provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in a folder that belongs to no repository; the record is made as if it were hatemtl."""
    folder = tmp_path / "checkout" / "package"
    folder.mkdir(parents=True)
    (folder / "module.py").touch()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr(module, "__file__", str(folder / "module.py"))
    return folder


def test_the_commit_is_that_of_the_code_wherever_one_stands(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance()["git_commit"] is None
    git(package.parent, "init")
    assert provenance()["git_commit"] is None  # a repository without a commit
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-m", "first")
    commit = git(package.parent, "rev-parse", "HEAD")
    monkeypatch.chdir("/")
    assert len(commit) == 40
    assert provenance()["git_commit"] == commit
    (package / "notes.txt").touch()
    assert provenance()["git_commit"] == commit  # a new file changes no result
    (package / "module.py").write_text("changed = True")
    assert provenance()["git_commit"] == f"{commit}+"


@pytest.mark.parametrize("ignored", [True, False])
def test_the_commit_of_another_project_around_an_installed_package_is_not_its_own(package: Path, ignored: bool) -> None:
    git(package.parent, "init")
    (package.parent / ".gitignore").write_text("package\n" if ignored else "")
    git(package.parent, "add", ".gitignore")
    git(package.parent, "commit", "-m", "another project")
    assert provenance()["git_commit"] is None


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance()["git_commit"] is None


def test_versions_and_machine() -> None:
    record = provenance()
    assert json.loads(json.dumps(record)) == record
    for name in ("hatemtl", "torch", "transformers", "peft", "lightning", *(["adapters"] if ADAPTERHUB else [])):
        assert record["versions"][name] == version(name)
    assert ("adapters" in record["versions"]) is ADAPTERHUB
    assert record["threads"] == torch.get_num_threads()


@pytest.mark.skipif(torch.cuda.is_available() or not Path("/proc/self/status").exists(), reason="reads Linux's own count")
def test_peak_memory_is_in_bytes() -> None:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert peak_memory() == pytest.approx(int(status["VmHWM"].split()[0]) * 1024, rel=0.02)
