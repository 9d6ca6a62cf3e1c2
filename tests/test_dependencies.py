"""What hatemtl needs is justified, locked with hashes, and of licences that somebody read."""

import re
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def named() -> set[str]:
    """All that pyproject.toml asks for: to run, for an extra, and to develop."""
    parts = [PYPROJECT["project"]["dependencies"]]
    parts += [*PYPROJECT["project"]["optional-dependencies"].values(), *PYPROJECT["dependency-groups"].values()]
    return {Requirement(word).name for part in parts for word in part}


def test_each_has_a_line_that_says_why() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name, _ in rows} == named()
    assert len({why for _, why in rows}) == len(rows) == len(named())


def test_every_file_of_the_lock_has_its_hash() -> None:
    packages = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    files = [file for one in packages for file in [*one.get("wheels", ()), *([one["sdist"]] if "sdist" in one else ())]]
    assert len(files) > 1000
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", file["hash"]) for file in files)
    origins = {name: one["source"] for one in packages for name in [one["name"]]}
    assert {name for name, source in origins.items() if "registry" not in source} == {"hatemtl"}  # itself alone


def test_what_the_advisory_is_of_is_no_dependency() -> None:
    """CVE-2026-4372, the exception of `make advisories`, needs it."""
    assert "--ignore CVE-2026-4372" in (ROOT / "Makefile").read_text(encoding="utf-8")
    locked = {one["name"] for one in tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]}
    assert "transformers" in locked and "kernels" not in locked


@pytest.fixture(scope="module")
def licences() -> ModuleType:
    spec = spec_from_file_location("licences", ROOT / "scripts" / "licences.py")
    assert spec and spec.loader
    spec.loader.exec_module(module := module_from_spec(spec))
    return module


def test_licences_of_all_that_is_needed_are_listed(licences: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert licences.main([]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    needed = {Requirement(word).name for word in PYPROJECT["project"]["dependencies"]}
    assert needed | {"numpy", "tokenizers", "safetensors"} <= {*listed}
    assert "MIT" in listed["peft"] or "Apache" in listed["peft"]
    assert "quadprog" not in listed  # which is of the extra mtl alone


def test_a_licence_that_asks_to_give_away_alike_has_to_be_read(
    licences: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    strong = [
        "GPL-3.0-only",
        "GNU General Public License v2 or later (GPLv2+)",
        "AGPL-3.0",
        "GNU Affero General Public License v3",
    ]
    assert all(licences.STRONG.search(word) for word in strong)
    weak = ["GNU Lesser General Public License v3 (LGPLv3)", "LGPL-2.1-or-later", "MPL-2.0", "MIT"]
    assert not any(licences.STRONG.search(word) for word in weak)
    monkeypatch.setattr(licences, "licence", lambda of: "GPL-3.0" if of.metadata["Name"] == "peft" else "MIT")
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    assert licences.main([]) == 1
    assert "error: peft: GPL-3.0" in capsys.readouterr().err
