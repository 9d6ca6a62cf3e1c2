from pathlib import Path

import numpy as np
import pytest

from hatemtl.corpora.base import SPLITS
from hatemtl.corpora.twitter_ru import TwitterRu
from hatemtl.errors import UserError

SHARES = (0.8, 0.1, 0.1)


def tweet(number: int, text: str) -> str:
    cells = (number, 1386325927, "somebody", text, 1, 0, 0, 0, 7569, 62, 61, 0)
    return ";".join(f'"{cell}"' for cell in cells) + "\n"


def write(folder: Path, n: int = 50) -> TwitterRu:
    for first, name in ((0, "positive"), (1000, "negative")):
        lines = [tweet(first + i, f"суп {first + i}; с луком и хлебом") for i in range(n)]
        (folder / f"{name}.csv").write_text("".join(lines), encoding="utf-8")
    return TwitterRu(dir=str(folder), fractions=SHARES)


def test_two_files_are_two_labels(tmp_path: Path) -> None:
    posts = write(tmp_path).load()
    label = posts.columns["label"]
    assert label.space.names == ("negative", "positive") and label.has.all()
    assert posts.ids[0] == "negative-1000" and posts.ids[-1] == "positive-49"
    assert posts.texts[0] == "суп 1000; с луком и хлебом"
    for split, size in zip(SPLITS, (80, 10, 10), strict=True):
        assert (posts.splits == split).sum() == size and label.values[posts.splits == split].mean() == 0.5


def test_quotes_ends_of_lines_and_repeated_tweets(tmp_path: Path) -> None:
    corpus = write(tmp_path)
    with (tmp_path / "positive.csv").open("a", encoding="utf-8") as file:
        file.write(tweet(77, 'он сказал ""суп""\nи ушёл') + tweet(77, "тот же"))
    posts = corpus.load()
    assert posts.texts[-1] == 'он сказал "суп" и ушёл' and len(posts) == 101


def test_equal_texts_stand_in_one_split(tmp_path: Path) -> None:
    write(tmp_path)
    for name, first in (("positive", 0), ("negative", 1000)):
        lines = [tweet(first + i, f"{'Суп' if i % 2 else 'суп'} {i % 10}") for i in range(50)]
        (tmp_path / f"{name}.csv").write_text("".join(lines), encoding="utf-8")
    posts = TwitterRu(dir=str(tmp_path), fractions=[0.5, 0.25, 0.25]).load()  # type: ignore[arg-type]
    for text in {text.casefold() for text in posts.texts}:
        same = [i for i, other in enumerate(posts.texts) if other.casefold() == text]
        assert len(np.unique(posts.splits[same])) == 1


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"study.mokoron.com.*data.dir=FOLDER with .*/negative.csv in it"):
        TwitterRu(dir=str(tmp_path), fractions=SHARES).load()
    corpus = write(tmp_path)
    (tmp_path / "positive.csv").write_text('"1";"a";"b";"суп"\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"positive.csv, line 1: 4 cells, expected 12"):
        corpus.load()
    with pytest.raises(UserError, match="summing to 1"):
        TwitterRu(dir=".", fractions=(0.8, 0.1, 0.2))
