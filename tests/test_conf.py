"""Every YAML leaf is a constructor call that binds: no key that the constructor does not know, none that it misses."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from composed import composed
from hydra.utils import get_object
from omegaconf import OmegaConf

from hatemtl.merging.base import Needs
from hatemtl.methods.base import LOADERS

CONF = Path(__file__).parents[1] / "conf"
LISTED = ("tasks", "experiment", "data", "regulariser", "augmentation", "evaluations")  # what is no one constructor call
LEAVES = sorted(path for path in CONF.glob("*/*.yaml") if path.parent.name not in LISTED)
# What only the run knows, by group.
RUNTIME = {"head": {"hidden_size", "space"}, "logger": {"folder", "about"}, "weighting": {"tasks"}}
# which a masked head alone takes, a merge that must know something of posts, and a head with a lexicon
SOMETIMES = {"embedding", "statistics", "counts"}
SLOW = "peft"  # what begins so imports peft


def targets(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from targets(value)


def leaf(path: Path) -> Any:
    marks = [pytest.mark.slow] if path.stem.startswith(SLOW) else []
    return pytest.param(path, marks=marks, id=f"{path.parent.name}/{path.stem}")


@pytest.mark.parametrize("path", [leaf(path) for path in LEAVES])
def test_leaf_binds(path: Path) -> None:
    node = yaml.safe_load(path.read_text(encoding="utf-8"))
    parameters = inspect.signature(get_object(node["_target_"])).parameters
    given = {key for key in node if not key.startswith("_") and key != "defaults"}
    more = RUNTIME.get(path.parent.name, set()) if node.get("_partial_") else set()
    runtime = more | (SOMETIMES & set(parameters))
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values()), "constructors are keyword-only"
    assert given | runtime == set(parameters), "a leaf names every key, and no other"
    if path.parent.name == "method":
        method = get_object(node["_target_"])
        assert LOADERS[method.library.name], "what it saves can be loaded again"
        assert isinstance(method.library.quantizable, bool), "its library says what types of number it takes"
        assert all(p.default is p.empty for p in parameters.values()), "the leaf alone has defaults"
    if path.parent.name == "merge":
        merge = get_object(node["_target_"])
        assert merge.needs in (None, *get_args(Needs)), "a merge says what it must know of posts"
        assert (merge.needs is not None) == ("posts" in node) == ("statistics" in parameters)


@pytest.mark.parametrize(
    "path",
    [
        path
        for group in ("tasks", "experiment", "regulariser", "augmentation", "evaluations")
        for path in sorted(CONF.glob(f"{group}/*.yaml"))
    ],
    ids=lambda p: p.stem,
)
def test_task_or_experiment_composes_and_binds(path: Path) -> None:
    group, option = path.parent.name, path.stem
    override = f"experiment={option}" if group == "experiment" else f"{group}=[{option}]"
    cfg = OmegaConf.to_container(composed(override), resolve=True)
    nodes = list(targets(cfg))
    assert nodes
    for node in nodes:
        parameters = inspect.signature(get_object(node["_target_"])).parameters
        given = {key for key in node if not key.startswith("_")}
        assert given <= set(parameters)
        assert node["_target_"] != "hatemtl.tasks.Task" or given == set(parameters), "a task names every key"
        assert not node["_target_"].startswith("hatemtl.evaluations.") or given == set(parameters)


def test_every_file_is_seen() -> None:
    seen = {
        *LEAVES,
        *CONF.glob("tasks/*.yaml"),
        *CONF.glob("experiment/*.yaml"),
        *CONF.glob("regulariser/*.yaml"),
        *CONF.glob("augmentation/*.yaml"),
        *CONF.glob("evaluations/*.yaml"),
        CONF / "data/local.yaml",
        CONF / "config.yaml",
    }
    assert seen == set(CONF.rglob("*.yaml"))


def test_every_leaf_says_what_it_is() -> None:
    for path in CONF.rglob("*.yaml"):
        assert "#" in path.read_text(encoding="utf-8"), f"{path} has no comment"
