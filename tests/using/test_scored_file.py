import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hatemtl.corpora.rows import Rows
from hatemtl.corpora.table import Table
from hatemtl.errors import UserError
from hatemtl.using import scored_file

TEXTS = ["hello you", 'a "quoted", with a comma', "NA", "tabs\tin it", "two\nlines", "émoji 😂", "007", "  hard\u00a0space "]
KINDS = [".csv", ".tsv", ".jsonl", ".parquet"]


def lay_out(folder: Path, kind: str, frame: pd.DataFrame) -> Path:
    """A file of posts as another program would write it."""
    path = folder / f"posts{kind}"
    if kind == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in frame.to_dict("records")]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    elif kind == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if kind == ".tsv" else ",")
    return path


def laid(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, text: str = "text", **cells: Any) -> Rows:
    """The rows of the file, whose column of texts it has."""
    rows, found = scored_file.read(path, text, **cells)
    assert found == text and text in rows.columns
    return rows


def score(path: Path, output: Path | None = None, text: str = "text", **cells: Any) -> Path:
    """Reads the file and writes it with a column of scores."""
    rows = read(path, text, **cells)
    target = output or scored_file.output_for(path, None, delimiter=cells.get("delimiter"))
    scored_file.write_scored(rows, {"pred_x": [f"score {i}" for i in range(len(rows))]}, target, **cells)
    return target


def columns(path: Path, text: str = "text", **cells: Any) -> dict[str, list[Any]]:
    return dict(read(path, text, **cells).columns)


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_their_order_are_kept_and_scores_stand_behind(tmp_path: Path, kind: str, to: str) -> None:
    given = pd.DataFrame({"id": [f"0{i}" for i in range(len(TEXTS))], "text": TEXTS, "note": ["x"] * len(TEXTS)})
    back = columns(score(lay_out(tmp_path, kind, given), tmp_path / f"out{to}"))
    assert back == {**given.to_dict("list"), "pred_x": [f"score {i}" for i in range(len(TEXTS))]}
    assert list(back) == ["id", "text", "note", "pred_x"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_posts_are_those_that_training_reads(tmp_path: Path, kind: str) -> None:
    path = lay_out(tmp_path, kind, pd.DataFrame({"comment": TEXTS}))
    posts = read(path, "comment").posts("comment")
    assert posts == Table(path=str(path), text="comment").read().texts
    assert posts == [" ".join(text.split()) for text in TEXTS]


def test_the_lines_of_plain_text_are_posts_and_come_back_as_csv(tmp_path: Path) -> None:
    lines = ["first post", 'second, "quoted"', "  émoji 😂 "]
    path = laid(tmp_path / "posts.txt", "\n".join(lines) + "\n")
    assert read(path, "comment").posts("comment") == [line.strip() for line in lines]
    assert columns(score(path, text="comment"), "comment")["comment"] == lines
    assert (tmp_path / "posts.scored.csv").is_file()


def test_lines_end_as_they_do_on_windows_too(tmp_path: Path) -> None:
    assert columns(laid(tmp_path / "posts.txt", b"one\r\ntwo\r\n"))["text"] == ["one", "two"]


@pytest.mark.parametrize("character", ["\u2028", "\x85", "\x0c", "\x1d"])
def test_only_ends_of_lines_end_a_post_of_plain_text(tmp_path: Path, character: str) -> None:
    path = laid(tmp_path / "posts.txt", f"one{character}still one\ntwo\n")
    assert columns(path)["text"] == [f"one{character}still one", "two"]


# The user's own columns


def test_cells_of_csv_are_not_guessed_at(tmp_path: Path) -> None:
    path = laid(tmp_path / "posts.csv", "id,text,n\n007,NA,1.50\n08,null,\n")
    assert score(path).read_text() == "id,text,n,pred_x\n007,NA,1.50,score 0\n08,null,,score 1\n"


def test_values_of_jsonl_are_not_guessed_at(tmp_path: Path) -> None:
    row = {
        "id": "0012",
        "text": "2020-01-01",
        "date": "2020-01-02",
        "created_at": "2020-01-02T00:00:00Z",
        "timestamp": 1500000000,
        "big": 1234567890123456789,
        "huge": 2**80,
        "digits": 0.123456789012345,
        "yes": True,
        "none": None,
        "tags": ["a", None, 1],
        "nested": {"k": {"deep": [1.0, None]}},
        "empty": {},
    }
    path = laid(tmp_path / "posts.jsonl", json.dumps(row) + "\n")
    back = score(path).read_text()
    assert json.loads(back) == {**row, "pred_x": "score 0"}
    assert '"deep": [1.0, null]' in back


def test_a_column_of_jsonl_may_hold_one_kind_of_value_here_and_another_there(tmp_path: Path) -> None:
    values: list[Any] = [1234567890123456789, None, 1.5, "x", [1], {"k": None}, False]
    lines = [json.dumps({"text": "a", "n": value}) for value in values]
    path = laid(tmp_path / "posts.jsonl", "\n".join(lines))
    back = [json.loads(line)["n"] for line in score(path).read_text().splitlines()]
    assert back == values and [type(value) for value in back] == [type(value) for value in values]


def test_scored_jsonl_is_valid_json_where_a_row_lacks_a_key(tmp_path: Path) -> None:
    path = laid(tmp_path / "posts.jsonl", '{"text": "a", "n": NaN}\n{"text": "b"}\n{"text": "c", "n": 1}\n')

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in score(path).read_text().splitlines()]
    assert [row.get("n") for row in rows] == [None, None, 1]


