from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import Outcome

from hatemtl.command.suggestions import CONF
from hatemtl.corpora.base import Column, Posts
from hatemtl.corpora.hatexplain import COMMUNITIES
from hatemtl.corpora.table import Table
from hatemtl.errors import UserError
from hatemtl.heads.losses import CrossEntropy
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.labels import Kind, LabelSpace
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.tasks import Task, check_annotated

HEAD = partial(MultilabelHead, pooling="cls", layers=1, dropout=0.0, threshold=0.5, balance=0.0)
NAMES = ("a", "b", "c", "d", "e")


@dataclass(frozen=True, kw_only=True)
class Five:
    """Four posts with five labels, any number a post, and one label a post."""

    limit: int | None = None

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
    with pytest.raises(UserError, match="by_label=true is for a multilabel head, and this is multiclass"):
        replace(task(), by_label=True, head=MulticlassHead)


def mapped(labels: dict[str, list[str]], mask_pattern: str | None = None) -> Column:
    return replace(task(mask_pattern=mask_pattern), labels=labels).annotations(Five().load())


def test_a_new_label_is_the_largest_of_its_old_ones() -> None:
    column, before = mapped({"new": ["b", "nowhere"], "both": ["a", "e"]}), Five().load().columns["target"]
    assert column.space.names == ("new", "both")
    np.testing.assert_array_equal(column.values[:, 0], before.values[:, 1])
    np.testing.assert_array_equal(column.values[:, 1], np.maximum(before.values[:, 0], before.values[:, 4]))
    np.testing.assert_array_equal(column.has, before.has)
    assert column.values.dtype == np.float32


def test_a_part_is_one_of_the_new_labels() -> None:
    labels = {"x": ["a"], "y": ["b"], "z": ["c"]}
    assert mapped(labels, "1 2").space.names == ("x", "z")
    np.testing.assert_array_equal(mapped(labels, "2 2").values[:, 0], mapped(labels).values[:, 1])


def test_a_new_label_without_any_old_one_is_refused() -> None:
    with pytest.raises(UserError, match="labels.new: the column has none of f, aa: known: a, b, c, d, e"):
        mapped({"new": ["f", "aa"]})
    with pytest.raises(UserError, match="labels.new: the column has none of z"):
        replace(task("label"), labels={"new": ["z"]}).annotations(Five().load())
    with pytest.raises(UserError, match="labels: 'x' would become several"):
        replace(task("label"), labels={"a": ["x"], "b": ["y", "x"]}).annotations(Five().load())


def test_labels_of_which_a_post_carries_one_are_renamed_and_joined() -> None:
    before = Five().load().columns["label"]
    turned = replace(task("label"), labels={"other": ["y"], "mine": ["x", "nowhere"]}).annotations(Five().load())
    assert turned.space == LabelSpace("multiclass", ("other", "mine"))
    np.testing.assert_array_equal(turned.values[before.has], 1 - before.values[before.has])
    joined = replace(task("label"), labels={"both": ["y", "x"]}).annotations(Five().load())
    assert not joined.values.any() and (joined.has == before.has).all()


def test_a_post_whose_label_nobody_names_is_not_annotated() -> None:
    column = replace(task("label"), labels={"new": ["y"]}).annotations(Five().load())
    assert column.has.tolist() == [False, True, False, True]
    assert column.values.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("labels", [{}, {"new": []}])
def test_labels_are_lists_of_names(labels: Any) -> None:
    with pytest.raises(UserError, match="labels=.*new name: .old names"):
        replace(task(), labels=labels)


def test_a_corpus_that_names_its_labels_takes_no_others() -> None:
    with pytest.raises(UserError, match="names=.*type names=null"):
        replace(task(), names=["a"]).annotations(Five().load())
    assert task().knowing(LabelSpace("multilabel", ("a",))) == task()


