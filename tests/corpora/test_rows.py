"""A cell that is not what is expected is named with its file, line and column."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hatemtl.corpora.base import Split
from hatemtl.corpora.files import label_name
from hatemtl.corpora.rows import Rows, Section, codes, gather, whole
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace


def rows(**columns: list[object]) -> Rows:
    return Rows(Path("posts.csv"), columns, range(2, 2 + len(next(iter(columns.values())))), "fix it")


def test_numbers_are_what_python_reads() -> None:
    written = ["1", " 2.5 ", "-3e2", 4, True, 0.5]
    assert rows(x=written).array("x").tolist() == [float(number) for number in written]  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["", None, "nan", float("nan"), "inf", "two", [1], {}, "3.5", -1, 10**400])
def test_what_is_no_number_or_lies_outside_is_named(value: object) -> None:
    with pytest.raises(UserError, match=r"posts.csv, line 3, column 'x': .*, expected a number from 0 to 3; fix it"):
        rows(x=[1, value, 2]).array("x", 0, 3)


def test_gaps_are_nan_where_they_are_allowed_and_nowhere_else() -> None:
    holes = rows(x=["1", "", None, "NA", "nan", 2.5])
    assert np.array_equal(holes.array("x", 0, 3, gaps=True), [1, *4 * [np.nan], 2.5], equal_nan=True)
    with pytest.raises(UserError, match=r"line 4, column 'x': 'x', expected a number"):
        rows(x=["1", None, "x"]).array("x", gaps=True)


def test_flags() -> None:
    assert rows(x=[True, False, "TRUE", "false", "1", 0, 1.0]).flags("x").tolist() == [1, 0, 1, 0, 1, 0, 1]
    assert np.isnan(rows(x=[None, "", True]).flags("x", gaps=True)).tolist() == [True, True, False]
    for value in ("maybe", None, 2, []):
        with pytest.raises(UserError, match="line 4, column 'x': .*, expected true or false"):
            rows(x=[0, 1, value]).flags("x")


def test_names_become_positions() -> None:
    known = {"no": 0, "yes_sir": 1}
    assert rows(x=["no", " yes_sir "]).positions("x", known) == [0, 1]
    assert rows(x=["No ", "Yes, sir!"]).positions("x", known, label_name) == [0, 1]
    with pytest.raises(UserError, match="line 3, column 'x': 'nope', expected one of no, yes_sir"):
        rows(x=["no", "nope"]).positions("x", known)


@pytest.mark.parametrize("value", ["", "  ", None, 3])
def test_a_text_is_a_text(value: object) -> None:
    assert rows(x=[" a b "]).texts("x") == ["a b"]
    with pytest.raises(UserError, match="line 3, column 'x': .*, expected a text"):
        rows(x=["a", value]).texts("x")


def test_a_column_that_is_not_there_is_answered_with_the_closest() -> None:
    with pytest.raises(UserError, match="posts.csv has no column 'txt': did you mean 'text'"):
        rows(text=["a"])["txt"]


def test_a_long_cell_is_shown_in_part() -> None:
    with pytest.raises(UserError) as error:
        rows(x=[1000 * "a"]).array("x")
    assert len(str(error.value)) < 200


SPACE = LabelSpace("multiclass", ("no", "yes"))
ROWS = Rows(Path("a.tsv"), {"x": ["a ", "b", "", "d"], "y": ["e", None, "g", "h"]}, [2, 3, 4, 5], "download it again")


def section(
    name: str, split: Split, texts: Sequence[str], values: Sequence[float | None], second: Sequence[str] = ()
) -> Section:
    columns = {"text": list(texts), **({"second": list(second)} if second else {})}
    return Section(name, split, Rows(Path(name), columns, range(len(texts)), ""), [*columns], values)


def test_ids_tell_the_file_and_the_place() -> None:
    posts = gather([section("train", "train", ["a", "b"], [0, 1]), section("dev", "test", ["c"], [1])], SPACE)
    assert posts.ids == ["train-0", "train-1", "dev-0"]
    assert posts.splits.tolist() == ["train", "train", "test"]
    assert posts.columns["label"].values.tolist() == [0, 1, 1] and posts.columns["label"].has.all()
    assert posts.pairs is None


def test_validation_takes_its_share_of_every_label_and_leaves_the_test_alone() -> None:
    texts, labels = [f"post {i}" for i in range(400)], [int(i % 4 == 0) for i in range(400)]
    parts = [section("train", "train", texts, labels), section("dev", "test", ["t"], [1])]
    posts = gather(parts, SPACE, validation=0.1, seed=0)
    val = posts.splits == "val"
    assert val.sum() == 40 and posts.columns["label"].values[val].sum() == 10
    assert posts.splits[-1] == "test"
    assert not np.array_equal(posts.splits, gather(parts, SPACE, validation=0.1, seed=1).splits)


def test_posts_that_share_a_text_stay_together() -> None:
    texts = [f"post {i % 50}" for i in range(200)]
    second = [f"other {i}" if i % 3 else "The  Same" for i in range(200)]
    posts = gather([section("train", "train", texts, [0, 1] * 100, second)], SPACE, validation=0.3)
    split_of: dict[str, str] = {}
    for text, (other,), split in zip(posts.texts, posts.pairs or [], posts.splits, strict=True):
        for one in (text, other):
            assert split_of.setdefault(one, split) == split


def test_posts_without_label_stay_in_training_unless_their_text_validates() -> None:
    texts = [f"post {i}" for i in range(100)]
    parts = [section("l", "train", texts, [0, 1] * 50), section("u", "train", ["x", *texts], [None] * 101)]
    posts = gather(parts, SPACE, validation=0.2)
    labelled, free = posts.splits[:100], posts.splits[101:]
    assert (labelled == "val").sum() == 20 and posts.splits[100] == "train"
    assert labelled.tolist() == free.tolist()
    assert posts.columns["label"].has.tolist() == [True] * 100 + [False] * 101


def test_a_score_is_a_number() -> None:
    label = gather([section("train", "train", ["a", "b"], [0.5, 4.25])], LabelSpace("score", ("s",)), validation=0.5).columns
    assert label["label"].values.tolist() == [0.5, 4.25] and label["label"].values.dtype == np.float32


def test_pairs_and_whole_rows() -> None:
    rows = whole(ROWS, ("x", "y"))
    assert rows.lines == [2, 5]
    posts = gather([Section("a", "train", rows, ("x", "y"), [0, 1])], SPACE)
    assert (posts.texts, posts.pairs) == (["a", "d"], [("e",), ("h",)])
    with pytest.raises(UserError, match=r"a.tsv, line 4, column 'x': '', expected a text; download it again"):
        gather([Section("a", "train", ROWS, ("x", "y"), [0, 1])], SPACE)


def test_a_label_is_its_name_or_its_place() -> None:
    assert ROWS.positions("x", {"a": 0, "b": 1, "": 2, "d": 3}) == [0, 1, 2, 3]
    assert codes(("no", "yes")) == {"no": 0, "0": 0, "yes": 1, "1": 1}
