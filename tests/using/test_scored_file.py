import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hatemtl.errors import UserError
from hatemtl.using import scored_file

TEXTS = ["hello you", 'a "quoted", with a comma', "NA", "", "tabs\tin it", "two\nlines", "émoji 😂", "007", "  spaces  "]
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


def scored(path: Path, text: str = "text", **columns: list[object]) -> pd.DataFrame:
    """Reads the file, writes it with these columns, and reads what was written."""
    frame = scored_file.read(path, text)
    target = scored_file.output_for(path, None)
    scored_file.write_scored(frame, columns or {"pred_x": [f"score {i}" for i in range(len(frame))]}, target)
    return scored_file.read(target, text)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_their_order_are_kept_and_scores_stand_behind(tmp_path: Path, kind: str) -> None:
    given = pd.DataFrame({"id": [f"0{i}" for i in range(len(TEXTS))], "text": TEXTS, "note": ["x"] * len(TEXTS)})
    back = scored(lay_out(tmp_path, kind, given))
    assert list(back.columns) == ["id", "text", "note", "pred_x"]
    assert back["id"].tolist() == given["id"].tolist()
    assert back["text"].tolist() == TEXTS
    assert back["pred_x"].tolist() == [f"score {i}" for i in range(len(TEXTS))]


@pytest.mark.parametrize("kind", KINDS)
def test_the_posts_are_the_texts_in_order(tmp_path: Path, kind: str) -> None:
    frame = scored_file.read(lay_out(tmp_path, kind, pd.DataFrame({"comment": TEXTS})), "comment")
    posts = scored_file.as_posts(frame, "comment")
    assert posts.texts == TEXTS
    assert posts.ids == [str(i) for i in range(len(TEXTS))]
    assert set(posts.splits) == {"test"}
    assert posts.columns == {}


def test_the_lines_of_plain_text_are_posts_and_come_back_as_csv(tmp_path: Path) -> None:
    lines = ["first post", "", 'second, "quoted"', "  émoji 😂 "]
    path = tmp_path / "posts.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert scored_file.as_posts(scored_file.read(path, "text"), "text").texts == lines
    back = scored(path)
    assert (tmp_path / "posts.scored.csv").is_file()
    assert back["text"].tolist() == lines


def test_lines_end_as_they_do_on_windows_too(tmp_path: Path) -> None:
    path = tmp_path / "posts.txt"
    path.write_bytes(b"one\r\ntwo\r\n")
    assert scored_file.read(path, "text")["text"].tolist() == ["one", "two"]


def test_cells_of_csv_are_not_guessed_at(tmp_path: Path) -> None:
    path = tmp_path / "posts.csv"
    path.write_text("id,text,n\n007,NA,1.50\n08,null,\n")
    scored(path)
    assert (tmp_path / "posts.scored.csv").read_text() == "id,text,n,pred_x\n007,NA,1.50,score 0\n08,null,,score 1\n"


def test_values_of_jsonl_are_not_guessed_at(tmp_path: Path) -> None:
    row = {
        "id": "0012",
        "text": "2020-01-01",
        "date": "2020-01-02",
        "created_at": "2020-01-02T00:00:00Z",
        "timestamp": 1500000000,
        "big": 1234567890123456789,
        "yes": True,
        "none": None,
        "tags": ["a", "b"],
        "nested": {"k": 1},
    }
    path = tmp_path / "posts.jsonl"
    path.write_text(json.dumps(row) + "\n")
    scored(path)
    assert json.loads((tmp_path / "posts.scored.jsonl").read_text()) == {**row, "pred_x": "score 0"}


def test_a_csv_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "posts.csv"
    path.write_bytes("\ufefftext,n\nhi,1\n".encode())
    assert scored_file.read(path, "text")["text"].tolist() == ["hi"]


def test_texts_that_are_missing_or_numbers_become_strings() -> None:
    frame = pd.DataFrame({"text": ["a", None, np.nan, 3]})
    assert scored_file.as_posts(frame, "text").texts == ["a", "", "", "3"]


def test_rows_keep_their_order_whatever_the_index_says() -> None:
    frame = pd.DataFrame({"text": ["a", "b", "c"]}, index=[2, 0, 2])
    assert scored_file.as_posts(frame, "text").texts == ["a", "b", "c"]


