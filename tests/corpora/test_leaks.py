"""Copies between splits: found as an exact comparison of all pairs finds them, told by id, left out or refused."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Outcome
from invented import as_posts

from hatemtl.corpora import leaks
from hatemtl.corpora.base import SPLITS, Posts
from hatemtl.corpora.leaks import NEAR, between
from hatemtl.corpora.splitting import reduced
from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import SavedRun

Cli = Callable[..., Outcome]
WORDS = [
    *("snorfs", "dronks", "fizzlewits", "grumblefolk", "wibblers", "town", "fair", "cake"),
    *("bike", "market", "neighbour", "again", "never", "always", "lovely"),
]


@dataclass(frozen=True)
class Named:
    """A corpus by name alone; its posts are given beside it."""

    name: str


def written(n: int, seed: int = 0) -> list[str]:
    """n texts, most of which are another one with some characters changed."""
    draw = np.random.default_rng(seed)
    texts: list[str] = []
    for _ in range(n):
        if texts and draw.random() < 0.7:
            text = list(texts[draw.integers(len(texts))])
            for _ in range(draw.integers(0, 4)):
                text[draw.integers(len(text))] = "xyz"[draw.integers(3)]
            texts.append("".join(text))
        else:
            texts.append(" ".join(draw.choice(WORDS, draw.integers(1, 25))))
    return texts


def similarities(texts: list[str]) -> np.ndarray:
    """(N, N) Jaccard similarities between sets of five characters, each pair counted."""
    sets = [{text.ljust(5)[i : i + 5] for i in range(max(len(text) - 4, 1))} for text in texts]
    columns = {shingle: i for i, shingle in enumerate(set().union(*sets))}
    holds = np.array([[shingle in of for shingle in columns] for of in sets], np.float64)
    shared, sizes = holds @ holds.T, holds.sum(axis=1)
    return shared / (sizes[:, None] + sizes - shared)


def test_all_pairs_compared_one_by_one_find_the_same_copies() -> None:
    texts = written(500)
    splits = np.array(SPLITS)[np.random.default_rng(1).integers(0, 3, 500)]
    keys = reduced(texts, names=True)
    alike = similarities(keys)
    found = {(leak.earlier, leak.later): leak for leak in between(texts, splits)}
    assert len(found) == 3
    for (earlier, later), leak in found.items():
        these = alike[np.ix_(splits == earlier, splits == later)]
        assert leak.exact == (these == 1).any(axis=0).sum()  # keys of one set of shingles are equal here
        assert leak.exact + leak.near == pytest.approx((these >= NEAR).any(axis=0).sum(), abs=1)
        true = np.flatnonzero(splits == earlier)[(these >= NEAR).any(axis=1)]
        assert set(leak.copies) <= set(true)
        assert len(leak.copies) >= len(true) - 1  # MinHash misses one in two hundred of those that barely count
        for x, y, equal in leak.examples:
            assert (splits[x], splits[y]) == (earlier, later)
            assert alike[x, y] >= NEAR
            assert equal == (keys[x] == keys[y])


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Those SNORFS, again!", "those  snorfs again"),
        ("see https://a.example/x?y=1", "see www.b.example"),
        ("@anna you dronk", "@bob: you dronk"),
        ("<user> you dronk", "@anna you dronk"),
        ("STRASSE", "straße"),
        ("😂😂", "😂😂 "),
        ("x", "X."),
    ],
)
def test_what_makes_no_other_text(a: str, b: str) -> None:
    (leak,) = between([a, b], np.array(["train", "test"]))
    assert (leak.exact, leak.near, leak.copies.tolist(), leak.examples) == (1, 0, [0], ((0, 1, True),))


@pytest.mark.parametrize(("a", "b"), [("you dronk", "you wibbler"), ("😂", "!!"), ("x", "y"), ("ab", "abc"), ("", "x")])
def test_what_makes_another_text(a: str, b: str) -> None:
    assert not between([a, b], np.array(["train", "test"]))


def test_copies_within_a_split_are_no_leak() -> None:
    assert not between(["you dronk"] * 5, np.array(["train"] * 5))


def test_thousands_of_near_copies_are_all_found() -> None:
    long = "those grumblefolk baked a cake for the whole market and nobody knows why they did so again "
    texts = [f"{long}{i}" for i in range(3000)]
    splits = np.where(np.arange(3000) % 10 == 0, "test", "train")
    (leak,) = between(texts, splits)
    assert leak.near == 300
    assert len(leak.copies) == 2700


def test_longer_than_a_chunk_or_shorter_than_a_shingle(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = written(200)
    whole = leaks._signatures([text.ljust(5) for text in texts])
    monkeypatch.setattr(leaks, "CHUNK", 50)
    np.testing.assert_array_equal(leaks._signatures([text.ljust(5) for text in texts]), whole)


LONG = "those grumblefolk baked a cake for the whole market and nobody knows why"
TEXTS = [f"{LONG} today", "alone", "only in val", "the same", "hm", f"{LONG} todaz", "the same!", "the SAME"]
FOLDS = ["train", "train", "val", "train", "test", "test", "val", "test"]


def posts() -> Posts:
    return as_posts(TEXTS, splits=FOLDS)


def checked(corpora: dict[Any, Posts], policy: Any) -> tuple[list[str], dict[Any, np.ndarray]]:
    return leaks.check(corpora, policy, {corpus: f"task_{corpus.name}" for corpus in corpora})


def test_each_pair_of_splits_is_told_by_ids() -> None:
    lines, left_out = checked({Named("a"): posts()}, "warn")
    assert lines == [
        "of the val posts, 1 stand in train word for word, 0 nearly (p3 = p6); 1 train posts are copies",
        "of the test posts, 1 stand in train word for word, 1 nearly (p3 = p7, p0 ~ p5); 2 train posts are copies",
        "of the test posts, 1 stand in val word for word, 0 nearly (p6 = p7); 1 val posts are copies; "
        "data.leaks=drop leaves copies out",
    ]
    assert not left_out


def test_dropped_are_the_training_copies_and_val_before_test() -> None:
    ((_, gone),) = checked({Named("a"): posts()}, "drop")[1].items()
    assert gone.tolist() == [0, 3, 6]
    rest = posts().at(np.setdiff1d(np.arange(len(TEXTS)), gone))
    assert not between(rest.texts, rest.splits)
    assert (rest.splits == "test").sum() == FOLDS.count("test")


def test_between_corpora() -> None:
    train, test = as_posts(["you dronk", "else"]), as_posts(["ok then", "You dronk!"], splits=["train", "test"])
    lines, left_out = checked({Named("a"): train, Named("b"): test}, "drop")
    assert len(lines) == 1 and "task_a p0 = task_b p1" in lines[0]
    assert {corpus.name: rows.tolist() for corpus, rows in left_out.items()} == {"a": [0]}


def test_a_pair_of_texts_is_a_copy_as_a_whole() -> None:
    three = as_posts(["one premise", "one premise", "one premise"], splits=["train", "val", "test"])
    pairs = replace(three, pairs=[("first",), ("another guess",), ("First",)])
    lines, _ = checked({Named("a"): pairs}, "warn")
    assert len(lines) == 1 and "p0 = p2" in lines[0]


def test_refusing_names_ids_and_no_text() -> None:
    with pytest.raises(UserError, match="p3 = p6.*data.leaks=drop") as error:
        checked({Named("a"): posts()}, "refuse")
    assert "same" not in str(error.value) and "grumble" not in str(error.value)
    assert checked({Named("a"): as_posts(["one", "two"], splits=["train", "test"])}, "refuse") == ([], {})


@pytest.mark.parametrize("policy", ["warn", "drop", "refuse"])
def test_a_run(cli: Cli, tmp_path: Path, policy: str) -> None:
    texts = [f"{'those' if i % 2 else 'our'} {word} and a {other}" for i, word in enumerate(WORDS) for other in WORDS[:4]]
    rows = [
        f"{text},{'rude' if text[0] == 't' else 'kind'},{('train', 'val', 'test')[i % 3]}" for i, text in enumerate(texts)
    ]
    path, run = tmp_path / "posts.csv", tmp_path / "run"
    path.write_text("\n".join(["text,label,fold", *rows, f"{texts[1].upper()},kind,train"]) + "\n")
    outcome = cli(
        *("encoder=tiny", "tasks=[table]", "tasks.table.column=label", f"tasks.table.corpus.path={path}"),
        *("tasks.table.corpus.split=fold", "optimization.epochs=1", f"data.leaks={policy}", f"save_path={run}"),
    )
    if policy == "refuse":
        assert outcome.code == 2
        assert "posts.csv:62 = posts.csv:3" in outcome.err
        assert list(tmp_path.iterdir()) == [path]
        return
    assert outcome.code == 0, outcome.err
    assert "posts.csv:62 = posts.csv:3" in outcome.out
    said = SavedRun(run).record["leaks"]
    assert json.dumps(said[0])[1:-1] in outcome.out
    train = len([row for row in rows if row.endswith("train")]) + 1
    annotated = re.search(r"table \(multiclass\)\s*│\s*(\d+)", outcome.out)
    assert annotated is not None
    assert int(annotated[1]) == (train if policy == "warn" else train - 1)


def test_the_real_corpora_agree_with_a_comparison_of_all_words(data: Path) -> None:
    """Equal keys, counted otherwise: by a dictionary of what is left of each text."""
    from hatemtl.corpora.hatexplain import HateXplain

    found = HateXplain(dir=str(data / "hatexplain")).load()
    keys = {split: set() for split in SPLITS}
    for key, split in zip(reduced(found.texts, names=True), found.splits.tolist(), strict=True):
        keys[split].add(key)
    for leak in between(found.texts, found.splits):
        shared = [
            key in keys[leak.earlier]
            for key in reduced([found.texts[i] for i in np.flatnonzero(found.splits == leak.later)], names=True)
        ]
        assert leak.exact == sum(shared)