def test_the_columns_of_parquet_keep_their_types(tmp_path: Path) -> None:
    numbers = pa.table(
        {
            "small": pa.array([1, None], pa.int8()),
            "when": pa.array([1500000000123456789, 0], pa.timestamp("ns", "Europe/Ljubljana")),
            "price": pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)),
            "kind": pa.array(["x", "y"]).dictionary_encode(),
            "text": pa.array(["a", "b"], pa.large_string()),
            "nested": [{"k": [1, None]}, None],
            "bytes": pa.array([b"\xff", None]),
            "gap": pa.nulls(2),
            "pred_x": [1, 2],
        }
    ).replace_schema_metadata({"made": "by hand"})
    pq.write_table(numbers, tmp_path / "posts.parquet")
    back, before = pq.read_table(score(tmp_path / "posts.parquet")), pq.read_table(tmp_path / "posts.parquet")
    assert back.drop_columns("pred_x").equals(before.drop_columns("pred_x"), check_metadata=True)
    assert back["pred_x"].to_pylist() == ["score 0", "score 1"]
    assert back.column_names[-1] == "pred_x"


def test_the_index_of_a_parquet_file_survives(tmp_path: Path) -> None:
    given = pd.DataFrame({"id": ["k1", "k2"], "text": ["a", "b"], "pred_x": [1, 2]}).set_index("id")
    path = lay_out(tmp_path, ".parquet", given)
    back = pd.read_parquet(score(path))
    assert back.index.tolist() == ["k1", "k2"] and back.index.name == "id"
    assert back["pred_x"].tolist() == ["score 0", "score 1"]
    for kind in (".csv", ".tsv", ".jsonl"):
        assert columns(score(path, tmp_path / f"out{kind}"))["id"] == ["k1", "k2"]


def test_lists_and_times_of_a_parquet_file_can_be_written_otherwise(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a"], "tags": [["x", "y"]], "at": [pd.Timestamp("2020-01-02")]})
    path = lay_out(tmp_path, ".parquet", frame)
    assert json.loads(score(path, tmp_path / "out.jsonl").read_text())["tags"] == ["x", "y"]
    back = columns(score(path, tmp_path / "out.csv"))
    assert json.loads(back["tags"][0]) == ["x", "y"]  # as a table's column of several labels is read
    assert back["at"] == ["2020-01-02 00:00:00"]


@pytest.mark.parametrize("kind", [".csv", ".tsv"])
def test_a_carriage_return_in_a_post_makes_no_new_row(tmp_path: Path, kind: str) -> None:
    path = lay_out(tmp_path, ".parquet", pd.DataFrame({"text": ["one\rstill one", "two"]}))
    assert columns(score(path, tmp_path / f"out{kind}"))["text"] == ["one\rstill one", "two"]


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_stand_in_place_of_older_ones(tmp_path: Path, kind: str, to: str) -> None:
    path = lay_out(tmp_path, kind, pd.DataFrame({"pred_x": ["old", "old"], "text": ["a", "b"]}))
    assert columns(score(path, tmp_path / f"out{to}")) == {"text": ["a", "b"], "pred_x": ["score 0", "score 1"]}


@pytest.mark.parametrize("to", [".csv", ".jsonl"])
def test_an_emoji_that_was_cut_in_half_stops_nothing(tmp_path: Path, to: str) -> None:
    """Posts cut to a number of UTF-16 units, as some archives cut them, end in half of one."""
    path = laid(tmp_path / "posts.jsonl", '{"text": "so funny \\ud83d"}\n{"text": "b"}\n')
    assert read(path, "text").posts("text") == ["so funny ?", "b"]
    back = columns(score(path, tmp_path / f"out{to}"))["text"]
    assert back == ["so funny \ud83d" if to == ".jsonl" else "so funny ?", "b"]


# Delimiters and encodings


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", '\ufeff{"text": "hi"}\n'), ("a.txt", "\ufeffhi\n"), ("a.csv", "\ufefftext\nhi\n")]
)
def test_a_byte_order_mark_is_no_part_of_a_post(tmp_path: Path, name: str, content: str) -> None:
    path = laid(tmp_path / name, content)
    assert columns(path) == {"text": ["hi"]}
    assert not score(path).read_bytes().startswith(b"\xef\xbb\xbf")


