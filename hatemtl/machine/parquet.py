"""Reads Parquet files, and none that is small and stands for what fills memory."""

from pathlib import Path
from typing import Any

from hatemtl.errors import UserError, unreadable

UNPACKED = 1 << 28  # bytes up to which a Parquet file may unpack, however small it is


def unpacked(path: Path, again: str, columns: list[str] | None = None) -> Any:
    """Reads the table of a Parquet file, or these columns, some rows at a time.

    Raises UserError where a small file stands for a huge one, or it is broken.
    """
    from pyarrow import ArrowException

    try:
        return _unpacked(path, again, columns)
    except (OSError, ValueError, ArrowException) as error:
        raise unreadable(path, error, again) from error


def _unpacked(path: Path, again: str, columns: list[str] | None) -> Any:
    from pyarrow import Table
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        names = file.schema_arrow.names
        if len({*names}) < len(names):
            raise UserError(f"{path}: two columns have one name ({', '.join(names)}); {again}")
        if lacks := [name for name in columns or () if name not in names]:
            raise UserError(f"{path} cannot be read (it has no column {', '.join(lacks)}); {again}")
        most, size, batches = max(UNPACKED, 100 * path.stat().st_size), 0, []
        if (rows := file.metadata.num_rows) > most // 8:  # a row without a text takes as much in Python's lists
            raise UserError(f"{path}: holds {rows:,} rows in {path.stat().st_size:,} bytes, which are no posts; {again}")
        for batch in file.iter_batches(batch_size=1000, columns=columns):
            batch.validate(full=True)  # else a text that is none ends whoever takes it out
            batches.append(batch)
            if (size := size + sum(map(_size, batch.columns))) > most:
                raise UserError(f"{path}: unpacks to more than {most >> 20:,} MiB, a hundred times its size; {again}")
        if columns is None:
            return Table.from_batches(batches, file.schema_arrow)
        return Table.from_batches(batches) if batches else file.schema_arrow.empty_table().select(columns)


def _size(array: Any) -> int:
    """Counts the bytes of an Arrow array as Python will hold it: a value each time that it stands there."""
    from pyarrow import types

    if types.is_dictionary(array.type):
        return _size(array.dictionary_decode())
    if types.is_struct(array.type):
        return sum(map(_size, array.flatten()))
    if types.is_map(array.type):
        return _size(array.keys) + _size(array.items)
    return _size(array.flatten()) if types.is_nested(array.type) else array.nbytes
