"""Corpora on disk: the hub's parquet branch as a download leaves it in its cache, and official files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def on_hub(cache: Path, repo: str, config: str, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Writes CONFIG/SPLIT/0000.parquet for each split into the cache; its folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    repository = cache / f"datasets--{repo.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("c" * 40)
    reference = repository / "refs" / "refs" / "convert" / "parquet"
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text("c" * 40)
    for split, rows in splits.items():
        path = snapshot / config / split / "0000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return snapshot


def jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def tsv(path: Path, rows: Sequence[Sequence[Any]], mark: str = "") -> None:
    """Writes cells between tabs, never quoted; mark: a byte order mark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(mark + "".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