def test_a_table_takes_the_labels_of_a_saved_run_unless_they_are_rewritten_or_a_part(tmp_path: Path) -> None:
    path = tmp_path / "posts.csv"
    path.write_text("text,target\nhm,b\n")
    of_table = replace(task(), corpus=Table(path=str(path)))
    saved = LabelSpace("multilabel", ("a", "b"))
    assert of_table.annotations(of_table.corpus.load()).space.names == ("b",)
    assert of_table.knowing(saved).annotations(of_table.corpus.load()).space == saved
    for changed in (
        replace(of_table, mask_pattern="1 2"),
        replace(of_table, labels={"new": ["a"]}),
        replace(of_table, names=["b", "a"]),
        replace(of_table, column=["a", "b"]),
    ):
        assert changed.knowing(saved) == changed


def test_without_a_column_nothing_is_loaded() -> None:
    with pytest.raises(UserError, match="column=null.*tasks.TASK.column=NAME"):
        replace(task(), column=None)  # type: ignore[arg-type]


def test_the_kind_is_the_heads() -> None:
    assert task().kind == "multilabel"

    class Pairs(MultilabelHead):
        kind = "pairs"  # type: ignore[assignment]

    with pytest.raises(UserError, match="label kind 'pairs': expected one of multiclass"):
        replace(task(), head=Pairs)


def column_of(kind: Kind, values: list[Any], has: list[bool]) -> Column:
    names = ("x", "y") if kind != "score" else ("x",)
    return Column(LabelSpace(kind, names), np.array(values), np.array(has))


