from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA
from laid_out import on_hub

from hatemtl.corpora.base import SPLITS
from hatemtl.corpora.davidson import Davidson
from hatemtl.errors import UserError

HEADER = ",count,hate_speech,offensive_language,neither,class,tweet"
LINES = [
    "0,3,0,0,3,2,what a fine day",
    '1,3,2,1,0,0,"snorfs, all of them, must go"',
    "4,6,1,4,1,1,you old dronk",
    "5,3,0,0,3,2,What a  FINE day",
]


def write(folder: Path, lines: list[str] = LINES) -> Davidson:
    folder.mkdir(exist_ok=True)
    (folder / "labeled_data.csv").write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    return Davidson(dir=str(folder), fractions=[0.8, 0.1, 0.1])


def many(folder: Path, tweets: int = 600) -> Davidson:
    return write(folder, [f"{i},3,1,1,1,{i % 3},dronk number {i // 2}" for i in range(tweets)])


def test_labels_votes_and_ids_are_the_files(tmp_path: Path) -> None:
    posts = write(tmp_path).load()
    assert posts.ids == ["0", "1", "4", "5"]
    assert posts.texts[1] == "snorfs, all of them, must go"
    label, votes = posts.columns["label"], posts.columns["votes"]
    assert [label.space.names[i] for i in label.values] == ["neither", "hate", "offensive", "neither"]
    assert votes.values == pytest.approx(np.array([[0, 0, 1], [2 / 3, 1 / 3, 0], [1 / 6, 4 / 6, 1 / 6], [0, 0, 1]]))
    assert votes.values.dtype == np.float32 and label.values.dtype == np.int64 and label.has.all() and votes.has.all()


def test_texts_stand_in_one_split_and_labels_are_spread_alike(tmp_path: Path) -> None:
    posts = many(tmp_path).load()
    where = dict(zip(posts.texts, posts.splits, strict=True))
    assert all(where[text] == split for text, split in zip(posts.texts, posts.splits, strict=True))
    assert [int((posts.splits == split).sum()) for split in SPLITS] == pytest.approx([480, 60, 60], abs=4)
    assert set(write(tmp_path / "same").load().splits[[0, 3]].tolist()) in ({"train"}, {"val"}, {"test"})


def test_the_splits_are_a_matter_of_the_seed(tmp_path: Path) -> None:
    corpus = many(tmp_path)
    assert (corpus.load().splits == corpus.load().splits).all()
    assert (corpus.load().splits != replace(corpus, seed=1).load().splits).any()


def test_the_hub_has_the_same_posts_under_other_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["count", "hate_speech_count", "offensive_language_count", "neither_count", "class"]
    texts = ["what a fine day", "snorfs, all of them, must go", "you old dronk", "What a  FINE day"]
    numbers = [[3, 0, 0, 3, 2], [3, 2, 1, 0, 0], [6, 1, 4, 1, 1], [3, 0, 0, 3, 2]]
    rows = [{**dict(zip(names, row, strict=True)), "tweet": text} for row, text in zip(numbers, texts, strict=True)]
    folder = on_hub(tmp_path, "tdavidson/hate_speech_offensive", "default", {"train": rows})
    monkeypatch.setattr("hatemtl.corpora.files.fetch", lambda repo, **how: folder)
    here, there = write(tmp_path / "official").load(), Davidson(dir=str(tmp_path / "no"), fractions=[0.8, 0.1, 0.1]).load()
    assert there.ids == [f"davidson_{i}" for i in range(4)]
    assert replace(there, ids=here.ids).fingerprint() == here.fingerprint()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("7,3,0,0,3,3,hm", "line 3, column 'class': '3', expected one of 0, 1, 2"),
        ("7,3,0,0,3,,hm", "line 3, column 'class': '', expected one of"),
        ("7,3,0,0,3,2, ", "line 3, column 'tweet': ' ', expected a text"),
        ("7,3,0,-1,3,2,hm", "line 3, column 'offensive_language': '-1', expected a number"),
        ("7,0,0,0,0,2,hm", "line 3, column 'hate_speech': '0', expected a vote"),
        ("7,3,0,0,3,2,hm, hm", "line 3: 8 cells, expected 7"),
    ],
)
def test_a_damaged_line_is_named_with_the_way_out(tmp_path: Path, line: str, expected: str) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}/labeled_data.csv.*{expected}.*; download labeled_data.csv again from"):
        write(tmp_path, [LINES[0], line]).load()


def test_shares_are_checked_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="summing to 1"):
        Davidson(dir=".", fractions=[0.8, 0.1, 0.2])


def test_equal_corpora_are_one_though_yaml_gives_lists() -> None:
    assert len({Davidson(dir="a", fractions=[0.8, 0.1, 0.1]), Davidson(dir="a", fractions=(0.8, 0.1, 0.1))}) == 1


@pytest.mark.skipif(not (DATA / "davidson" / "labeled_data.csv").is_file(), reason=f"no Davidson in {DATA}")
def test_the_real_tweets_have_their_published_counts() -> None:
    label = Davidson(dir=str(DATA / "davidson"), fractions=[0.8, 0.1, 0.1]).load().columns["label"]
    assert np.bincount(label.values).tolist() == [1430, 19190, 4163]
