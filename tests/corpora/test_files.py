import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from hatemtl.corpora.files import Hub, complete, official, read_delimited, read_jsonl, ways_out
from hatemtl.errors import UserError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_rows_know_their_lines(tmp_path: Path) -> None:
    read = read_delimited(write(tmp_path / "a.csv", 'id,text\n1,"two\nlines, here"\n\n2,one\n'), again="fix it")
    assert read["text"] == ["two\nlines, here", "one"]
    assert list(read.lines) == [2, 5]
    assert read.where(1, "text") == f"{tmp_path}/a.csv, line 5, column 'text'"


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfid,text\r\n1,caf\xc3\xa9\r\n", b"id,text\n1,caf\xc3\xa9", b" id ,text\n\n1,caf\xc3\xa9\n\n"]
)
def test_marks_line_ends_and_empty_lines_are_passed_over(tmp_path: Path, content: bytes) -> None:
    assert read_delimited(write(tmp_path / "a.csv", content), again="").columns == {"id": ["1"], "text": ["café"]}


def test_only_some_columns_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,b,c\n1,2,3\n4,5,6\n")
    assert read_delimited(path, again="", only={"c", "a"}.__contains__).columns == {"a": ["1", "4"], "c": ["3", "6"]}


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('a\t"he said ""hm"""\nb\tplain\n', ['he said "hm"', "plain"]),
        ('a\t"two\tcells"\n', ["two\tcells"]),
        ('a\t"hm" he said\nb\tplain\n', ['"hm" he said', "plain"]),
        ('a\t"never closed\nb\tplain\n', ['"never closed', "plain"]),
    ],
)
def test_quotes_are_quotes_if_all_pair_up(tmp_path: Path, content: str, texts: list[str]) -> None:
    path = write(tmp_path / "a.tsv", content)
    assert read_delimited(path, again="", delimiter="\t", names=("id", "text"), quoted=None)["text"] == texts


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("id,text\n1,a\n2,b,c\n", r"line 3: 3 cells, expected 2 \(id, text\)"),
        ("id,text\n1,a\n2\n", "line 3: 1 cells, expected 2"),
        ("", "holds no rows"),
        ("id,text\n", "holds no rows"),
        ("id,id\n1,2\n", "two columns have one name"),
        (b"id,text\n1,a\n2,caf\xe9\n", r"line 3: byte 0xe9 is no UTF-8"),
        (b"id,text\n" + 5000 * b"1,abc\n" + b"2,\xff\n", r"line 5002: byte 0xff is no UTF-8"),
        ('id,text\n1,a\n2,"never closed\n3,b\n', r"line 3: cannot be read \(unexpected end of data\)"),
        ("id,text\n1," + 10_000_000 * "a" + "\n", r"line 2: cannot be read \(field larger than"),
    ],
)
def test_a_broken_file_is_named_with_its_line_and_the_way_out(tmp_path: Path, content: str | bytes, expected: str) -> None:
    path = write(tmp_path / "a.csv", content)
    with pytest.raises(UserError, match=rf"{path}.*{expected}.*; fetch it again"):
        read_delimited(path, again="fetch it again")


def test_a_missing_file_and_an_unknown_encoding_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file.*; fix it"):
        read_delimited(tmp_path / "none.csv", again="fix it")
    with pytest.raises(UserError, match="unknown encoding: klingon"):
        read_delimited(write(tmp_path / "a.csv", "a\n1\n"), again="", encoding="klingon")


def test_json_lines(tmp_path: Path) -> None:
    read = read_jsonl(write(tmp_path / "a.jsonl", '\ufeff{"a": 1}\n\n{"a": 2, "b": ["x"]}\r\n'), again="")
    assert (read.columns, list(read.lines)) == ({"a": [1, 2], "b": [None, ["x"]]}, [1, 3])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a": 1}\n{"a": \n', "line 2: not valid JSON"),
        (b'{"a": 1}\n[1, 2]\n', r"line 2: \[1, 2\], expected a JSON object"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "line 2: byte 0xff is no UTF-8"),
        (b"\n", "holds no rows"),
    ],
)
def test_a_broken_line_of_json_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    with pytest.raises(UserError, match=rf"{expected}.*; fix it"):
        read_jsonl(write(tmp_path / "a.jsonl", content), again="fix it")


def test_the_ways_out_say_what_to_type() -> None:
    said = ways_out(Path("data/ethos"), ["a.csv", "b.csv"])
    assert "has no a.csv and b.csv either: type data.dir=FOLDER with ethos/a.csv in it" in said


def test_some_of_the_files_are_none(tmp_path: Path) -> None:
    assert not complete(tmp_path, ["a", "b"], "home.org")
    with pytest.raises(UserError, match=r"has no a: get it by hand at home.org, then type data.dir=FOLDER with .*/a in it"):
        complete(tmp_path, ["a", "b"], "home.org", hub=False)
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match=rf"{tmp_path} has no b, but needs a and b; download b again from home.org"):
        complete(tmp_path, ["a", "b"], "home.org")
    (tmp_path / "b").touch()
    assert complete(tmp_path, ["a", "b"], "home.org") and complete(tmp_path, ["a", "b"], "home.org", hub=False)


def test_official_files_are_read_by_name(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", f'{{"x": "{name}"}}')
    found = official(str(tmp_path), ["a.jsonl", "b.jsonl"], "home.org", read=read_jsonl)
    assert [(name, rows["x"]) for name, rows in found] == [("a.jsonl", ["a"]), ("b.jsonl", ["b"])]
    write(tmp_path / "b.jsonl", "{")
    with pytest.raises(UserError, match=r"b.jsonl, line 1: not valid JSON .*; download b.jsonl again from home.org"):
        official(str(tmp_path), ["a.jsonl", "b.jsonl"], "home.org", read=read_jsonl)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that stands for what the hub gave of some repository."""
    folder = tmp_path / "hub"
    folder.mkdir()
    asked: list[dict[str, object]] = []
    monkeypatch.setattr("hatemtl.corpora.files.fetch", lambda name, **how: asked.append({"name": name, **how}) or folder)
    yield folder
    assert json.dumps(asked[0]["patterns"]) == '["default/train/*.parquet", "default/test/*.parquet"]'
    assert asked[0]["name"] == "owner/name@refs/convert/parquet"


def test_the_hub_gives_split_after_split(cached: Path) -> None:
    import pyarrow.parquet as pq

    for split in ("train", "test"):
        (cached / "default" / split).mkdir(parents=True)
        pq.write_table(pa.table({"text": [split], "other": [1]}), cached / "default" / split / "0000.parquet")
    found = {split: read.columns for split, read in Hub("owner/name", "default").splits(["train", "test"], "")}
    assert found == {"train": {"text": ["train"], "other": [1]}, "test": {"text": ["test"], "other": [1]}}


def test_a_split_that_the_hub_lacks_is_named(cached: Path) -> None:
    with pytest.raises(UserError, match=r"hub has no default/train/\*.parquet; delete .*hub and run again"):
        list(Hub("owner/name", "default").splits(["train", "test"], ""))
