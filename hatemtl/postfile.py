"""The user's own file of posts: read for prediction, written back with scores."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from hatemtl.artifacts import write
from hatemtl.corpora.base import Posts
from hatemtl.errors import UserError, did_you_mean

READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": lambda path: pd.read_csv(path, dtype=str, keep_default_na=False),
    ".tsv": lambda path: pd.read_csv(path, dtype=str, keep_default_na=False, sep="\t"),
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False),
    ".parquet": pd.read_parquet,
    ".txt": lambda path: pd.DataFrame({"text": path.read_text(encoding="utf-8").splitlines()}),
}
WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
    ".tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    ".jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True, force_ascii=False),
    ".parquet": lambda frame, path: frame.to_parquet(path, index=False),
}


def read(path: Path, text: str) -> pd.DataFrame:
    """The rows of a CSV, TSV, JSONL or Parquet file, or the lines of a plain-text file.

    Raises UserError where the file, its format or the text column is wrong.
    """
    if path.suffix not in READERS:
        raise UserError(f"predict.input={path}: {did_you_mean(path.suffix or str(path), READERS)}")
    if not path.is_file():
        raise UserError(f"predict.input={path}: no such file")
    try:
        frame = READERS[path.suffix](path)
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"predict.input={path}: cannot be read as {path.suffix} ({error})") from error
    if text not in frame.columns and path.suffix != ".txt":
        raise UserError(
            f"predict.text={text}: {path} has no such column; {did_you_mean(text, frame.columns)}; type predict.text=COLUMN"
        )
    if frame.empty:
        raise UserError(f"predict.input={path}: holds no posts")
    return frame


def as_posts(frame: pd.DataFrame, text: str) -> Posts:
    """The rows as posts of the test split, without annotations."""
    texts = frame[text].fillna("").astype(str).tolist()
    return Posts([str(i) for i in range(len(texts))], texts, np.full(len(texts), "test"), {})


def output_for(path: Path, output: str | None) -> Path:
    """Where the scored rows go: `output`, or beside the input as NAME.scored.EXT (CSV for plain text)."""
    target = Path(output) if output else path.with_suffix(f".scored{'.csv' if path.suffix == '.txt' else path.suffix}")
    if target.suffix not in WRITERS:
        raise UserError(f"predict.output={target}: {did_you_mean(target.suffix or str(target), WRITERS)}")
    return target


def write_scored(frame: pd.DataFrame, columns: dict[str, list[object]], path: Path) -> None:
    """Writes the rows with the score columns behind them."""
    scored = pd.concat([frame.reset_index(drop=True), pd.DataFrame(columns)], axis=1)
    write(path, lambda temporary: WRITERS[path.suffix](scored, temporary))
