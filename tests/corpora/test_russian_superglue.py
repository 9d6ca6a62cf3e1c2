from pathlib import Path
from typing import Any

import pytest
from conftest import DATA
from laid_out import jsonl, on_hub

from hatemtl.corpora.base import SPLITS
from hatemtl.corpora.russian_superglue import LAYOUTS, RussianSuperGlue
from hatemtl.errors import UserError

LABELS: dict[str, list[Any]] = {
    "danetqa": [False, True],
    "terra": ["entailment", "not_entailment"],
    "parus": [0, 1],
}


def row(task: str, name: str, i: int) -> dict[str, Any]:
    said: dict[str, dict[str, Any]] = {
        "danetqa": {"passage": f"Суп {i} варят в {name}.", "question": f"варят ли суп {i} {name}?"},
        "terra": {"premise": f"Суп {i} варят в {name}.", "hypothesis": f"Суп {i} {name} варят."},
        "parus": {
            "premise": f"Суп {i} {name} остыл.",
            "question": ("cause", "effect")[i % 4 // 2],
            "choice1": f"Окно {i} {name} открыли.",
            "choice2": f"Суп {i} {name} съели.",
        },
    }
    return {**said[task], "label": LABELS[task][i % 2], "idx": i}


def write(folder: Path, task: str) -> RussianSuperGlue:
    for name, n in (("train", 40), ("val", 6)):
        jsonl(folder / LAYOUTS[task][0] / f"{name}.jsonl", [row(task, name, i) for i in range(n)])
    return RussianSuperGlue(dir=str(folder), task=task, validation=0.1)


@pytest.mark.parametrize("task", LAYOUTS)
def test_official_files_and_hub_say_the_same(tmp_path: Path, hub: Path, task: str) -> None:
    posts = write(tmp_path / "official", task).load()
    assert [int((posts.splits == split).sum()) for split in SPLITS] == [36, 4, 6]
    label = posts.columns["label"]
    assert label.values[:4].tolist() == [0, 1, 0, 1] and label.has.all()
    splits = {}
    for split, name, n in (("train", "train", 40), ("validation", "val", 6)):
        rows = [row(task, name, i) for i in range(n)]
        splits[split] = [{**given, "label": LABELS[task].index(given["label"])} for given in rows]
    on_hub(hub, "RussianNLP/russian_super_glue", task, splits)
    nothing = RussianSuperGlue(dir=str(tmp_path / "nothing"), task=task, validation=0.1)
    assert nothing.load().fingerprint() == posts.fingerprint()


def test_a_premise_asks_for_its_cause_or_its_effect_and_has_two_choices(tmp_path: Path) -> None:
    posts = write(tmp_path, "parus").load()
    assert posts.texts[0] == "Суп 0 train остыл. Что было причиной этого?"
    assert posts.texts[2] == "Суп 2 train остыл. Что случилось в результате?"
    assert posts.pairs is not None and posts.pairs[0] == ("Окно 0 train открыли.", "Суп 0 train съели.")
    assert posts.columns["label"].space.kind == "choice" and len(posts.columns["label"].space) == 2


def test_a_passage_comes_before_its_question(tmp_path: Path) -> None:
    posts = write(tmp_path, "danetqa").load()
    assert posts.texts[0].startswith("Суп") and posts.pairs is not None and posts.pairs[0] == ("варят ли суп 0 train?",)
    assert posts.columns["label"].space.names == ("no", "yes")


@pytest.mark.parametrize(
    ("task", "damage", "expected"),
    [
        ("terra", {"label": "maybe"}, "column 'label': 'maybe', expected one of entailment, not_entailment"),
        ("terra", {"hypothesis": ""}, "column 'hypothesis': '', expected a text"),
        ("parus", {"question": "why"}, "column 'question': 'why', expected one of cause, effect"),
        ("danetqa", {"passage": None}, "column 'passage': None, expected a text"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, task: str, damage: dict[str, Any], expected: str) -> None:
    corpus = write(tmp_path, task)
    jsonl(tmp_path / LAYOUTS[task][0] / "val.jsonl", [row(task, "val", 0), {**row(task, "val", 1), **damage}])
    with pytest.raises(UserError, match=rf"val.jsonl, line 2, {expected}.*; download val.jsonl again"):
        corpus.load()


def test_neither_files_nor_hub(tmp_path: Path, hub: Path) -> None:
    with pytest.raises(UserError, match=r"RussianNLP/russian_super_glue.*nothing/TERRa/train.jsonl in it"):
        RussianSuperGlue(dir=str(tmp_path / "nothing"), task="terra", validation=0.1).load()


@pytest.mark.skipif(not (DATA / "russian_superglue" / "TERRa").is_dir(), reason=f"no TERRa in {DATA}")
def test_the_real_files_have_their_published_sizes() -> None:
    posts = RussianSuperGlue(dir=str(DATA / "russian_superglue"), task="terra", validation=0.1).load()
    sizes = {split: int((posts.splits == split).sum()) for split in SPLITS}
    assert sizes["train"] + sizes["val"] == 2616 and sizes["test"] == 307
    assert sizes["val"] == pytest.approx(262, abs=2)
