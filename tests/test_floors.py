"""Imports go downward only, and each outside package has one owner."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hatemtl"
FLOORS = [
    {
        "errors",
        "seeds",
        "labels",
        "batch",
        "hub",
        "artifacts",
        "save_path",
        "provenance",
        "quiet",
        "mistyped",
        "startup",
        "interruption",
        "faults",
        "merging",
        "flops",
    },
    {"corpora", "heads", "sampling", "weighting", "batching"},
    {"tasks", "encoder", "methods", "optimization", "postfile", "tokencache", "pool", "masking", "prefix", "leaks"},
    {
        "datamodule",
        "module",
        "callbacks",
        "trainer",
        "loggers",
        "network",
        "report",
        "outcome",
        "export",
        "refit",
        "headstart",
        "cohort",
        "divergence",
    },
    {"configuration", "using", "training", "standing", "run"},
]
OWNERS = {
    "hydra": {"run", "training", "configuration"},
    "omegaconf": {"run", "training", "using", "configuration"},
    "lightning": {"datamodule", "module", "callbacks", "trainer", "loggers", "cohort", "training", "configuration"},
    "transformers": {"encoder"},
    "adapters": {"methods.adapter_hub", "methods.ah_config", "methods.ah_fold", "methods.ah_library", "methods.ah_setup"},
    "peft": {"methods.peft_library"},
    "datasets": {"corpora"},
    "torchmetrics": {"heads", "module"},
    "wandb": {"loggers"},
    "bitsandbytes": {"encoder"},
    "huggingface_hub": {"hub"},
    "rich": {"callbacks", "cohort", "report", "training", "using", "configuration"},
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path, *, at_once: bool = False) -> set[str]:
    """What a file imports; with `at_once`, what it imports as soon as it is imported itself."""
    found, tree = set(), ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "hatemtl" else {node.module}
    return {module for module in found if module}


def floor(module: str) -> int:
    room = module.removeprefix("hatemtl.").split(".")[0]
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_go_down(path: Path) -> None:
    for module in imports(path):
        if module.startswith("hatemtl."):
            assert floor(module) <= floor(name(path)), f"{name(path)} imports {module} from a higher floor"


def test_no_circle() -> None:
    graph = {name(p): {m.removeprefix("hatemtl.") for m in imports(p) if m.startswith("hatemtl.")} for p in FILES}
    done: set[str] = set()
    while len(done) < len(graph):
        free = {module for module, needs in graph.items() if module not in done and needs & graph.keys() <= done}
        assert free, f"a circle among {sorted(graph.keys() - done)}"
        done |= free


@pytest.mark.parametrize("path", FILES, ids=name)
def test_each_outside_package_has_an_owner(path: Path) -> None:
    for module in imports(path):
        owners = OWNERS.get(module.split(".")[0])
        if owners is not None:
            mine = name(path)
            assert mine in owners or mine.split(".")[0] in owners, f"{mine} imports {module}; its owner is {owners}"


def test_every_room_has_a_floor() -> None:
    rooms = {name(path).split(".")[0] for path in FILES}
    assert rooms == set().union(*FLOORS)


def test_no_room_without_a_name_and_no_code_among_outputs() -> None:
    assert not [p for p in FILES if p.stem in ("utils", "helpers", "common", "misc")]
    assert not list((PACKAGE.parent / "adapters").glob("**/*.py"))


def test_analysis_never_imports_torch() -> None:
    for path in (PACKAGE.parent / "analysis").glob("*.py"):
        assert not {m.split(".")[0] for m in imports(path)} & {"torch", "hatemtl", "transformers", "lightning"}


@pytest.mark.parametrize(
    ("start", "without"),
    [
        ("errors", {"torch", "lightning", "transformers", "numpy"}),  # what main.py needs to answer --help
        ("startup", {"torch", "lightning", "transformers", "numpy"}),
        ("interruption", {"torch", "lightning", "transformers", "numpy"}),
        ("mistyped", {"torch", "lightning", "transformers", "numpy"}),
        ("run", {"adapters", "peft", "pandas", "pyarrow", "datasets", "wandb", "tensorboard", "bitsandbytes"}),
        ("methods.full", {"adapters", "peft"}),
        ("methods.adapter_hub", {"peft"}),
        ("methods.peft_hub", {"adapters"}),
        ("corpora.hatexplain", {"torch", "pandas", "pyarrow", "datasets"}),
    ],
)
def test_heavy_packages_wait_until_they_are_needed(start: str, without: set[str]) -> None:
    seen, todo = set(), {f"hatemtl.{start}"}
    while todo:
        module = todo.pop()
        seen.add(module)
        path = PACKAGE.parent / f"{module.replace('.', '/')}.py"
        todo |= imports(path, at_once=True) - seen if path.exists() and module.startswith("hatemtl.") else set()
    assert not {module.split(".")[0] for module in seen} & without