@pytest.mark.parametrize(
    ("name", "delimiter", "encoding", "raw"),
    [
        ("posts.csv", ";", "cp1252", "text;n\ncafé, hot;1\n"),
        ("posts.csv", "tab", "utf-16", "text\tn\ncafé, hot\t1\n"),
        ("posts.dat", "|", "utf-8-sig", "text|n\ncafé, hot|1\n"),
        ("posts.txt", "tab", "cp1252", "text\tn\ncafé, hot\t1\n"),
    ],
)
def test_a_file_comes_back_between_its_delimiters_in_its_encoding(
    tmp_path: Path, name: str, delimiter: str, encoding: str, raw: str
) -> None:
    path = laid(tmp_path / name, raw.encode(encoding))
    target = score(path, delimiter=delimiter, encoding=encoding)
    assert target.name == name.replace(".", ".scored.")
    mark = "\t" if delimiter == "tab" else delimiter
    text = target.read_bytes().decode(encoding)
    assert text == raw.replace("n\n", f"n{mark}pred_x\n").replace("1\n", f"1{mark}score 0\n")


def test_plain_text_in_another_encoding(tmp_path: Path) -> None:
    path = laid(tmp_path / "posts.txt", "café\n".encode("cp1252"))
    assert columns(path, encoding="cp1252")["text"] == ["café"]
    assert score(path, encoding="cp1252").read_bytes() == "text,pred_x\ncafé,score 0\n".encode("cp1252")


def test_what_the_encoding_lacks_is_refused_before_posts_are_scored(tmp_path: Path) -> None:
    rows = read(laid(tmp_path / "posts.csv", "text\ncafé\n".encode("cp1252")), "text", encoding="cp1252")
    target = tmp_path / "new" / "out.csv"
    scored_file.check_writable(rows, ["pred_x_né"], target, encoding="cp1252")
    with pytest.raises(UserError, match=r"predict.output: cp1252 has no 'č'; type predict.output=NAME.jsonl"):
        scored_file.check_writable(rows, ["pred_x_mačka"], target, encoding="cp1252")
    scored_file.check_writable(rows, ["pred_x_mačka"], tmp_path / "out.jsonl", encoding="cp1252")
    assert list(tmp_path.iterdir()) == [tmp_path / "posts.csv"]


@pytest.mark.parametrize("values", [["1", '"x"'], ["{}", "{}"], [str(2**80), "1"], ['"\\ud83d"', '"x"']])
def test_values_that_parquet_does_not_hold_are_refused(tmp_path: Path, values: list[str]) -> None:
    rows = read(laid(tmp_path / "a.jsonl", "\n".join(f'{{"text": "a", "n": {n}}}' for n in values)), "text")
    with pytest.raises(UserError, match=r"predict.output: .*Parquet.*; type predict.output=NAME.jsonl"):
        scored_file.check_writable(rows, [], tmp_path / "out.parquet")


# Where it goes


def test_the_scored_file_stands_beside_its_input_unless_told_otherwise() -> None:
    assert scored_file.output_for(Path("a/my.posts.csv"), None) == Path("a/my.posts.scored.csv")
    assert scored_file.output_for(Path("a/posts.txt"), None) == Path("a/posts.scored.csv")
    assert scored_file.output_for(Path("a/posts.txt"), "b/out.jsonl") == Path("b/out.jsonl")


@pytest.mark.parametrize("output", ["out.txt", "out.xlsx", "out"])
def test_an_output_that_cannot_be_written_is_refused(output: str) -> None:
    with pytest.raises(UserError, match=rf"predict\.output={output}.*"):
        scored_file.output_for(Path("posts.csv"), output)


