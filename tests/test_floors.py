"""Imports go downward only, and each outside package has one owner."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hatemtl"
# From the ground up; a room may import its own files and those of lower floors.
FLOORS = [
    {"errors", "seeds", "harmless"},
    {"labels", "answers", "machine"},
    {"heads", "corpora"},
    {"evaluations"},
    {"tasks", "encoders", "saved_runs", "merging"},
    {"encoders.fast", "objective"},
    {"batches"},
    {"methods"},
    {"network"},
    {"command"},
    {"using"},
    {"training"},
    {"tuning"},
    {"run"},
    {"command_line"},
    {"__main__"},
]
OWNERS = {
    "hydra": {"command", "command_line"},
    "omegaconf": {"command", "command_line"},
    "pydantic": {"command.annotations"},
    "lightning": {"network.module", "batches", "training", "command.request"},
    "transformers": {"encoders", "using.load"},  # the latter is copied beside an export, and runs without us
    "adapters": {"methods.adapterhub"},
    "peft": {"methods.peft_adapters"},
    "datasets": {"corpora"},
    "torchmetrics": {"heads", "network.module"},
    "wandb": {"training.loggers"},
    "mlflow": {"training.loggers"},
    "bitsandbytes": {"encoders"},
    "captum": {"evaluations.explainers"},
    "huggingface_hub": {"machine.hub", "using.publish", "encoders.pretrained"},  # the last for an error of transformers'
    "rich": {"command", "training", "using"},
    "optuna": {"tuning"},
    "submitit": {"training.launch.slurm"},
    "ray": {"training.launch.ray"},
    "torchjd": {"objective.surgery"},
    "starlette": {"using.serve"},
    "uvicorn": {"using.serve"},
    "scipy": {"evaluations"},  # and analysis/, which is no part of the package
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


def room(module: str) -> str:
    """The room of a file: its folder, or itself where it stands in none; encoders/fast is one of its own."""
    parts = module.removeprefix("hatemtl.").split(".")
    return "encoders.fast" if parts[:2] == ["encoders", "fast"] else parts[0]


def floor(module: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room(module) in rooms)


def test_imports_go_down() -> None:
    up = [
        f"{name(path)} imports {module}, which lies no lower"
        for path in FILES
        for module in imports(path)
        if module.startswith("hatemtl.") and room(module) != room(name(path)) and floor(module) >= floor(name(path))
    ]
    assert FILES and not up


def test_no_circle() -> None:
    graph = {name(p): {m.removeprefix("hatemtl.") for m in imports(p) if m.startswith("hatemtl.")} for p in FILES}
    done: set[str] = set()
    while len(done) < len(graph):
        free = {module for module, needs in graph.items() if module not in done and needs & graph.keys() <= done}
        assert free, f"a circle among {sorted(graph.keys() - done)}"
        done |= free


def test_each_outside_package_has_an_owner() -> None:
    foreign = [
        f"{name(path)} imports {module}; its owner is {owners}"
        for path in FILES
        for module in imports(path)
        if (owners := OWNERS.get(module.split(".")[0])) is not None
        and not any(f"{name(path)}.".startswith(f"{owner}.") for owner in owners)
    ]
    assert FILES and not foreign


def test_the_fast_layers_have_one_door() -> None:
    """What is inside may be deleted without a change elsewhere, but for the calls of its verbs."""
    others = [*(path for path in FILES if room(name(path)) != "encoders.fast")]
    for path in (*others, *(PACKAGE.parent / "benchmarks").glob("*.py"), *(PACKAGE.parent / "scripts").glob("*.py")):
        assert not [module for module in imports(path) if module.startswith("hatemtl.encoders.fast.")], path


def test_every_room_has_a_floor() -> None:
    rooms = {room(name(path)) for path in FILES}
    assert rooms == set().union(*FLOORS)


def test_no_room_without_a_name_and_no_code_among_outputs() -> None:
    assert not [p for p in FILES if p.stem in ("utils", "helpers", "common", "misc")]
    assert not list((PACKAGE.parent / "adapters").glob("**/*.py"))


def test_analysis_never_imports_torch() -> None:
    for path in (PACKAGE.parent / "analysis").glob("*.py"):
        light = {"hatemtl.harmless", "hatemtl.errors", "hatemtl.machine"}  # YAML at most
        light |= {"hatemtl.machine.json_object", "hatemtl.machine.parquet"}
        others = imports(path) - light
        assert not {m.split(".")[0] for m in others} & {"torch", "hatemtl", "transformers", "lightning"}


@pytest.mark.parametrize(
    ("start", "without"),
    [
        ("__main__", {"hydra"}),  # which is long enough to be interrupted in
        ("command_line", {"torch", "lightning", "transformers", "numpy", "pydantic"}),  # what it takes to answer --help
        ("run", {"adapters", "peft", "pandas", "pyarrow", "datasets", "wandb", "tensorboard", "bitsandbytes", "captum"}),
        ("run", {"optuna", "matplotlib", "submitit", "starlette", "uvicorn"}),
        ("evaluations.explainers", {"captum"}),
        ("evaluations.eraser", {"torch"}),
        ("training.train", {"hydra", "omegaconf"}),
        ("methods.full", {"adapters", "peft"}),
        ("methods.adapterhub.train_and_load", {"peft"}),
        ("saved_runs.claiming", {"torch", "pandas"}),
        ("saved_runs.saved_run", {"torch", "pandas"}),
        ("methods.peft_adapters.library", {"adapters"}),
        ("corpora.hatexplain", {"torch", "pandas", "pyarrow", "datasets"}),
    ],
)
def test_heavy_packages_wait_until_they_are_needed(start: str, without: set[str]) -> None:
    assert not {module.split(".")[0] for module in reached(f"hatemtl.{start}")} & without


def reached(start: str) -> set[str]:
    """All that is imported as soon as this is."""
    seen, todo = set(), {start}
    while todo:
        module = todo.pop()
        seen.add(module)
        path = PACKAGE.parent / f"{module.replace('.', '/')}.py"
        todo |= imports(path, at_once=True) - seen if path.exists() and module.startswith("hatemtl.") else set()
    return seen


@pytest.mark.slow
def test_adapterhub_may_be_missing() -> None:
    """Its library is an extra: only its own methods need it at once."""
    others = [name(path) for path in FILES if not name(path).startswith("methods.adapterhub.")]
    need = [module for module in others if any(f"{x}.".startswith("adapters.") for x in reached(f"hatemtl.{module}"))]
    assert len(others) > 200 and not need
