"""Rows of delimited, JSON-lines and Parquet files, each with the place that an error names."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatemtl.errors import UserError, did_you_mean
from hatemtl.hub import fetch

LONGEST = 1_000_000  # characters of a field: beyond it a quote was never closed, or it is no file of posts


@dataclass(frozen=True)
class Rows:
    """The rows of one file: `columns[name][i]` is a string, or whatever JSON or Parquet hold; None where there is none.

    lines[i]: the line that row i starts at, counted from 1. again: the way out of a broken file, which ends its errors.
    """

    path: Path
    columns: Mapping[str, list[Any]]
    lines: Sequence[int]
    again: str

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, name: str) -> list[Any]:
        """A column. Raises UserError where there is none of this name."""
        if name not in self.columns:
            raise UserError(f"{self.path} has no column {name!r}: {did_you_mean(name, self.columns)}; {self.again}")
        return self.columns[name]

    def where(self, i: int, column: str | None = None) -> str:
        """How an error names row i."""
        return f"{self.path}, line {self.lines[i]}" + (f", column {column!r}" if column else "")

    def wrong(self, i: int, column: str, expected: str) -> UserError:
        """The error about one cell."""
        return UserError(f"{self.where(i, column)}: {_shown(self.columns[column][i])}, expected {expected}; {self.again}")

    def texts(self, name: str) -> list[str]:
        """A column of texts, without space around. Raises UserError where one is empty or none at all."""
        texts = []
        for i, value in enumerate(self[name]):
            if not isinstance(value, str) or not value.strip():
                raise self.wrong(i, name, "a text")
            texts.append(value.strip())
        return texts

    def numbers(self, name: str, low: float | None = None, high: float | None = None) -> list[float]:
        """A column of numbers. Raises UserError where one is none, or lies outside."""
        numbers = []
        between = f" from {low} to {high}" if low is not None and high is not None else ""
        for i, value in enumerate(self[name]):
            try:
                number = float(value)
            except (TypeError, ValueError):
                raise self.wrong(i, name, f"a number{between}") from None
            if not number - number == 0 or (low is not None and number < low) or (high is not None and number > high):
                raise self.wrong(i, name, f"a number{between}")
            numbers.append(number)
        return numbers

    def positions(self, name: str, known: Mapping[str, int]) -> list[int]:
        """A column of names as the numbers that they stand for. Raises UserError where one is not known."""
        found = []
        for i, value in enumerate(self[name]):
            if str(value).strip() not in known:
                raise self.wrong(i, name, f"one of {', '.join(known)}")
            found.append(known[str(value).strip()])
        return found


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def again(path: Path, home: str) -> str:
    """The way out of a broken file of a corpus whose home is there."""
    return f"download {path.name} again from {home}"


def read_delimited(
    path: Path,
    *,
    again: str,
    delimiter: str = ",",
    names: Sequence[str] | None = None,
    quoted: bool = True,
    encoding: str = "utf-8-sig",
) -> Rows:
    """A file of cells between delimiters; `names` where it has no header. quoted: whether "..." may hold delimiters.

    A byte order mark, CRLF and empty lines are passed over.
    Raises UserError with the line where the file cannot be read, or a row has more or fewer cells than the header.
    """
    csv.field_size_limit(LONGEST)
    rows, lines = [], []
    try:
        with path.open(newline="", encoding=encoding) as file:
            reader = csv.reader(
                file, delimiter=delimiter, strict=quoted, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
            )
            header, before = list(names) if names is not None else None, 0
            for row in reader:
                line, before = before + 1, reader.line_num
                if not row or (len(row) == 1 and not row[0].strip()):
                    continue
                if header is None:
                    header = [name.strip() for name in row]
                    continue
                if len(row) != len(header):
                    raise UserError(
                        f"{path}, line {line}: {len(row)} cells, expected {len(header)} ({', '.join(header)}); {again}"
                    )
                rows.append(row)
                lines.append(line)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not {encoding} at byte {error.start} ({error.reason}); {again}") from error
    except csv.Error as error:
        raise UserError(f"{path}, line {before + 1}: cannot be read ({error}); {again}") from error
    except (OSError, LookupError) as error:
        raise UserError(f"{path} cannot be read ({error}); {again}") from error
    if not rows or header is None:
        raise UserError(f"{path}: holds no rows; {again}")
    if len(set(header)) != len(header):
        raise UserError(f"{path}: two columns have one name ({', '.join(header)}); {again}")
    return Rows(path, {name: [row[i] for row in rows] for i, name in enumerate(header)}, lines, again)


def read_jsonl(path: Path, *, again: str) -> Rows:
    """A file with a JSON object a line; a key that a line lacks is None there.

    Raises UserError with the line where one is none.
    """
    found, lines = [], []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if len(line) > 10 * LONGEST:
                    raise UserError(f"{path}, line {number}: {len(line):,} characters, which is no post; {again}")
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f"{path}, line {number}: {_shown(row)}, expected a JSON object; {again}")
                found.append(row)
                lines.append(number)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start} ({error.reason}); {again}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: not valid JSON ({error.msg}); {again}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); {again}") from error
    return _rows(path, found, lines, again)


def read_parquet(paths: Iterable[Path], *, again: str) -> Rows:
    """The rows of one or several Parquet files of the same columns."""
    from pyarrow import ArrowException, concat_tables
    from pyarrow.parquet import read_table

    paths = sorted(paths)
    try:
        table = concat_tables([read_table(path) for path in paths])
    except (OSError, ValueError, ArrowException) as error:
        raise UserError(f"{paths[0]} cannot be read ({str(error).splitlines()[0]}); {again}") from error
    if not table.num_rows:
        raise UserError(f"{paths[0]}: holds no rows; {again}")
    return Rows(
        paths[0], {name: table[name].to_pylist() for name in table.column_names}, range(1, table.num_rows + 1), again
    )


def _rows(path: Path, found: list[dict[str, Any]], lines: list[int], again: str) -> Rows:
    if not found:
        raise UserError(f"{path}: holds no rows; {again}")
    names = list(dict.fromkeys(name for row in found for name in row))
    return Rows(path, {name: [row.get(name) for row in found] for name in names}, lines, again)


@dataclass(frozen=True)
class Hub:
    """A dataset on the hub, whose Parquet files lie as CONFIG/SPLIT/*.parquet in its branch refs/convert/parquet."""

    repo: str
    config: str
    revision: str = "refs/convert/parquet"

    def splits(self, names: Sequence[str], way_out: str) -> Iterator[tuple[str, Rows]]:
        """The rows of each split of these names. way_out: what a user without network can type instead."""
        folder = fetch(
            self.repo,
            kind="dataset",
            patterns=[f"{self.config}/{name}/*.parquet" for name in names],
            revision=self.revision,
            way_out=way_out,
        )
        again = f"delete {folder} and run again to download it anew"
        for name in names:
            paths = list((folder / self.config / name).glob("*.parquet"))
            if not paths:
                raise UserError(f"{folder} has no {self.config}/{name}/*.parquet; {again}")
            yield name, read_parquet(paths, again=again)
