"""What a release says of itself in several places agrees, and holds what is promised of it."""

import re
import tomllib

import yaml
from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_place_names_the_same_version_and_licence() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (first, *_) = re.findall(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert {str(cited["version"]), first} == {PROJECT["version"]}
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
    assert cited["license"] == PROJECT["license"] and (ROOT / "LICENSE").read_text().startswith("MIT")


def test_reports_are_asked_for_in_five_lines() -> None:
    templates = [*(ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md")]
    assert len(templates) == 2
    for path in templates:
        _, head, body = path.read_text().split("---\n")
        assert {"name", "about"} <= yaml.safe_load(head).keys()
        assert len(body.splitlines()) == 5, path
    assert "in private" in (ROOT / "SECURITY.md").read_text()


def test_ci_runs_every_python_that_is_allowed_on_both_systems() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    matrix = jobs["check"]["strategy"]["matrix"]
    assert matrix == {"os": ["ubuntu-latest", "macos-latest"], "python": ["3.11", "3.12", "3.13"]}
    assert PROJECT["requires-python"] == f">={matrix['python'][0]}"
    assert [step["run"] for step in jobs["check"]["steps"] if "run" in step] == [".ci/run"]
    assert [step["run"] for step in jobs["trust"]["steps"] if "run" in step] == ["make trust"]
