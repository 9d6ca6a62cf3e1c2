"""Reads the user's own file of posts for prediction as for training, and writes it back with scores."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatemtl.corpora.files import SUFFIXES, delimiter_of, read_table
from hatemtl.corpora.rows import Rows, sound
from hatemtl.errors import UserError, did_you_mean
from hatemtl.harmless import guarded
from hatemtl.labels import LabelSpace
from hatemtl.saved_runs.writing import write
from hatemtl.using.predictor import Scored

Columns = Mapping[str, Sequence[Any]]
WIDE = "0.12345678901234567"  # as wide as a score gets
JSONL = "type predict.output=NAME.jsonl, which holds whatever there is"


def read(
    path: Path, text: str | None, usual: str = "text", *, delimiter: str | None = None, encoding: str = "utf-8-sig"
) -> tuple[Rows, str]:
    """Reads the rows of a user's file, of plain text its lines as the column `text`; gives the column of texts too.

    text: that column; None for the usual one, or the only one. Raises UserError where the file, its format or that is wrong.
    """
    if not path.is_file():
        raise UserError(f"predict.input={path}: no such file; give a file of posts, such as predict.input=posts.csv")
    rows = read_table(path, delimiter=delimiter, encoding=encoding, keys="predict.", lines=text or "text")
    if text is None:
        text = usual if usual in rows.columns or len(rows.columns) != 1 else next(iter(rows.columns))
    replace(rows, again="type predict.text=COLUMN")[text]
    return replace(rows, again="mend the cell, or leave the row out"), text


def seconds(rows: Rows, column: str) -> list[str]:
    """Reads the column of second texts, none empty, as they are. Raises UserError where there is none, or one is empty."""
    replace(rows, again="type predict.pair=COLUMN").texts(column)
    return rows[column]


def output_for(path: Path, output: str | None, *, delimiter: str | None = None, overwrite: bool = False) -> Path:
    """Gives the path of the scored rows: `output`, or beside the input as NAME.scored.EXT.

    They are CSV for plain text, and JSON lines for a file of SQuAD's layout.

    Raises UserError where it cannot be written, or stands there already and may not be overwritten.
    """
    suffix = {".txt": ".csv", ".json": ".jsonl"}.get(path.suffix, path.suffix) if delimiter is None else path.suffix
    target = Path(output) if output else path.with_suffix(f".scored{suffix}")
    if target.suffix not in SUFFIXES and delimiter is None:
        raise UserError(f"predict.output={target}: {did_you_mean(target.suffix or str(target), SUFFIXES)}")
    if target.exists() and not target.is_file():
        raise UserError(f"predict.output={target} is no file; give another")
    if target.exists() and (not overwrite or target.resolve() == path.resolve()):
        raise UserError(f"predict.output={target} is there already; give another, or overwrite=true (never of the input)")
    return target


def score_columns(spaces: Mapping[str, LabelSpace], said: Sequence[Mapping[str, Scored]]) -> dict[str, list[Any]]:
    """Columns of what a Predictor said of texts: pred_TASK with labels, words or number, pred_TASK_LABEL with each score.

    Of a task that answers questions: pred_TASK with the answer, pred_TASK_start and pred_TASK_score.
    """
    columns: dict[str, list[Any]] = {}
    for task, space in spaces.items():
        of_task = [of_text[task] for of_text in said]
        columns[f"pred_{task}"] = [" ".join(one.labels) for one in of_task]
        if space.about == "words":
            columns[f"pred_{task}_scores"] = [" ".join(f"{score:.9g}" for _, score in one.words) for one in of_task]
        else:
            names = ("start", "score") if space.about == "answers" else space.names
            columns |= {f"pred_{task}_{name}": [one.scores[name] for one in of_task] for name in names}
    return columns


def check_writable(rows: Rows, names: Sequence[str], path: Path, **cells: Any) -> None:
    """Raises what `write_scored` would raise for columns of these names: before the posts are scored, not after."""
    beside = next(folder for folder in path.parents if folder.exists())
    try:
        with TemporaryDirectory(prefix=f".{path.name}.", dir=beside) as folder:
            write_scored(rows, {name: [WIDE] * len(rows) for name in names}, Path(folder) / path.name, **cells)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_scored(
    rows: Rows, columns: Columns, path: Path, *, delimiter: str | None = None, encoding: str = "utf-8-sig"
) -> None:
    """Writes the rows with the score columns behind them, in place of any of these names that were there.

    delimiter, encoding: of delimited files. Raises UserError where a value cannot be written in this format.
    """
    scored = {name: cells for name, cells in rows.columns.items() if name not in columns} | dict(columns)
    if path.suffix == ".jsonl":
        write(path, partial(_write_jsonl, scored))
    elif path.suffix == ".parquet":
        write(path, partial(_write_parquet, rows, columns))
    else:
        between = str(delimiter_of(path, delimiter))
        write(path, partial(_write_delimited, scored, delimiter=between, encoding=encoding.removesuffix("-sig")))


def _write_delimited(columns: Columns, path: Path, *, delimiter: str, encoding: str) -> None:
    """Writes cells as a spreadsheet may open them: what it would compute is `guarded`; `read_table` takes that off again."""
    # the csv module leaves a lone carriage return unquoted, and reading it back would make a new row of it
    returns = any(isinstance(value, str) and "\r" in value for column in columns.values() for value in column)
    rows = zip(*([name, *column] for name, column in columns.items()), strict=True)
    try:
        with path.open("w", newline="", encoding=encoding) as file:
            writer = csv.writer(
                file, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
            )
            writer.writerows([_cell(value) for value in row] for row in rows)
    except UnicodeEncodeError as error:
        raise UserError(f"predict.output: {encoding} has no {error.object[error.start]!r}; {JSONL}") from error


def _cell(value: Any) -> Any:
    return guarded(sound(json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else value))


def _write_jsonl(columns: Columns, path: Path) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:  # half an emoji is no UTF-8
        for row in rows_of(columns):
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def rows_of(columns: Columns) -> Iterator[dict[str, Any]]:
    """Gives each row of the columns as JSON lines have it."""
    for row in zip(*columns.values(), strict=True):
        known = [None if isinstance(value, float) and math.isnan(value) else value for value in row]
        yield dict(zip(columns, known, strict=True))


def _write_parquet(rows: Rows, added: Columns, path: Path) -> None:
    """A Parquet file's own columns keep their types."""
    from pyarrow import ArrowException, array, table
    from pyarrow.parquet import write_table

    try:
        scored = rows.arrow if rows.arrow is not None else table(dict(rows.columns))
        scored = scored.drop_columns([name for name in added if name in rows.columns])
        for name, column in added.items():
            scored = scored.append_column(name, array(column))
        write_table(scored, path)
    except (ArrowException, OverflowError, UnicodeError) as error:
        raise UserError(f"predict.output: these values are not for Parquet ({error}); {JSONL}") from error
