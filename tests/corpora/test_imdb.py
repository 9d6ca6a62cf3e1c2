from dataclasses import replace
from pathlib import Path

import pytest
from laid_out import on_hub

from hatemtl.corpora.base import SPLITS
from hatemtl.corpora.imdb import Imdb
from hatemtl.errors import UserError

KINDS = {("train", "neg"): 20, ("train", "pos"): 20, ("test", "neg"): 5, ("test", "pos"): 5, ("train", "unsup"): 8}


def write(folder: Path) -> Imdb:
    for (split, name), n in KINDS.items():
        (folder / split / name).mkdir(parents=True)
        for i in range(n):
            text = f"The film {i} of {name}.<br /><br />A {split} of soup."
            (folder / split / name / f"{i:02}_7.txt").write_text(text, encoding="utf-8")
    return Imdb(dir=str(folder), validation=0.1, unlabelled=False)


def test_folders_are_labels(tmp_path: Path) -> None:
    posts = write(tmp_path).load()
    label = posts.columns["label"]
    assert [int((posts.splits == split).sum()) for split in SPLITS] == [36, 4, 10]
    assert label.space.names == ("negative", "positive") and label.has.all()
    assert posts.ids[0] == "train-neg-0" and posts.texts[0] == "The film 0 of neg. A train of soup."
    assert [label.values[posts.splits == split].mean() for split in SPLITS] == [0.5] * 3


def test_reviews_without_label_train(tmp_path: Path) -> None:
    corpus = write(tmp_path)
    posts = replace(corpus, unlabelled=True).load()
    free = ~posts.columns["label"].has
    assert free.sum() == 8 and (posts.splits[free] == "train").all()
    assert posts.splits[~free].tolist() == corpus.load().splits.tolist()


@pytest.mark.parametrize("unlabelled", [False, True])
def test_the_hub_says_the_same(tmp_path: Path, hub: Path, unlabelled: bool) -> None:
    posts = replace(write(tmp_path / "aclImdb"), unlabelled=unlabelled).load()
    splits: dict[str, list[dict[str, object]]] = {"train": [], "test": [], "unsupervised": []}
    for (split, name), n in KINDS.items():
        there = "unsupervised" if name == "unsup" else split
        for i in range(n):
            text = f"The film {i} of {name}.<br /><br />A {split} of soup."
            splits[there].append({"text": text, "label": {"neg": 0, "pos": 1, "unsup": -1}[name]})
    on_hub(hub, "stanfordnlp/imdb", "plain_text", splits)
    from_hub = Imdb(dir=str(tmp_path / "nothing"), validation=0.1, unlabelled=unlabelled).load()
    assert dict(zip(from_hub.ids, from_hub.texts, strict=True)) == dict(zip(posts.ids, posts.texts, strict=True))
    assert dict(zip(from_hub.ids, from_hub.splits, strict=True)) == dict(zip(posts.ids, posts.splits, strict=True))


def test_what_is_refused(tmp_path: Path, hub: Path) -> None:
    with pytest.raises(UserError, match=r"stanfordnlp/imdb.*nothing/train/pos in it"):
        Imdb(dir=str(tmp_path / "nothing"), validation=0.1, unlabelled=False).load()
    corpus = write(tmp_path / "aclImdb")
    (tmp_path / "aclImdb" / "test" / "pos" / "00_7.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"00_7.txt: not UTF-8 at byte 3 .*; unpack"):
        corpus.load()
    (tmp_path / "aclImdb" / "test" / "pos" / "00_7.txt").write_bytes(b" ")
    with pytest.raises(UserError, match=r"00_7.txt: is empty"):
        corpus.load()
    for path in (tmp_path / "aclImdb" / "test" / "pos").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"test/pos holds no \*.txt; unpack"):
        corpus.load()