def test_neither_the_input_nor_what_stands_there_is_written_over(tmp_path: Path) -> None:
    path, other = laid(tmp_path / "posts.csv", "text\na\n"), laid(tmp_path / "other.csv", "")
    for overwrite, output in ((False, other), (False, path), (True, path)):
        with pytest.raises(UserError, match="is there already"):
            scored_file.output_for(path, str(output), overwrite=overwrite)
    assert scored_file.output_for(path, str(other), overwrite=True) == other


def test_a_folder_that_is_not_there_is_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    score(laid(tmp_path / "posts.csv", "text\na\n"), tmp_path / "new" / "out.csv")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.csv"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    new = laid(tmp_path / "posts.jsonl", '{"text": "new", "n": 1}\n{"text": "new", "n": "x"}\n')
    target = score(laid(tmp_path / "old.csv", "text\nold\n"), tmp_path / "out.parquet")
    with pytest.raises(UserError, match="Parquet"):
        score(new, target)
    assert columns(target)["text"] == ["old"]
    assert {path.name for path in tmp_path.iterdir()} == {"posts.jsonl", "old.csv", "out.parquet"}


# What is wrong with a file


WRONG = {
    "a text is missing": ("posts.csv", "text,n\na,1\n,2\n", "line 3, column 'text': '', expected a text"),
    "a text is space": ("posts.tsv", "text\tn\na\t1\n  \t2\n", "line 3, column 'text': '  ', expected a text"),
    "a text is null": ("posts.jsonl", '{"text": "a"}\n{"text": null}\n', "line 2, column 'text': None, expected a text"),
    "a text is not there": ("posts.jsonl", '{"text": "a"}\n{"n": 1}\n', "line 2, column 'text': None, expected a text"),
    "a text is a list": ("posts.jsonl", '{"text": ["a"]}\n', r"line 1, column 'text': \['a'\], expected a text"),
    "a text is a number": ("posts.jsonl", '{"text": 3}\n', "line 1, column 'text': 3, expected a text"),
    "a long text": ("posts.jsonl", '{"text": "' + "b" * 9_900_000 + '"}', "line 1, column 'text'.*1,000,000"),
    "no file of posts": ("posts.xlsx", "", r"\.csv, \.tsv, \.jsonl, \.parquet.*delimiter="),
    "no suffix": ("posts", "", r"posts: .*\.csv, \.tsv"),
    "another suffix": ("posts.json", "{}", r"list 'data'.*NAME\.jsonl"),
    "empty": ("posts.csv", "", "holds no rows"),
    "header only": ("posts.csv", "text,n\n", "holds no rows"),
    "empty JSON": ("posts.jsonl", "", "holds no rows"),
    "ragged": ("posts.csv", "text,n\na,1\na,1,2,3\n", r"line 3: 4 cells, expected 2 \(text, n\)"),
    "a comma at the end": ("posts.csv", "text,n\na,1,\nb,2,\n", "line 2: 3 cells, expected 2"),
    "two columns of a name": ("posts.csv", "text,n,n\na,1,2\n", r"two columns have one name \(text, n, n\)"),
    "other delimiter": ("posts.csv", "text;n\na;1\n", """one column only.*delimiter="';'\""""),
    "tabs": ("posts.csv", "text\tn\na\t1\n", "one column only.*delimiter=tab"),
    "no UTF-8": ("posts.csv", b"text,n\na,1\ncaf\xe9,1\n", "line 3: byte 0xe9 is no UTF-8.*encoding=cp1252"),
    "no UTF-8 in JSON": ("posts.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', "line 2: byte 0xe9"),
    "no JSON": ("posts.jsonl", '{"text": "a"}\n{"text":\n', "line 2: not valid JSON"),
    "no object": ("posts.jsonl", '{"text": "a"}\nnull\n', "line 2: None, expected a JSON object"),
    "no Parquet": ("posts.parquet", "text,n\n", "cannot be read"),
    "another column": ("posts.csv", "texts,n\na,1\n", "no column 'text': did you mean 'texts'.*text=COLUMN"),
    "no such column": ("posts.tsv", "comment\tn\na\t1\n", "no column 'text': known: comment, n"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_training_refuses_is_refused_with_the_same_words(tmp_path: Path, name: str) -> None:
    file, content, said = WRONG[name]
    path = laid(tmp_path / file, content)
    with pytest.raises(UserError, match=said) as error:
        read(path, "text").posts("text")
    assert str(path) in str(error.value)
    with pytest.raises(UserError) as training:
        Table(path=str(path)).read()
    same = str(training.value).replace("tasks.TASK.corpus.", "predict.")
    assert str(error.value).replace(", .txt", "") == same


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"encoding": "utf-9"}, r"encoding=utf-9: no such encoding"),
        ({"encoding": "base64"}, r"encoding=base64: no such encoding"),
        ({"encoding": None}, r"encoding=None: no such encoding"),
        ({"encoding": "utf-16"}, r"posts.csv.*; .*encoding=cp1252"),
        ({"delimiter": "ab"}, r"delimiter='ab': expected one character, tab"),
        ({"delimiter": ""}, r"delimiter='': expected one character, tab"),
        ({"delimiter": '"'}, r"delimiter='\"': expected one character, tab"),
        ({"delimiter": 12}, r"delimiter=12: expected one character, tab"),
    ],
)
def test_keys_that_fit_no_file_are_named(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    path = laid(tmp_path / "posts.csv", "text,n\na,1\n")
    with pytest.raises(UserError, match=said):
        scored_file.read(path, "text", **keys)
    with pytest.raises(UserError, match=said):
        Table(path=str(path), **keys).read()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("one\n\ntwo\n", "line 2, column 'text': '', expected a text"),
        ("one\n\n", "line 2, column 'text'"),
        ("\n", "line 1, column 'text'"),
        ("", "line 1, column 'text'"),
        (b"caf\xe9\n", "line 1: byte 0xe9 is no UTF-8.*type predict.encoding=cp1252"),
    ],
)
def test_a_line_of_plain_text_is_a_post(tmp_path: Path, content: str | bytes, said: str) -> None:
    path = laid(tmp_path / "posts.txt", content)
    with pytest.raises(UserError, match=rf"posts.txt.*{said}"):
        read(path, "text").posts("text")


