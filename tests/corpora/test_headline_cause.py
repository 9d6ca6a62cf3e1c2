from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from laid_out import jsonl, on_hub

from hatemtl.corpora.base import SPLITS
from hatemtl.corpora.headline_cause import LABELS, HeadlineCause
from hatemtl.errors import UserError


def row(split: str, i: int, labels: int) -> dict[str, Any]:
    return {
        "left_title": f"Snow {i} falls, {split}",
        "right_title": f"Trains {i} stop, {split}",
        "left_url": "a",
        "label": i % labels,
    }


def write(folder: Path, config: str) -> HeadlineCause:
    language, kind = config.split("_")
    for split in SPLITS:
        jsonl(folder / language / kind / f"{split}.jsonl", [row(split, i, len(LABELS[kind])) for i in range(7)])
    return HeadlineCause(dir=str(folder), config=config)


@pytest.mark.parametrize("config", get_args(get_type_hints(HeadlineCause)["config"]))
def test_official_files_and_hub_say_the_same(tmp_path: Path, hub: Path, config: str) -> None:
    posts, names = write(tmp_path / "official", config).load(), LABELS[config.split("_")[1]]
    assert [int((posts.splits == split).sum()) for split in SPLITS] == [7, 7, 7]
    assert posts.columns["label"].space.names == names
    assert posts.columns["label"].values.tolist() == [i % len(names) for i in range(7)] * 3
    assert posts.texts[0] == "Snow 0 falls, train" and posts.pairs is not None
    assert posts.pairs[0] == ("Trains 0 stop, train",)
    there = {"train": "train", "validation": "val", "test": "test"}
    on_hub(
        hub,
        "IlyaGusev/headline_cause",
        config,
        {name: [row(split, i, len(names)) for i in range(7)] for name, split in there.items()},
    )
    assert HeadlineCause(dir=str(tmp_path / "nothing"), config=config).load().fingerprint() == posts.fingerprint()


def test_a_label_beyond_the_configuration_is_named(tmp_path: Path) -> None:
    corpus = write(tmp_path, "ru_simple")
    jsonl(tmp_path / "ru" / "simple" / "val.jsonl", [row("val", 3, 7)])
    with pytest.raises(UserError, match=r"val.jsonl, line 1, column 'label': 3, expected one of 0, 1, 2; download"):
        corpus.load()


def test_neither_files_nor_hub(tmp_path: Path, hub: Path) -> None:
    with pytest.raises(UserError, match=r"IlyaGusev/headline_cause.*nothing/en/full/train.jsonl in it"):
        HeadlineCause(dir=str(tmp_path / "nothing"), config="en_full").load()
