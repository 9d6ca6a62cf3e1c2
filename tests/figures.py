"""What heads and modules are judged by, to be looked up by name."""

from collections.abc import Iterable

from hatemtl.evaluations.base import Row
from hatemtl.heads.figures import Figure


def by_key(figures: Iterable[Figure]) -> dict[str, float]:
    """A head's figures by the names under which a task's `primary` may name them, in order."""
    return {figure.key: figure.value for figure in figures}


def by_metric(rows: Iterable[Row]) -> dict[str, float]:
    """Rows by their names in results.csv, in order."""
    return {row.metric: row.value for row in rows}
