"""Parquet files become rows together, and a small one that stands for far too much is refused."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from hatemtl.corpora.parquet import read_parquet
from hatemtl.errors import UserError
from hatemtl.machine.parquet import unpacked


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.nulls(40_000_000, pa.string()), "holds 40,000,000 rows in"),
        (pa.array(["x" * 1_000_000] * 3), "unpacks to more than 1 MiB"),
        (pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), ["soup " * 1000]), "unpacks to more than 1 MiB"),
        (pa.array([["x" * 1_000_000], ["x" * 2_000_000]]), "unpacks to more than 1 MiB"),
        (pa.array([[("a", "x" * 3_000_000)]], pa.map_(pa.string(), pa.string())), "unpacks to more than 1 MiB"),
        (pa.array([{"a": "x" * 3_000_000}]), "unpacks to more than 1 MiB"),
        (pa.array([2**31 - 1], pa.date32()), "cannot be read (days=2147483647"),
        (pa.array([2**62], pa.duration("s")), "cannot be read (Python int too large"),
    ],
)
def test_a_small_parquet_file_of_far_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: Any, said: str
) -> None:
    monkeypatch.setattr("hatemtl.machine.parquet.UNPACKED", 1 << 20)
    parquet.write_table(pa.table({"text": column}), path := tmp_path / "p.parquet", compression="zstd")
    with pytest.raises(UserError) as error:
        read_parquet(path, again="write it anew")
    assert said in str(error.value) and str(error.value).endswith("; write it anew")


def test_what_is_broken_is_told_whoever_reads_it(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")]
    )
    parquet.write_table(pa.table({"task": broken}), path := tmp_path / "p.parquet")
    with pytest.raises(UserError, match="p.parquet cannot be read .*Invalid UTF8 sequence.*; test again"):
        unpacked(path, "test again")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="p.parquet cannot be read .*; test again"):
        unpacked(path, "test again")


def test_parquet_files_are_put_together_and_count_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, values in (("1", [3.5, None]), ("0", [1.0, 2.0])):
        pq.write_table(pa.table({"x": values, "y": ["a", "b"], "z": [1, 2]}), tmp_path / f"{name}.parquet")
    read = read_parquet(*sorted(tmp_path.glob("*.parquet")), again="", only={"x", "y"}.__contains__)
    assert read.columns == {"x": [1.0, 2.0, 3.5, None], "y": ["a", "b", "a", "b"]}
    with pytest.raises(UserError, match="0.parquet, row 4, column 'x': None, expected a number"):
        read.array("x")