SPLITS_OF_FOUR = np.array(["train", "train", "val", "test"])


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (column_of("multiclass", [1, 1, 0, 0], [True] * 4), "'mine'.*carry 'y'.*labels are x, y"),
        (column_of("ordinal", [0, 1, 0, 1], [True, False, True, True]), "carry 'x'"),
        (column_of("multiclass", [0, 1, 0, 1], [False, False, True, True]), "'mine'.*train split is annotated"),
        (column_of("score", [0, 1, 0, 1], [False, False, True, True]), "train split is annotated"),
    ],
)
def test_a_task_that_says_nothing_is_refused(column: Column, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_annotated("mine", task(), column, SPLITS_OF_FOUR, "train")


def test_a_limit_that_left_one_label_is_named() -> None:
    column = column_of("multiclass", [1, 1, 0, 0], [True] * 4)
    with pytest.raises(UserError, match=r"tasks.mine.corpus.limit=2 may be too few.*type a larger"):
        check_annotated("mine", replace(task(), corpus=Five(limit=2)), column, SPLITS_OF_FOUR, "train")


def test_a_task_that_says_something_is_not() -> None:
    check_annotated("mine", task(), column_of("multiclass", [0, 1, 0, 0], [True] * 4), SPLITS_OF_FOUR, "train")
    check_annotated("mine", task(), column_of("score", [1.0, 1.0, 0, 0], [True] * 4), SPLITS_OF_FOUR, "train")
    check_annotated("mine", task(), column_of("multilabel", [[0, 0]] * 4, [True] * 4), SPLITS_OF_FOUR, "train")


def test_the_shared_targets_fit_both_corpora() -> None:
    node = yaml.safe_load((CONF / "tasks" / "shared_target.yaml").read_text(encoding="utf-8"))["shared_target"]
    measured = {
        *("race_black", "religion_muslim", "religion_jewish", "sexuality_gay", "sexuality_lesbian", "gender_women"),
        *("origin_immigrant", "race_middle_eastern", "race_white", "race_asian", "race_latinx"),
    }
    named = {old for olds in node["labels"].values() for old in olds}
    assert named == measured | set(COMMUNITIES) - {"other"}
    for corpus in (measured, set(COMMUNITIES)):
        assert all(corpus & set(olds) for olds in node["labels"].values())


def test_shared_targets_are_trained_on_one_corpus_and_tested_on_another(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    trained = cli(
        *("encoder=tiny", "tasks=[shared_target]", "corpus@tasks.shared_target.corpus=sample"),
        *("tasks.shared_target.corpus.size=300", "optimization.epochs=1", f"save_path={run}"),
    )
    assert trained.code == 0, trained.err
    rows = ["the neighbours,race_black;gender_women", "a fair,sexuality_lesbian;disability_any"]
    rows += [f"post {i},{name}" for i, name in enumerate(["race_white", "race_asian", "race_latinx", "race_middle_eastern"])]
    rows += ["a,religion_jewish", "b,religion_muslim", "c,origin_immigrant"]
    (tmp_path / "posts.csv").write_text("\n".join(["text,subgroup", *rows]) + "\n")
    tested = cli(
        *("encoder=tiny", "tasks=[shared_target]", "corpus@tasks.shared_target.corpus=table", "action=test"),
        *(f"tasks.shared_target.corpus.path={tmp_path}/posts.csv", "tasks.shared_target.corpus.fractions=[0,0,1]"),
        *("tasks.shared_target.column=subgroup", "method=ah_load", "heads.load=true", f"load_path={run}"),
        f"save_path={other}",
    )
    assert tested.code == 0, tested.err
    names = SavedRun(run).labels["shared_target"].names
    gold = pd.read_parquet(other / "predictions.parquet").set_index("post_id")["gold"]
    assert [name for name, value in zip(names, gold["posts.csv:2"], strict=True) if value] == ["black", "women"]
    assert [name for name, value in zip(names, gold["posts.csv:3"], strict=True) if value] == ["gay_lesbian"]


SHARES = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0]], np.float32)
SOFT = CrossEntropy(targets="shares")


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Three posts, with the shares of annotators of two columns and without those of one."""

    def load(self) -> Posts:
        columns = {
            "label": Column.of("multiclass", ["x", "y", "z"], [0, 1, 2], shares=SHARES),
            "target": Column.of("multilabel", ["a", "b", "c"], SHARES >= 0.5, shares=SHARES),
            "bare": Column.of("multilabel", ["a", "b", "c"], SHARES >= 0.5),
        }
        return Posts(list("123"), ["some words"] * 3, np.array(["train", "train", "val"]), columns)


def soft(column: str, head: Any = MultilabelHead, **given: Any) -> Column:
    task = Task(corpus=Shared(), column=column, head=partial(head, loss=SOFT), **given)  # type: ignore[arg-type]
    return task.annotations(Shared().load())


def test_shares_are_handed_to_the_head_that_learns_from_them_alone() -> None:
    np.testing.assert_array_equal(soft("target").shares, SHARES)
    assert Task(corpus=Shared(), column="target", head=HEAD).annotations(Shared().load()).shares is None  # type: ignore[arg-type]


def test_shares_are_cut_and_joined_as_labels_are() -> None:
    np.testing.assert_array_equal(soft("target", mask_pattern="1 2").shares, SHARES[:, [0, 2]])
    np.testing.assert_allclose(soft("target", labels={"n": ["a", "c"]}).shares[:, 0], [0.6, 0.3, 1], rtol=1e-6)
    joined = soft("label", MulticlassHead, labels={"n": ["z", "x"], "y": ["y"]})
    np.testing.assert_allclose(joined.shares, [[0.7, 0.3], [0.5, 0.5], [1, 0]], rtol=1e-6)
    left = soft("label", MulticlassHead, labels={"x": ["x"], "y": ["y"]})
    np.testing.assert_allclose(left.shares, [[2 / 3, 1 / 3], [2 / 7, 5 / 7], [0, 0]], rtol=1e-6)
    assert left.has.tolist() == [True, True, False]


def test_soft_targets_without_shares_are_refused() -> None:
    with pytest.raises(UserError, match="column='bare': soft targets need .* tells those of target; type"):
        soft("bare")


@pytest.mark.parametrize("pattern", [None, "1 2", "2 2"])
def test_label_weights_may_name_labels_of_other_parts_and_no_others(pattern: str | None) -> None:
    posts = Five().load()
    weighed = replace(task(mask_pattern=pattern), head=partial(MultilabelHead, label_weights={"b": 2}))
    assert len(weighed.annotations(posts).space) in (5, 3, 2)
    with pytest.raises(UserError, match=r"label_weights\.bb: no label has this name; did you mean 'b'"):
        replace(weighed, head=partial(MultilabelHead, label_weights={"bb": 2})).annotations(posts)
