"""Reads Parquet files into `Rows`."""

from collections.abc import Callable
from pathlib import Path

from hatemtl.corpora.rows import Rows
from hatemtl.errors import UserError
from hatemtl.machine.parquet import unpacked


def read_parquet(*paths: Path, again: str, only: Callable[[str], bool] | None = None) -> Rows:
    """Reads the rows of one or several Parquet files of the same columns, or `only` some of these, by name."""
    from pyarrow import ArrowException, concat_tables

    try:
        table = concat_tables([unpacked(path, again) for path in paths])
        columns = {name: table[name].to_pylist() for name in table.column_names if only is None or only(name)}
    except (OSError, ValueError, OverflowError, ArrowException) as error:  # of a date that no calendar has, too
        raise UserError(f"{paths[0]} cannot be read ({str(error).splitlines()[0]}); {again}") from error
    if not table.num_rows:
        raise UserError(f"{paths[0]}: holds no rows; {again}")
    return Rows(paths[0], columns, range(1, table.num_rows + 1), again, "row", table if only is None else None)
