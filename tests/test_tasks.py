from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from hatemtl.corpora.base import Column, Posts
from hatemtl.errors import UserError
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.labels import LabelSpace
from hatemtl.tasks import Task

HEAD = partial(MultilabelHead, pooling="cls", layers=1, dropout=0.0, threshold=0.5, balance=0.0)
NAMES = ("a", "b", "c", "d", "e")


@dataclass(frozen=True, kw_only=True)
class Five:
    """Four posts with five labels, any number a post, and one label a post."""

    def load(self) -> Posts:
        has = np.array([True, True, False, True])
        values = np.arange(20, dtype=np.float32).reshape(4, 5) / 20
        columns = {
            "target": Column(LabelSpace("multilabel", NAMES), values, has),
            "label": Column(LabelSpace("multiclass", ("x", "y")), np.array([0, 1, 0, 1]), has),
        }
        return Posts(list("1234"), ["some words"] * 4, np.array(["train", "train", "val", "test"]), columns)


def task(column: str = "target", mask_pattern: str | None = None, weight: float = 1.0) -> Task:
    return Task(corpus=Five(), column=column, head=HEAD, mask_pattern=mask_pattern, weight=weight)


def test_without_a_pattern_the_column_is_whole() -> None:
    posts = Five().load()
    column = task().annotations(posts)
    assert column.space.names == NAMES
    np.testing.assert_array_equal(column.values, posts.columns["target"].values)


@pytest.mark.parametrize(
    ("pattern", "places"), [("1 2", [0, 2, 4]), ("2 2", [1, 3]), ("1 1", [0, 1, 2, 3, 4]), ("5 5", [4])]
)
def test_a_pattern_cuts_labels_and_columns_alike(pattern: str, places: list[int]) -> None:
    posts = Five().load()
    column = task(mask_pattern=pattern).annotations(posts)
    assert column.space.names == tuple(NAMES[i] for i in places)
    np.testing.assert_array_equal(column.values, posts.columns["target"].values[:, places])
    np.testing.assert_array_equal(column.has, posts.columns["target"].has)
    assert column.values.flags.c_contiguous
    assert column.values.dtype == np.float32


def test_cutting_leaves_the_corpus_as_it_was() -> None:
    posts = Five().load()
    task(mask_pattern="1 2").annotations(posts).values[:] = 9
    np.testing.assert_array_equal(posts.columns["target"].values, Five().load().columns["target"].values)


def test_an_unknown_column_suggests_the_near_one() -> None:
    with pytest.raises(UserError, match="'taget'.*did you mean 'target'"):
        task(column="taget").annotations(Five().load())


def test_a_column_like_no_other_lists_what_there_is() -> None:
    with pytest.raises(UserError, match="'rationale'.*target, label"):
        task(column="rationale").annotations(Five().load())


@pytest.mark.parametrize("pattern", ["3 2", "0 2", "one two", "1"])
def test_a_wrong_pattern_is_refused_before_anything_is_loaded(pattern: str) -> None:
    with pytest.raises(UserError, match="mask_pattern"):
        task(mask_pattern=pattern)


def test_only_a_multilabel_column_is_cut() -> None:
    with pytest.raises(UserError, match="multiclass.*leave it null"):
        task(column="label", mask_pattern="1 2").annotations(Five().load())


def test_more_parts_than_labels_are_refused() -> None:
    with pytest.raises(UserError, match="5 labels cannot be cut into 6 parts"):
        task(mask_pattern="1 6").annotations(Five().load())


def test_a_negative_weight_is_refused_and_zero_is_not() -> None:
    assert task(weight=0).weight == 0
    with pytest.raises(UserError, match="weight=-1"):
        task(weight=-1)
