from pathlib import Path

import numpy as np
import pytest

from hatemtl.corpora.lexicon import Lexicon
from hatemtl.errors import UserError


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_words_are_counted_by_hand(tmp_path: Path) -> None:
    table = "word,weight,category\ndronk,0.5,rude\nDRONK,2,loud\nhat of my boss,1,rude\n😂,1,fun\nf*zz,-1,rude\n"
    lexicon = Lexicon.read(written(tmp_path, "words.csv", table))
    assert lexicon.categories == ["fun", "loud", "rude"]
    texts = ["you Dronk, #dronk!", "the hat of my boss 😂😂", "dronkers are no dronk-like f*zz", "", "fine"]
    expected = [[0, 4 / 3, 1 / 3], [2 / 6, 0, 1 / 6], [0, 0, -1 / 5], [0, 0, 0], [0, 0, 0]]
    counts = lexicon.counts(texts)
    assert counts.dtype == np.float32
    np.testing.assert_allclose(counts, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "\ufeffDronk\r\n\r\nold hat\n"),
        ("a.csv", "word\nold hat\ndronk\n"),
        ("a.tsv", "word\tnotes\ndronk\tsee, below\nold hat\t\n"),
        ("a.csv", "category,word,weight\nwords,dronk,1\nwords,old hat,1.0\n"),
    ],
)
def test_one_list_in_any_format_is_one(name: str, content: str, tmp_path: Path) -> None:
    lexicon = Lexicon.read(written(tmp_path, name, content))
    assert lexicon.categories == ["words"]
    assert lexicon.digest == Lexicon.read(written(tmp_path, "b.txt", "dronk\nold hat")).digest
    again = Lexicon.read(written(tmp_path, "again.csv", lexicon.text))
    assert (again.text, dict(again.entries)) == (lexicon.text, dict(lexicon.entries))


def test_marks_and_phrases_survive_being_written(tmp_path: Path) -> None:
    lexicon = Lexicon.read(written(tmp_path, "a.txt", 'a "b"\n=x\n,;\ndon\'t\n😂'))
    assert Lexicon.read(written(tmp_path, "b.csv", lexicon.text)).digest == lexicon.digest


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "käse\n".encode("cp1252"), r"line 1: byte 0xe4 is no UTF-8 .*; mend the file, which is read as UTF-8"),
        ("a.txt", "hat\n".encode("utf-16"), r"byte 0xff is no UTF-8"),
        ("a.txt", "", r"a\.txt: holds no rows"),
        ("a.csv", "word\n", r"a\.csv: holds no rows"),
        ("a.txt", "hat\nsoup\nHat\n", r"line 3: 'Hat' stands in line 1 already; leave one of them out"),
        ("a.csv", "hat,1\n", r"holds no rows|no column 'word'"),
        ("a.csv", "term,weight\nhat,1\n", r"no column 'word'.*expected a word list"),
        ("a.csv", "word,weight\nhat,much\n", r"line 2, column 'weight': 'much', expected a number"),
        ("a.csv", "word,category\nhat,\n", r"line 2, column 'category': '', expected a text"),
        ("a.xlsx", "hat", r"head lexicon=.*a\.xlsx: expected a word list"),
    ],
)
def test_what_is_no_word_list_is_told(name: str, content: str | bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        Lexicon.read(written(tmp_path, name, content))


def test_a_folder_and_a_file_that_is_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is a folder; expected a word list"):
        Lexicon.read(tmp_path)
    with pytest.raises(UserError, match="no such file; expected a word list"):
        Lexicon.read(tmp_path / "none.txt")