def test_a_parquet_file_with_a_name_twice_or_without_the_column_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([["a"], ["b"]], ["text", "text"]), tmp_path / "twice.parquet")
    with pytest.raises(UserError, match=r"twice.parquet: two columns have one name \(text, text\)"):
        scored_file.read(tmp_path / "twice.parquet", "text")
    path = lay_out(tmp_path, ".parquet", pd.DataFrame({"body": ["a"], "n": [1]}))
    with pytest.raises(UserError, match="known: body, n; type predict.text=COLUMN"):
        scored_file.read(path, "text")


def test_a_missing_file_or_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name in ("missing.csv", "folder.csv"):
        with pytest.raises(UserError, match=rf"{name}: no such file"):
            scored_file.read(tmp_path / name, "text")


def test_texts_that_a_spreadsheet_would_compute_are_guarded_and_read_back_as_they_were(tmp_path: Path) -> None:
    posts, scored = tmp_path / "posts.csv", tmp_path / "scored.csv"
    posts.write_text("text,=name\n=1+1,x\n@someone hello,-0.5\n'=kept,+y\n", encoding="utf-8")
    rows = read(posts, "text")
    scored_file.write_scored(rows, {"pred_label": ["=a", "b", "c"]}, scored)
    assert scored.read_text(encoding="utf-8").splitlines() == [
        *("text,'=name,pred_label", "'=1+1,x,'=a", "'@someone hello,-0.5,b", "'=kept,'+y,c"),
    ]
    again = read(scored, "text")
    assert again.columns["text"] == rows.columns["text"] == ["=1+1", "@someone hello", "=kept"]
    assert again.columns["=name"] == ["x", "-0.5", "+y"]


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_formats_of_no_spreadsheet_keep_texts_as_they_are(tmp_path: Path, kind: str) -> None:
    posts = laid(tmp_path / "posts.jsonl", '{"=a": "=1+1", "text": "@x"}\n')
    rows = read(posts)
    scored_file.write_scored(rows, {"pred_x": ["-y"]}, tmp_path / f"out{kind}")
    found = columns(tmp_path / f"out{kind}")
    assert {name: [*cells] for name, cells in found.items()} == {"=a": ["=1+1"], "text": ["@x"], "pred_x": ["-y"]}


def test_the_column_of_texts_is_the_usual_one_or_the_only_one(tmp_path: Path) -> None:
    one = laid(tmp_path / "one.csv", "said\nhello\n")
    two = laid(tmp_path / "two.csv", "said,text\nhello,bye\n")
    assert scored_file.read(one, None, "comment")[1] == "said"
    assert scored_file.read(two, None, "text")[1] == "text"
    with pytest.raises(UserError, match=r"no column 'comment'.*predict\.text=COLUMN"):
        scored_file.read(two, None, "comment")
    with pytest.raises(UserError, match=r"no column 'comment'.*predict\.text=COLUMN"):
        scored_file.read(tmp_path / "one.csv", "comment")
