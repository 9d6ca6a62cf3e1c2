"""A user's words as they are looked at: nothing in them moves a terminal or computes in a spreadsheet."""

import csv
import unicodedata
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from conftest import Outcome

from hatemtl.evaluations.base import Row
from hatemtl.harmless import guarded, shown, unguarded
from hatemtl.labels import LabelSpace
from hatemtl.saved_runs.saved_run import SavedRun, write_config, write_labels, write_record, write_results
from hatemtl.saved_runs.writing import write_rows

BIDI = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
MARKS = "\u061c\u200e\u200f"  # of a direction, without a bidirectional class of their own


@pytest.mark.parametrize("part", [range(0x800), range(0x800, 0x2000), range(0x2000, 0x2100), range(0xD800, 0xE000)])
def test_what_is_unseen_is_escaped_and_nothing_else(part: range) -> None:
    for character in map(chr, part):
        unseen = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        unseen |= unicodedata.bidirectional(character) in BIDI or character in MARKS
        assert shown(f"a{character}b") == (f"a{character!r}b".replace("'", "") if unseen else f"a{character}b")


def test_letters_of_any_script_stay() -> None:
    for text in ("женщины", "النساء", "נשים", "औरतें", "می\u200cخواهم", "👩\u200d🌾", "[red] \\n", ""):
        assert shown(text) == text
    assert shown("one\ntwo\x1b[2J\r") == r"one\ntwo\x1b[2J\r"
    assert shown("one\ntwo\x1b[2J\r", lines=True) == "one\ntwo" + r"\x1b[2J\r"


@pytest.mark.parametrize("first", "=+-@\t\r")
def test_a_text_that_would_be_a_formula_is_guarded(first: str) -> None:
    assert guarded(f"{first}SUM(A1)") == f"'{first}SUM(A1)"
    assert guarded(first) == f"'{first}"
    assert guarded(f"a{first}") == f"a{first}"


@pytest.mark.parametrize("number", ["-0.5", "+1", "-1e-05", "-.5", "-1,5", "-inf", "-nan", "5", "", -0.5, None, True])
def test_a_number_is_never_guarded(number: object) -> None:
    assert guarded(number) == number


def test_what_is_guarded_comes_back() -> None:
    for pieces in product(["", "'", "=", "-", "@", "1", "a", "\t"], repeat=4):
        text = "".join(pieces)
        cell = guarded(text)
        assert isinstance(cell, str)
        assert unguarded(cell) == text
        assert guarded(unguarded(cell)) == cell
        assert cell[:1] not in ("=", "@", "\t") and (cell[:1] != "-" or not cell[1:].strip("1"))


def test_a_long_text_takes_no_longer_than_its_length() -> None:
    assert guarded("-" + "1" * 1_000_000 + "x")[:2] == "'-"  # type: ignore[index]


# Files


def cells(path: Path, delimiter: str = ",") -> list[list[str]]:
    """The cells as a spreadsheet would see them."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file, delimiter=delimiter))


def test_results_keep_any_name_and_give_it_back(tmp_path: Path) -> None:
    write_config(tmp_path, {"tasks": {}})
    write_record(tmp_path, {})
    write_labels(tmp_path, {"label": LabelSpace("multiclass", ("=a", "'=a"))})
    kept = {"=SUM(A1)": -0.5, "'=SUM(A1)": 1.0, "@val_x": float("-inf"), "val_label_f1_=a": 0.5}
    lines = "".join(f"{guarded(name)},{value}\n" for name, value in kept.items())
    (tmp_path / "results.csv").write_text(f"metric,value\n{lines}")
    for _ in range(3):  # what else stands there is read and written again each time
        write_results(tmp_path, [Row("test", "label", "f1", "=a", 0.25)])
    assert SavedRun(tmp_path).results == {**kept, "test_label_f1_=a": 0.25}
    assert cells(tmp_path / "results.csv")[1:4] == [["'=SUM(A1)", "-0.5"], ["''=SUM(A1)", "1.0"], ["'@val_x", "-inf"]]


def test_rows_guard_texts_and_columns_and_leave_numbers(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv", [{"=layer": "+a", "lost": -0.5, "text": "-0.25"}])
    assert cells(tmp_path / "rows.csv") == [["'=layer", "lost", "text"], ["'+a", "-0.5", "-0.25"]]


# The command line


def test_an_error_shows_what_it_quotes_and_moves_no_terminal(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = cli("encoder=tiny", "action=test", "heads.load=true", f"load_path='{tmp_path}/b\x1b[2J\u202e'")
    assert outcome.code == 2
    assert r"b\x1b[2J\u202e: there is no" in outcome.err
    assert outcome.err == shown(outcome.err, lines=True)
