"""JSON objects: what is read is what was written, and whatever else a file holds is told."""

from pathlib import Path

import pytest

from hatemtl.errors import UserError
from hatemtl.machine.json_object import LIMIT, read


def test_keys_and_values_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, {"б": null}]}', encoding="utf-8")
    assert read(tmp_path / "a.json", "") == {"a": [1, {"б": None}]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", r"not valid JSON \("),
        (b"\xff\xfe{}", r"not valid JSON \("),
        (b"[" * 100_000, r"not valid JSON \("),
        (b"[1]", r"holds \[1\], expected keys with values"),
        (b'"a"', "holds 'a', expected keys with values"),
        (b'{"a": "' + b"b" * LIMIT + b'"}', "is longer than 16 MiB"),
    ],
    ids=["cut off", "no text", "deep", "a list", "a word", "long"],
)
def test_anything_else_is_told_with_the_way_out(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"a.json: {expected}.*; train it again$"):
        read(tmp_path / "a.json", "train it again")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(UserError, match=f"{path} cannot be read"):
            read(path, "")