def test_scores_stand_by_their_rows_whatever_the_index_says(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", "b", "c"]}, index=[2, 0, 1])
    scored_file.write_scored(frame, {"pred_x": [1, 2, 3]}, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "text,pred_x\na,1\nb,2\nc,3\n"


def test_the_scored_file_stands_beside_its_input_unless_told_otherwise() -> None:
    assert scored_file.output_for(Path("a/my.posts.csv"), None) == Path("a/my.posts.scored.csv")
    assert scored_file.output_for(Path("a/posts.txt"), None) == Path("a/posts.scored.csv")
    assert scored_file.output_for(Path("a/posts.txt"), "b/out.jsonl") == Path("b/out.jsonl")


@pytest.mark.parametrize("output", ["out.txt", "out.xlsx", "out"])
def test_an_output_that_cannot_be_written_is_refused(output: str) -> None:
    with pytest.raises(UserError, match=rf"predict\.output={output}.*"):
        scored_file.output_for(Path("posts.csv"), output)


def test_a_folder_that_is_not_there_is_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    scored_file.write_scored(pd.DataFrame({"text": ["a"]}), {"pred_x": [1]}, tmp_path / "new" / "out.csv")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.csv"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    scored_file.write_scored(pd.DataFrame({"text": ["old"]}), {"pred_x": [1]}, target)
    with pytest.raises(Exception, match="mixed|Expected|convert"):
        scored_file.write_scored(pd.DataFrame({"text": ["new", 3, {1: 2}]}), {"pred_x": [1, 2, 3]}, target)
    assert pd.read_parquet(target)["text"].tolist() == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


# Errors


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("posts.xlsx", b"", r"\.csv, \.tsv, \.jsonl, \.parquet, \.txt"),
        ("posts", b"", r"\.csv, \.tsv"),
        ("posts.json", b"{}", r"did you mean '\.jsonl'"),
        ("posts.csv", b"", r"cannot be read as \.csv"),
        ("posts.csv", b"text,n\n", "holds no posts"),
        ("posts.csv", b'text,n\n"never closed,1\n', r"cannot be read as \.csv"),
        ("posts.csv", b"text,n\na,1\na,1,2,3\n", r"cannot be read as \.csv"),
        ("posts.csv", b"text,n\ncaf\xe9,1\n", r"cannot be read as \.csv.*utf-8"),
        ("posts.jsonl", b'{"text": "a"}\n{"text":\n', r"cannot be read as \.jsonl"),
        ("posts.parquet", b"no parquet", r"cannot be read as \.parquet"),
        ("posts.txt", b"", "holds no posts"),
        ("posts.txt", b"caf\xe9\n", r"cannot be read as \.txt"),
        ("posts.csv", b"texts,n\na,1\n", r"predict\.text=text.*did you mean 'texts'.*type predict\.text=COLUMN"),
        ("posts.tsv", b"comment\tn\na\t1\n", "known: comment, n"),
        ("posts.jsonl", b'{"comment": "a"}\n', "known: comment"),
        ("posts.jsonl", b"", "holds no posts"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_way_out(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        scored_file.read(tmp_path / name, "text")
    assert name in str(error.value)


def test_a_parquet_file_without_the_column_lists_those_it_has(tmp_path: Path) -> None:
    path = lay_out(tmp_path, ".parquet", pd.DataFrame({"body": ["a"], "n": [1]}))
    with pytest.raises(UserError, match="known: body, n"):
        scored_file.read(path, "text")


def test_a_missing_file_or_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name in ("missing.csv", "folder.csv"):
        with pytest.raises(UserError, match=rf"{name}: no such file"):
            scored_file.read(tmp_path / name, "text")


# What goes wrong


@pytest.mark.filterwarnings("ignore::pandas.errors.ParserWarning")
def test_a_comma_at_the_end_of_every_row_does_not_shift_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "posts.csv"
    path.write_text("text,n\nhello,1,\nthere,2,\n")
    try:
        texts = scored_file.read(path, "text")["text"].tolist()
    except UserError:
        return  # to refuse is as good
    assert texts == ["hello", "there"]


def test_plain_text_needs_no_column_name(tmp_path: Path) -> None:
    path = tmp_path / "posts.txt"
    path.write_text("one\ntwo\n")
    try:
        frame = scored_file.read(path, "comment")
    except UserError:
        return
    assert scored_file.as_posts(frame, "comment").texts == ["one", "two"]


@pytest.mark.parametrize("character", ["\u2028", "\x85", "\x0c", "\x1d"])
def test_only_ends_of_lines_end_a_post_of_plain_text(tmp_path: Path, character: str) -> None:
    path = tmp_path / "posts.txt"
    path.write_text(f"one{character}still one\ntwo\n", encoding="utf-8")
    assert scored_file.read(path, "text")["text"].tolist() == [f"one{character}still one", "two"]


@pytest.mark.parametrize("kind", [".csv", ".tsv"])
def test_a_carriage_return_in_a_post_makes_no_new_row(tmp_path: Path, kind: str) -> None:
    path = lay_out(tmp_path, ".parquet", pd.DataFrame({"text": ["one\rstill one", "two"]}))
    frame = scored_file.read(path, "text")
    scored_file.write_scored(frame, {"pred_x": ["a", "b"]}, tmp_path / f"out{kind}")
    assert len(scored_file.read(tmp_path / f"out{kind}", "text")) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_scored_file_can_be_scored_again_or_is_refused(tmp_path: Path, kind: str) -> None:
    """Whichever way is chosen: no two columns of one name, and no stack."""
    path = lay_out(tmp_path, kind, pd.DataFrame({"text": ["a", "b"], "pred_x": ["old", "old"]}))
    try:
        frame = scored_file.read(path, "text")
        scored_file.write_scored(frame, {"pred_x": ["new", "new"]}, tmp_path / f"out{kind}")
    except UserError:
        return
    columns = scored_file.read(tmp_path / f"out{kind}", "text").columns
    assert set(columns) == {"text", "pred_x"}


def test_the_ids_of_a_parquet_file_survive_where_they_are_its_index(tmp_path: Path) -> None:
    path = lay_out(tmp_path, ".parquet", pd.DataFrame({"id": ["k1", "k2"], "text": ["a", "b"]}).set_index("id"))
    back = scored(path).reset_index()
    assert back["id"].tolist() == ["k1", "k2"]


def test_numbers_of_jsonl_keep_their_digits(tmp_path: Path) -> None:
    path = tmp_path / "posts.jsonl"
    path.write_text('{"text": "a", "n": 0.123456789012345}\n')
    scored(path)
    assert json.loads((tmp_path / "posts.scored.jsonl").read_text())["n"] == pytest.approx(0.123456789012345, rel=1e-14)


def test_whole_numbers_of_jsonl_stay_whole_where_one_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "posts.jsonl"
    path.write_text('{"text": "a", "id": 1234567890123456789}\n{"text": "b", "id": null}\n')
    scored(path)
    first = (tmp_path / "posts.scored.jsonl").read_text().splitlines()[0]
    assert json.loads(first)["id"] == 1234567890123456789


def test_scored_jsonl_is_valid_json_where_a_row_lacks_a_key(tmp_path: Path) -> None:
    path = tmp_path / "posts.jsonl"
    path.write_text('{"text": "a", "n": 1}\n{"text": "b"}\n')
    scored(path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "posts.scored.jsonl").read_text().splitlines()]
    assert rows[0]["n"] == 1
    assert rows[1].get("n") is None


@pytest.mark.parametrize("line", ["3", "null", "[1, 2]"])
def test_a_line_of_jsonl_that_is_no_object_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "posts.jsonl"
    path.write_text(f'{{"text": "a"}}\n{line}\n')
    with pytest.raises(UserError, match=r"cannot be read as \.jsonl"):
        scored_file.read(path, "text")


def test_an_emoji_that_was_cut_in_half_stops_nothing(tmp_path: Path) -> None:
    """Posts cut to a number of UTF-16 units, as some archives cut them, end in half of one."""
    path = tmp_path / "posts.jsonl"
    path.write_text('{"text": "so funny \\ud83d"}\n{"text": "b"}\n')
    posts = scored_file.as_posts(scored_file.read(path, "text"), "text")
    assert posts.texts[0].encode().startswith(b"so funny ")
    assert len(scored(path)) == 2


@pytest.mark.parametrize(("name", "content"), [("posts.jsonl", '\ufeff{"text": "hi"}\n'), ("posts.txt", "\ufeffhi\n")])
def test_a_byte_order_mark_is_no_part_of_a_post(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert scored_file.read(tmp_path / name, "text")["text"].tolist() == ["hi"]


def test_lists_and_times_of_a_parquet_file_can_be_written_as_jsonl(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a"], "tags": [["x", "y"]], "at": [pd.Timestamp("2020-01-02")]})
    read = scored_file.read(lay_out(tmp_path, ".parquet", frame), "text")
    scored_file.write_scored(read, {"pred_x": ["p"]}, tmp_path / "out.jsonl")
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert row["tags"] == ["x", "y"]


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl"])
def test_the_ids_of_a_parquet_file_survive_in_any_format_where_they_are_its_index(tmp_path: Path, kind: str) -> None:
    path = lay_out(tmp_path, ".parquet", pd.DataFrame({"id": ["k1", "k2"], "text": ["a", "b"]}).set_index("id"))
    scored_file.write_scored(scored_file.read(path, "text"), {"pred_x": ["p", "q"]}, tmp_path / f"out{kind}")
    assert scored_file.read(tmp_path / f"out{kind}", "text")["id"].tolist() == ["k1", "k2"]
