"""A docstring says what something does, with a verb; it asks no question."""

import ast
from pathlib import Path

import pytest
from test_floors import PACKAGE

ASKING = {"What", "How", "Where", "Whose", "Whether", "Which", "Who"}  # of bool: "Tells whether ..."
FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts))
def test_no_first_line_begins_as_a_question(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    first = [(ast.get_docstring(node) or "-").split()[0] for node in ast.walk(tree) if isinstance(node, documented)]
    assert not ASKING & {word.strip(",.:'\"").removesuffix("'s") for word in first}
