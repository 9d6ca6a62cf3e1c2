"""The user's own file of posts: read for prediction, written back with scores."""

import csv
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.errors import ParserWarning

from hatemtl.corpora.base import Posts
from hatemtl.errors import UserError, did_you_mean
from hatemtl.harmless import guarded, unguarded
from hatemtl.saved_runs.saved_run import write


def _read_delimited(path: Path, delimiter: str) -> pd.DataFrame:
    with warnings.catch_warnings():
        # rows longer than the header: pandas would make their first cells the index, or drop their last ones
        warnings.simplefilter("error", ParserWarning)
        return pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, sep=delimiter)


def _read_jsonl(path: Path) -> pd.DataFrame:
    # not pandas' reader, which makes floats of whole numbers beside a hole
    rows = [json.loads(line) for line in _text(path).split("\n") if line.strip()]
    for row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"expected an object a line, given {row!r}")
    return pd.DataFrame(rows, dtype=object)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")  # without a byte order mark


def _with_index(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.reset_index() if frame.index.names != [None] else frame  # it may hold the posts' ids


def _write_delimited(frame: pd.DataFrame, path: Path, delimiter: str) -> None:
    """Writes cells as a spreadsheet may open them: a text that it would compute has an apostrophe in front.

    These are texts and columns' names that begin with = + - @, a tab or a carriage return and are no numbers, among them
    posts that begin with @name. One that has its apostrophe already, for the file was scored before, keeps the one. JSONL
    and Parquet, which no spreadsheet computes, keep every text as it is.
    """

    def harmless(cell: Any) -> Any:
        return guarded(unguarded(cell)) if isinstance(cell, str) else cell

    frame = frame.rename(columns=harmless)
    for column in frame.select_dtypes(include=["object", "string", "category"]):
        frame[column] = frame[column].map(harmless)
    # the csv module leaves a lone carriage return unquoted, and reading it back would make a new row of it
    texts = frame.select_dtypes(exclude="number").astype(str)
    returns = any(texts[column].str.contains("\r", regex=False).any() for column in texts)
    frame.to_csv(path, index=False, sep=delimiter, quoting=csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL)


def _write_jsonl(frame: pd.DataFrame, path: Path) -> None:
    def plain(value: Any) -> Any:
        return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)

    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:  # half an emoji is no UTF-8
        for row in frame.to_dict(orient="records"):
            known = {
                str(key): None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()
            }
            file.write(json.dumps(known, ensure_ascii=False, default=plain) + "\n")


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": lambda path: _read_delimited(path, ","),
    ".tsv": lambda path: _read_delimited(path, "\t"),
    ".jsonl": _read_jsonl,
    ".parquet": lambda path: _with_index(pd.read_parquet(path)),
}
WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    ".csv": lambda frame, path: _write_delimited(frame, path, ","),
    ".tsv": lambda frame, path: _write_delimited(frame, path, "\t"),
    ".jsonl": _write_jsonl,
    ".parquet": lambda frame, path: frame.to_parquet(path),
}


def read(path: Path, text: str) -> pd.DataFrame:
    """The rows of a CSV, TSV, JSONL or Parquet file; of a plain-text file, its lines as the column `text`.

    Raises UserError where the file, its format or the text column is wrong.
    """
    if path.suffix not in (*READERS, ".txt"):
        raise UserError(f"predict.input={path}: {did_you_mean(path.suffix or str(path), [*READERS, '.txt'])}")
    if not path.is_file():
        raise UserError(f"predict.input={path}: no such file")
    try:
        if path.suffix == ".txt":
            lines = _text(path).removesuffix("\n")
            frame = pd.DataFrame({text: lines.split("\n") if lines else []})
        else:
            frame = READERS[path.suffix](path)
    except (ValueError, OSError, ParserWarning) as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"predict.input={path}: cannot be read as {path.suffix} ({error})") from error
    if frame.empty:
        raise UserError(f"predict.input={path}: holds no posts")
    if text not in frame.columns:
        raise UserError(
            f"predict.text={text}: {path} has no such column; {did_you_mean(text, frame.columns)}; type predict.text=COLUMN"
        )
    return frame


def as_posts(frame: pd.DataFrame, text: str) -> Posts:
    """The rows as posts of the test split, without annotations."""
    texts = [str(value).encode(errors="replace").decode() for value in frame[text].fillna("")]  # half an emoji is no text
    return Posts([str(i) for i in range(len(texts))], texts, np.full(len(texts), "test"), {})


def output_for(path: Path, output: str | None, *, overwrite: bool = False) -> Path:
    """Where the scored rows go: `output`, or beside the input as NAME.scored.EXT (CSV for plain text).

    Raises UserError where it cannot be written, or stands there already and may not be overwritten.
    """
    target = Path(output) if output else path.with_suffix(f".scored{'.csv' if path.suffix == '.txt' else path.suffix}")
    if target.suffix not in WRITERS:
        raise UserError(f"predict.output={target}: {did_you_mean(target.suffix or str(target), WRITERS)}")
    if target.exists() and (not overwrite or target.resolve() == path.resolve()):
        raise UserError(f"predict.output={target} is there already; give another, or overwrite=true (never of the input)")
    return target


def write_scored(frame: pd.DataFrame, columns: dict[str, list[object]], path: Path) -> None:
    """Writes the rows with the score columns behind them, in place of any of these names that were there."""
    kept = frame.drop(columns=[name for name in columns if name in frame.columns])
    scored = pd.concat([kept, pd.DataFrame(columns, index=kept.index)], axis=1)
    write(path, lambda temporary: WRITERS[path.suffix](scored, temporary))
