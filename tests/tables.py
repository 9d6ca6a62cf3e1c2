"""Reads the tables that commands print."""

from conftest import Outcome


def told(outcome: Outcome) -> dict[str, list[str]]:
    """The closing table, by what sets a run apart: its other cells."""
    lines = outcome.out.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("runs of this sweep")) :]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in table if line.startswith("│")]
    return {run: rest for run, *rest in rows if run}  # a long cell goes on in a row without one
