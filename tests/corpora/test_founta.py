from pathlib import Path

import pytest

from hatemtl.corpora.founta import FILES, LABELS, Founta
from hatemtl.errors import UserError

LINES = [
    "what a fine day\tnormal\t4",
    '"win ""two"" cakes\nnow"\tspam\t3',
    "you dronk\tabusive\t5",
    "snorfs must go\thateful\t3",
]


def write(folder: Path, lines: list[str] = LINES, name: str = FILES[0]) -> Founta:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Founta(dir=str(folder), fractions=[0.8, 0.1, 0.1])


@pytest.mark.parametrize("name", FILES)
def test_a_row_is_a_text_its_label_and_votes(tmp_path: Path, name: str) -> None:
    posts = write(tmp_path, name=name).load()
    label = posts.columns["label"]
    assert label.space.names == LABELS
    assert [LABELS[i] for i in label.values] == ["normal", "spam", "abusive", "hateful"]
    assert posts.texts[1] == 'win "two" cakes\nnow'
    assert posts.ids == [f"founta_{i}" for i in range(4)]


def test_a_file_without_quoting_is_read_as_it_is(tmp_path: Path) -> None:
    assert write(tmp_path, ['"hm" they said\tnormal\t4', '"never closed\tspam\t3']).load().texts == [
        '"hm" they said',
        '"never closed',
    ]


def test_a_text_that_recurs_stays_in_one_split_whatever_its_labels(tmp_path: Path) -> None:
    posts = write(tmp_path, [f"dronk number {i % 150}\t{LABELS[i % 4]}\t3" for i in range(600)]).load()
    assert len(set(zip(posts.texts, posts.splits.tolist(), strict=True))) == 150
    assert abs((posts.splits == "train").mean() - 0.8) < 0.03


def test_without_the_file_the_error_says_where_to_ask_for_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"has no {FILES[0]}: get it by hand at zenodo.org.*type data.dir=FOLDER"):
        Founta(dir=str(tmp_path), fractions=[0.8, 0.1, 0.1]).load()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hm\tNormal\t3", "line 2, column 'label': 'Normal', expected one of abusive"),
        ("hm\tnormal", "line 2: 2 cells, expected 3"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        write(tmp_path, [LINES[0], line]).load()


def test_shares_are_checked_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="summing to 1"):
        Founta(dir=".", fractions=[1.0, 0.1, 0.1])
