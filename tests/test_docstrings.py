"""A docstring says what something does, with a verb; it asks no question."""

import ast

from test_floors import PACKAGE

ASKING = {"What", "How", "Where", "Whose", "Whether", "Which", "Who"}  # of bool: "Tells whether ..."
FILES = sorted(PACKAGE.rglob("*.py"))


def test_no_first_line_begins_as_a_question() -> None:
    documented, asking = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef), []
    for path in FILES:
        nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, documented)]
        first = {(ast.get_docstring(node) or "-").split()[0] for node in nodes}
        found = ASKING & {word.strip(",.:'\"").removesuffix("'s") for word in first}
        asking += [f"{path.relative_to(PACKAGE)}: {word}" for word in found]
    assert FILES and not asking
