"""Folds: groups stay whole and sizes even as scikit-learn's GroupKFold has them, texts apart and labels alike without."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold

from hatemtl.corpora.base import Column, Posts
from hatemtl.corpora.folds import Folds, balanced
from hatemtl.corpora.sample import Sample
from hatemtl.corpora.table import Table
from hatemtl.errors import UserError

SAMPLE = Sample(size=600).load()


def invented(groups: list[int], splits: list[str] | None = None) -> Posts:
    """Posts by authors, of which -1 is not known, two of one text each time."""
    n = len(groups)
    columns = {
        "author": Column.of("multiclass", list("abcdefgh"), np.maximum(groups, 0), np.array(groups) >= 0),
        "many": Column.of("multilabel", ["x", "y"], np.zeros((n, 2))),
    }
    texts = [f"text {'abcdefghijklmnop'[i // 2]}" for i in range(n)]
    return Posts([str(i) for i in range(n)], texts, np.array(splits or ["train"] * n), columns)


@pytest.mark.parametrize("number", [2, 5, 7])
@pytest.mark.parametrize("draw", range(4))
def test_groups_are_dealt_as_evenly_as_group_k_fold_deals_them(draw: int, number: int) -> None:
    rng = np.random.default_rng(draw)
    groups = [f"author {i}" for i in rng.zipf(1.7, 400).clip(max=60)]
    of = balanced(groups, number, seed=draw)
    places = {group: {int(fold) for fold, name in zip(of, groups, strict=True) if name == group} for group in groups}
    assert all(len(folds) == 1 for folds in places.values())
    theirs = [len(test) for _, test in GroupKFold(number).split(groups, groups=groups)]
    assert sorted(np.bincount(of, minlength=number)) == sorted(theirs)  # which of two alike is put where, no one can tell


def test_the_seed_alone_draws_the_order_of_groups_of_one_size() -> None:
    groups = [f"author {i // 3}" for i in range(90)]
    first = balanced(groups, 3, seed=0)
    assert (balanced(groups, 3, seed=0) == first).all()
    assert (balanced(groups, 3, seed=1) != first).any()
    order = np.random.default_rng(0).permutation(90)
    assert (balanced([groups[i] for i in order], 3, seed=0) == first[order]).all()


@pytest.mark.parametrize("number", [2, 5])
def test_without_groups_no_text_is_in_two_folds_and_labels_are_alike(number: int) -> None:
    of, train = Folds(number=number).dealt(SAMPLE, "train"), SAMPLE.splits == "train"
    assert set(of[~train]) == {0} and set(of[train]) == {*range(1, number + 1)}
    assert len({(text, fold) for text, fold in zip(SAMPLE.texts, of, strict=True) if fold}) == len(
        {text for text, fold in zip(SAMPLE.texts, of, strict=True) if fold}
    )
    label = SAMPLE.columns["label"].values
    for place in range(3):
        counts = np.bincount(of[train & (label == place)], minlength=number + 1)[1:]
        assert counts.max() - counts.min() <= 2  # 1, but for texts that stand there several times


def test_every_training_post_is_tested_once_and_validation_stays() -> None:
    tested: Counter[str] = Counter()
    for fold in (1, 2, 3):
        mine = Folds(number=3, fold=fold).of_run(SAMPLE)
        ids = {split: {i for i, s in zip(mine.ids, mine.splits, strict=True) if s == split} for split in set(mine.splits)}
        tested.update(ids["test"])
        assert ids["val"] == {i for i, s in zip(SAMPLE.ids, SAMPLE.splits, strict=True) if s == "val"}
        assert ids["train"] | ids["test"] == {i for i, s in zip(SAMPLE.ids, SAMPLE.splits, strict=True) if s == "train"}
    assert set(tested.values()) == {1}
    assert Folds(number=3, of="test").of_run(SAMPLE) is SAMPLE


def test_posts_without_a_group_go_by_their_text() -> None:
    posts = invented([0, 0, 0, 1, -1, -1, -1, -1, -1, -1])
    of = Folds(number=3, group_by="author").dealt(posts, "train")
    assert len(set(of[:3])) == 1  # one author
    assert all(of[i] == of[i + 1] for i in (4, 6, 8))  # one text
    assert sorted(np.bincount(of)[1:]) == [3, 3, 4]


def test_any_column_of_ones_own_table_groups(tmp_path: Path) -> None:
    path = tmp_path / "posts.csv"
    path.write_text("text,label,thread,split\n" + "".join(f"text {i},x,{i % 4},train\n" for i in range(12)))
    posts = Table(path=str(path), split="split").load()
    of = Folds(number=2, group_by="thread").dealt(posts, "train")
    assert all(len({int(of[i]) for i in range(12) if i % 4 == thread}) == 1 for thread in range(4))
    with pytest.raises(UserError, match="group_by=tread: .* is not there; did you mean 'thread'"):
        Folds(number=2, group_by="tread").dealt(posts, "train")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"number": 1}, "folds.number=1: expected at least 2; type folds=5"),
        ({"number": 5, "fold": 6}, "folds.fold=6: expected one from 1 to 5"),
        ({"number": 5, "fold": 0}, "folds.fold=0: expected one from 1 to 5"),
        ({"number": 5, "fold": 1, "of": "test"}, "type folds.fold=null"),
        ({"number": 2}, "folds.fold=null: a run trains one fold; type folds.fold=1, up to 2"),
        ({"number": 3, "fold": 1, "group_by": "author"}, "have 2 groups in column 'author'; type folds=2, or fewer"),
        ({"number": 9, "fold": 1}, "folds=9: the train posts have 4 texts; type folds=4"),
        ({"number": 2, "fold": 1, "group_by": "autor"}, "group_by=autor: .* is not there; did you mean 'author'"),
        ({"number": 2, "fold": 1, "group_by": "many"}, "is multilabel, not one label a post; known: author"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Folds(**given).of_run(invented([0, 0, 0, 1, 1, 1, 1, 1]))  # type: ignore[arg-type]
