from pathlib import Path

import numpy as np
import pytest
from conftest import DATA

from hatemtl.corpora.hateval import HatEval
from hatemtl.errors import UserError

SPLITS = {
    "train": ["201,what a fine day,0,0,0", '202,"snorfs, all of you",1,0,1', "203,you dronk,1,1,0"],
    "dev": ["18201,hm,1,1,1"],
    "test": ["34243,hello you,0,0,0", "34244,off with you,1,0,0"],
}


def write(folder: Path, language: str = "en", splits: dict[str, list[str]] = SPLITS) -> HatEval:
    for split, lines in splits.items():
        path = folder / f"hateval2019_{language}_{split}.csv"
        path.write_text("\n".join(["id,text,HS,TR,AG", *lines]) + "\n", encoding="utf-8")
    return HatEval(dir=str(folder), language=language)


def test_splits_and_ids_are_the_official_ones(tmp_path: Path) -> None:
    posts = write(tmp_path).load()
    assert posts.ids == ["201", "202", "203", "18201", "34243", "34244"]
    assert posts.splits.tolist() == ["train", "train", "train", "val", "test", "test"]
    assert posts.texts[1] == "snorfs, all of you"


def test_range_and_aggression_are_of_hateful_posts(tmp_path: Path) -> None:
    columns = write(tmp_path).load().columns
    assert {name: column.space.names for name, column in columns.items()} == {
        "hate": ("not_hate", "hate"),
        "target_range": ("generic", "individual"),
        "aggressive": ("not_aggressive", "aggressive"),
    }
    assert columns["hate"].values.tolist() == [0, 1, 1, 1, 0, 1] and columns["hate"].has.all()
    for name, values in {"target_range": [0, 1, 1, 0], "aggressive": [1, 0, 1, 0]}.items():
        assert columns[name].has.tolist() == [False, True, True, True, False, True]
        assert columns[name].values[columns[name].has].tolist() == values
        assert not columns[name].values[~columns[name].has].any()


def test_ids_that_recur_are_replaced(tmp_path: Path) -> None:
    assert write(tmp_path, splits={**SPLITS, "dev": SPLITS["train"][:1]}).load().ids == [f"hateval_{i}" for i in range(6)]


def test_the_language_chooses_the_files(tmp_path: Path) -> None:
    write(tmp_path)
    assert len(write(tmp_path, "es", {**SPLITS, "dev": SPLITS["train"]}).load()) == 8


def test_a_missing_file_is_named_with_where_to_ask_for_it(tmp_path: Path) -> None:
    corpus = write(tmp_path)
    (tmp_path / "hateval2019_en_dev.csv").unlink()
    with pytest.raises(
        UserError, match="has no hateval2019_en_dev.csv: get it by hand at hatespeech.di.unito.it.*data.dir="
    ):
        corpus.load()


@pytest.mark.parametrize("line", ["204,hm,2,0,0", "204,hm,,0,0", "204,hm,x,0,0"])
def test_what_is_neither_yes_nor_no_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(
        UserError, match="en_train.csv, line 2, column 'HS': .*, expected true or false, or 1 or 0; download"
    ):
        write(tmp_path, splits={**SPLITS, "train": [line]}).load()


@pytest.mark.skipif(not (DATA / "hateval" / "hateval2019_en_test.csv").is_file(), reason=f"no HatEval in {DATA}")
def test_the_real_tweets_have_their_published_counts() -> None:
    posts = HatEval(dir=str(DATA / "hateval")).load()
    hate = posts.columns["hate"].values
    assert {str(split): np.bincount(hate[posts.splits == split]).tolist() for split in set(posts.splits)} == {
        "train": [5217, 3783],
        "val": [573, 427],
        "test": [1740, 1260],
    }
