"""Reads Parquet files into `Rows`."""

from collections.abc import Callable
from pathlib import Path

from hatemtl.corpora.rows import Rows
from hatemtl.errors import UserError, unreadable
from hatemtl.machine.parquet import unpacked


def read_parquet(*paths: Path, again: str, only: Callable[[str], bool] | None = None) -> Rows:
    """Reads the rows of one or several Parquet files of the same columns, or `only` some of these, by name."""
    from pyarrow import ArrowException, concat_tables

    parts = [unpacked(path, again) for path in paths]
    try:
        table = concat_tables(parts)
        columns = {name: table[name].to_pylist() for name in table.column_names if only is None or only(name)}
    except (ValueError, OverflowError, ArrowException) as error:  # of other columns, or a date that no calendar has
        raise unreadable(paths[0], error, again) from error
    if not table.num_rows:
        raise UserError(f"{paths[0]}: holds no rows; {again}")
    return Rows(paths[0], columns, range(1, table.num_rows + 1), again, "row", table if only is None else None)
