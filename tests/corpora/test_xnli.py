from pathlib import Path

import pytest
from laid_out import on_hub, tsv

from hatemtl.corpora.base import SPLITS
from hatemtl.corpora.xnli import LABELS, Xnli
from hatemtl.errors import UserError

HEADER = ["language", "gold_label", "sentence1_binary_parse", "sentence1", "sentence2", "promptID", "match"]
SIZES = {"train": 6, "val": 3, "test": 3}


def pair(split: str, i: int) -> tuple[str, str]:
    return f'суп "{i} {split}', f"каша {i}, {split}"


def write(folder: Path) -> Xnli:
    train = [[*pair("train", i), ("entailment", "neutral", "contradictory")[i % 3]] for i in range(SIZES["train"])]
    tsv(
        folder / "XNLI-MT-1.0/multinli/multinli.train.ru.tsv", [["premise", "hypo", "label"], *train, ["суп", "", "neutral"]]
    )
    for split, name in (("val", "dev"), ("test", "test")):
        rows = [[language, LABELS[i % 3], "", *pair(split, i), i, "True"] for i in range(3) for language in ("ar", "ru")]
        tsv(folder / f"XNLI-1.0/xnli.{name}.tsv", [HEADER, *rows])
    return Xnli(dir=str(folder), language="ru")


def test_official_files_and_hub_say_the_same(tmp_path: Path, hub: Path) -> None:
    posts = write(tmp_path / "official").load()
    assert [int((posts.splits == split).sum()) for split in SPLITS] == [6, 3, 3]  # a row without a text is left out
    assert posts.columns["label"].values.tolist() == [0, 1, 2] * 4
    assert posts.columns["label"].space.names == LABELS
    assert posts.texts[0] == 'суп "0 train' and posts.pairs is not None and posts.pairs[0] == ("каша 0, train",)
    splits = {}
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        pairs = [(*pair(split, i), i % 3) for i in range(SIZES[split])]
        splits[name] = [{"premise": a, "hypothesis": b, "label": label} for a, b, label in pairs]
    on_hub(hub, "facebook/xnli", "ru", splits)
    assert Xnli(dir=str(tmp_path / "nothing"), language="ru").load().fingerprint() == posts.fingerprint()


def test_a_language_that_the_files_lack_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "XNLI-MT-1.0/multinli/multinli.train.ru.tsv").rename(tmp_path / "XNLI-MT-1.0/multinli/multinli.train.de.tsv")
    with pytest.raises(UserError, match=r"xnli.dev.tsv has no row whose language is 'de'; download"):
        Xnli(dir=str(tmp_path), language="de").load()


def test_an_unknown_label_is_named_with_the_line(tmp_path: Path) -> None:
    corpus = write(tmp_path)
    tsv(tmp_path / "XNLI-1.0/xnli.test.tsv", [HEADER, ["ru", "-", "", "суп", "каша", 1, "True"]])
    with pytest.raises(UserError, match=r"xnli.test.tsv, line 2, column 'gold_label': '-', expected one of entailment"):
        corpus.load()


def test_neither_files_nor_hub(tmp_path: Path, hub: Path) -> None:
    with pytest.raises(UserError, match=r"facebook/xnli.*nothing/XNLI-MT-1.0/multinli/multinli.train.ru.tsv in it"):
        Xnli(dir=str(tmp_path / "nothing"), language="ru").load()
