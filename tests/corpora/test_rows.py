"""A cell that is not what is expected is named with its file, line and column."""

from pathlib import Path

import numpy as np
import pytest

from hatemtl.corpora.files import label_name
from hatemtl.corpora.rows import Rows
from hatemtl.errors import UserError


def rows(**columns: list[object]) -> Rows:
    return Rows(Path("posts.csv"), columns, range(2, 2 + len(next(iter(columns.values())))), "fix it")


def test_numbers_are_what_python_reads() -> None:
    written = ["1", " 2.5 ", "-3e2", 4, True, 0.5]
    assert rows(x=written).array("x").tolist() == [float(number) for number in written]  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["", None, "nan", float("nan"), "inf", "two", [1], {}, "3.5", -1])
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
