"""Changes one operator, number, name or word of the code at a time, and asks the fast tests whether they notice (mutmut).

Of each area a sample of all such changes is drawn. It prints how many were killed, and ends with 1 where that are fewer
than asked for; one that no test runs is not killed. What was done is kept in OUT, and the same command goes on with it.
OUT/AREA/survived.txt has those that were not killed: mutmut's name, the function, the lines before and after.

    uv run scripts/mutation.py merging metrics statistics saved_runs batches --out /tmp/mutation
"""

import argparse
import ast
import difflib
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MUTMUT = ["uv", "run", "--project", str(ROOT), "--with", "mutmut>=3.8,<4", "mutmut"]
SURVIVED, NO_TESTS = 0, 33  # how mutmut's files say it; None is not tried
KILLED = {1, 3, 24, 36, 152, -24}  # by a test that fails, or by the time that it takes
HOW = "--import-mode=importlib --doctest-modules -p no:xdist -p no:cacheprovider"
NAMES = ("significance", "resampling", "intervals", "many_comparisons", "stochastic_order", "outcomes", "verdicts")


@dataclass(frozen=True)
class Area:
    """files: that are changed. tests: that are to notice. flat: whether they are imported by their own names alone."""

    files: list[str]
    tests: list[str]
    flat: bool = False

    @property
    def asked(self) -> list[str]:
        """Lists what pytest is given: the tests, and the folders of files whose examples are tests too."""
        return [*self.tests, *([] if self.flat else [pattern.removesuffix("/*.py") for pattern in self.files])]


AREAS = {
    "merging": Area(["hatemtl/merging/*.py"], ["tests/merging"]),
    "metrics": Area(["hatemtl/heads/*.py", "hatemtl/evaluations/*.py"], ["tests/heads", "tests/evaluations"]),
    "statistics": Area(
        [f"{name}.py" for name in NAMES],
        [f"tests/analysis/test_{name}.py" for name in ("significance", "compare", "outcomes", "verdicts")],
        flat=True,
    ),
    "saved_runs": Area(["hatemtl/saved_runs/*.py"], ["tests/saved_runs"]),
    "batches": Area(["hatemtl/batches/*.py"], ["tests/batches"]),
}


def lay_out(area: Area, folder: Path) -> None:
    """Copies the tree, with what mutmut is to do."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    also = ["conf", "main.py", "hatemtl", "analysis", "benchmarks", "README.org", "docs"]
    config = (folder / "pyproject.toml").read_text()
    marks = re.search(r"-m '([^']+)'", config)
    assert marks is not None
    if area.flat:
        for script in (folder / "analysis").glob("*.py"):
            (folder / script.name).write_bytes(script.read_bytes())
            also.append(script.name)
        config = re.sub(r"(?m)^pythonpath = .*$", 'pythonpath = [".", "tests"]', config)
    settings = {
        "source_paths": area.files if area.flat else ["hatemtl"],
        "only_mutate": area.files,
        "also_copy": also,
        "pytest_add_cli_args": [
            "-o",
            f"addopts={HOW}",
            "-m",
            marks[1],
        ],
        "pytest_add_cli_args_test_selection": area.asked,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    (folder / "pyproject.toml").write_text("\n".join([config, "[tool.mutmut]", *lines, ""]))


def mutmut(folder: Path, *words: str) -> None:
    """Runs it, one mutant after the other, and keeps what it says."""
    with (folder / "mutmut.log").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*MUTMUT, "run", "--max-children", "1", *words], cwd=folder, env=environment, stdout=log, stderr=log)


def found(folder: Path) -> dict[str, int | None]:
    """Reads how each mutant ended, by its name."""
    files = sorted(folder.glob("mutants/**/*.meta"))
    return {name: code for file in files for name, code in json.loads(file.read_text())["exit_code_by_key"].items()}


def change(name: str, folder: Path) -> str:
    """Reads the change of a mutant: its file and function, the lines before and after."""
    module, _, mutant = name.rpartition(".")
    file = Path(f"{module.replace('.', '/')}.py")
    lines = (folder / "mutants" / file).read_text().splitlines()
    functions = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.FunctionDef)]
    spans = {node.name: lines[node.lineno - 1 : node.end_lineno] for node in functions}
    bare = mutant.rpartition("__mutmut_")[0]
    original = f"{bare}__mutmut_orig"
    before, after = ([line.strip().replace(of, bare) for line in spans[of]] for of in (original, mutant))
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "-+"]
    place = bare.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    return "\n    ".join([f"{name}: {file}: {place}", *changed])


def judge(name: str, folder: Path, sample: int) -> float:
    """Tries a sample of an area's mutants; gives the share that was killed."""
    if not folder.exists():
        lay_out(AREAS[name], folder)
    if not found(folder):
        mutmut(folder, "none of them")  # makes them all
    if not (names := sorted(found(folder))):
        raise SystemExit(f"{name}: no mutant was made; {folder / 'mutmut.log'} says why")
    chosen = sorted(random.Random(0).sample(names, min(sample, len(names))))
    if left := [one for one in chosen if found(folder)[one] is None]:
        mutmut(folder, *left)
    codes = {one: code for one, code in found(folder).items() if one in set(chosen) and code is not None}
    if not codes:
        raise SystemExit(f"{name}: no mutant was tried; {folder / 'mutmut.log'} says why; the same command tries again")
    if odd := {one: code for one, code in codes.items() if code not in KILLED | {SURVIVED, NO_TESTS}}:
        raise SystemExit(
            f"{name}: mutants that no test judged, by mutmut's number: {odd}; {folder / 'mutmut.log'} says more"
        )
    survived = [one for one, code in codes.items() if code not in KILLED]
    unseen = [one for one in survived if codes[one] == NO_TESTS]
    lines = (f"{change(one, folder)}{'  (no test runs it)' * (one in unseen)}\n" for one in survived)
    (folder / "survived.txt").write_text("".join(lines))
    share = 1 - len(survived) / len(codes)
    killed = f"{len(codes) - len(survived)} of {len(codes)} killed, {100 * share:.1f} %"
    print(f"{name}: {killed}, drawn of {len(names)}; no test runs {len(unseen)}", flush=True)
    return share


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("areas", nargs="*", choices=[*AREAS, []], metavar="AREA", help=f"{', '.join(AREAS)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("/tmp/hatemtl_mutation"), help="where copies of the tree go")
    parser.add_argument("--sample", type=int, default=300, help="changes of an area that are tried")
    parser.add_argument("--least", type=float, default=85, help="per cent that tests must notice")
    args = parser.parse_args()
    shares = [judge(name, args.out / name, args.sample) for name in args.areas or AREAS]
    return int(any(100 * share < args.least for share in shares))


if __name__ == "__main__":
    sys.exit(main())
