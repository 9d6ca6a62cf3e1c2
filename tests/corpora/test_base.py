from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from conftest import ROOT
from omegaconf import OmegaConf

from hatemtl.command.configuration import build
from hatemtl.corpora.base import SPLITS, Column, Corpus, Posts
from hatemtl.corpora.sample import Sample
from hatemtl.corpora.splitting import proportional
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace


@pytest.fixture
def posts() -> Posts:
    """Six posts, train val test train train val, with one column of each kind."""
    texts = ["a b", "c", "d e f", "g h", "i j", "k"]
    masks = np.empty(6, object)
    for i, text in enumerate(texts):
        masks[i] = np.full(len(text.split(" ")), i % 2, np.float32)
    has = np.array([True, True, True, False, True, True])
    columns = {
        "label": Column(LabelSpace("multiclass", ("x", "y")), np.array([0, 1, 0, 1, 1, 0]), has),
        "target": Column(LabelSpace("multilabel", ("p", "q", "r")), np.eye(6, 3, dtype=np.float32), has),
        "rationale": Column(LabelSpace("tokens", ("rationale",)), masks, has),
    }
    splits = np.array(["train", "val", "test", "train", "train", "val"])
    return Posts([f"id{i}" for i in range(6)], texts, splits, columns)


def test_at_takes_every_part_of_a_post_along(posts: Posts) -> None:
    some = posts.at(np.array([4, 1]))
    assert (some.ids, some.texts, some.splits.tolist()) == (["id4", "id1"], ["i j", "c"], ["train", "val"])
    assert some.columns["label"].values.tolist() == [1, 1]
    assert some.columns["target"].values.tolist() == [[0, 0, 0], [0, 1, 0]]
    assert [v.tolist() for v in some.columns["rationale"].values] == [[0, 0], [1]]
    assert some.columns["label"].space == posts.columns["label"].space


def test_limited_keeps_so_many_of_each_split_in_order(posts: Posts) -> None:
    for seed in range(5):
        one, two = posts.limited(1, seed), posts.limited(2, seed)
        assert sorted(one.splits) == ["test", "train", "val"] and len(two) == 5
        assert {*one.ids} < {*two.ids} and one.ids == sorted(one.ids) and two.ids == sorted(two.ids)
    assert len({tuple(posts.limited(1, seed).ids) for seed in range(20)}) > 1  # drawn by the seed
    assert posts.limited(99).ids == posts.ids
    assert posts.limited(None) is posts


def test_limited_keeps_labels_as_they_are_distributed_in_a_sorted_split() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    column = Column(LabelSpace("multiclass", ("a", "b", "c")), labels, np.ones(1000, bool))
    posts = Posts([str(i) for i in range(1000)], [""] * 1000, np.repeat("test", 1000), {"label": column})
    for limit in (10, 50, 333):
        few = posts.limited(limit, seed=3)
        counts = np.bincount(few.columns["label"].values, minlength=3)
        assert len(few) == limit and np.abs(counts - limit * np.array([0.6, 0.3, 0.1])).max() <= 2


def test_a_limit_keeps_the_posts_of_many_small_strata_in_proportion() -> None:
    """Half of the posts are of authors with one post each, and twenty labels are rare."""
    authors = np.r_[np.zeros(1000, int), np.arange(1, 1001)]
    rare = np.r_[np.zeros(9600, int), np.repeat(np.arange(1, 21), 20)]
    for strata, share in ((authors, 0.5), (rare, 0.04)):
        keys, before = [str(i) for i in range(len(strata))], set[int]()
        for count in (100, 400, 900, 1100):
            kept = proportional(keys, strata, count, seed=1)
            assert len(kept) == count and before < {*kept.tolist()}
            before = {*kept.tolist()}
            expected = share * count
            assert abs((strata[kept] > 0).sum() - expected) < 4 * (expected * (1 - share)) ** 0.5 + 1


def test_a_limit_keeps_the_same_posts_for_validation_and_test_under_every_seed() -> None:
    posts = Sample(size=300).read()
    kept = [posts.limited(20, seed) for seed in (0, 1)]
    here = [{split: {i for i, s in zip(p.ids, p.splits, strict=True) if s == split} for split in SPLITS} for p in kept]
    assert here[0]["val"] == here[1]["val"] and here[0]["test"] == here[1]["test"] and here[0]["train"] != here[1]["train"]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_post_is_refused(limit: int) -> None:
    with pytest.raises(UserError, match=f"limit={limit}.*null for all"):
        Sample(limit=limit)


def test_the_fingerprint_is_of_the_content(posts: Posts) -> None:
    same = posts.at(np.arange(6))
    assert same.fingerprint() == posts.fingerprint()
    assert len(posts.fingerprint()) == 16 and int(posts.fingerprint(), 16) >= 0


def test_the_fingerprint_changes_with_whatever_changes(posts: Posts) -> None:
    def with_column(name: str, **changes: object) -> Posts:
        return replace(posts, columns={**posts.columns, name: replace(posts.columns[name], **changes)})  # type: ignore[arg-type]

    masks = posts.columns["rationale"].values.copy()
    masks[2] = masks[2] + 0.5
    changed = [
        posts,
        replace(posts, texts=["a B", *posts.texts[1:]]),
        replace(posts, ids=["other", *posts.ids[1:]]),
        replace(posts, splits=np.roll(posts.splits, 1)),
        with_column("label", values=1 - posts.columns["label"].values),
        with_column("target", values=posts.columns["target"].values[::-1].copy()),
        with_column("rationale", values=masks),
        with_column("label", has=np.ones(6, bool)),
        with_column("label", space=LabelSpace("multiclass", ("y", "x"))),
        replace(posts, columns={"label": posts.columns["label"]}),
        posts.limited(1),
    ]
    assert len({p.fingerprint() for p in changed}) == len(changed)


def test_lengths_that_differ_are_a_mistake(posts: Posts) -> None:
    with pytest.raises(ValueError, match="differ in length"):
        replace(posts, texts=posts.texts[1:])


def test_ids_are_distinct(posts: Posts) -> None:
    with pytest.raises(ValueError, match="distinct"):
        replace(posts, ids=["same"] * 6)


def test_the_splits_are_three() -> None:
    assert SPLITS == ("train", "val", "test")


def test_a_fraction_is_of_the_training_posts_nested_and_as_the_labels_are_distributed() -> None:
    label = np.arange(400) % 4 // 3  # one post in four is of label 1
    space, has = LabelSpace("multiclass", ("x", "y")), np.ones(400, bool)
    splits = np.repeat(["train", "val"], [200, 200])
    posts = Posts([f"id{i}" for i in range(400)], ["text"] * 400, splits, {"label": Column(space, label, has)})
    before: set[str] = set()
    for fraction in (0.1, 0.2, 1.0):
        kept = posts.thinned(fraction, 0)
        train = kept.splits == "train"
        assert (train.sum(), (~train).sum()) == (200 * fraction, 200)
        assert kept.columns["label"].values[train].mean() == 0.25
        assert before <= set(kept.ids)
        before = set(kept.ids)
    assert posts.thinned(0.1, 1).ids != posts.thinned(0.1, 0).ids


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5])
def test_a_fraction_of_nothing_or_of_more_than_all_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="share of the training posts"):
        Sample(fraction=fraction)


def test_pairs_go_along_and_into_the_fingerprint(posts: Posts) -> None:
    paired = replace(posts, pairs=[("p",), (), ("q", "r"), (), (), ()])
    assert paired.at(np.array([2, 0])).pairs == [("q", "r"), ("p",)]
    shifted = replace(posts, pairs=[(), ("p",), ("q", "r"), (), (), ()])
    assert len({posts.fingerprint(), paired.fingerprint(), shifted.fingerprint()}) == 3


@pytest.mark.parametrize(
    ("corpus", "key", "given", "expected"),
    [
        ("glue", "task", "coal", "did you mean 'cola'"),
        ("russian_superglue", "task", "tera", "did you mean 'terra'"),
        ("headline_cause", "config", "ru_ful", "did you mean 'ru_full'"),
        ("hateval", "language", "sp", "expected en or es"),
        ("frenk", "language", "de", "expected en, hr or sl"),
        ("hatexplain", "targets", 12, "expected 11 or 10"),
        ("xnli", "language", "xx", "expected ar, bg, .* or zh"),
    ],
)
def test_a_mistyped_name_is_refused_before_anything_is_read(corpus: str, key: str, given: object, expected: str) -> None:
    node = OmegaConf.load(ROOT / "conf" / "corpus" / f"{corpus}.yaml")
    with pytest.raises(UserError, match=f"{key}={given}: .*{expected}"):
        build(OmegaConf.merge(node, {"dir": "nowhere", key: given}))


@pytest.mark.parametrize(
    ("corpus", "key", "given"),
    [
        *(("davidson", "fractions", given) for given in ([0.8, 0.1, 0.2], [1.0], [1.2, -0.1, -0.1])),
        *(("imdb", "validation", 1.5), ("frenk", "val", 0)),
    ],
)
def test_shares_are_checked_before_anything_is_read(corpus: str, key: str, given: object) -> None:
    node = OmegaConf.load(ROOT / "conf" / "corpus" / f"{corpus}.yaml")
    with pytest.raises(UserError, match=f"{key}=.*: expected"):
        build(OmegaConf.merge(node, {"dir": "nowhere", key: given}))


def test_shares_that_a_corpus_leaves_open_are_not_judged() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Mine(Corpus):
        fractions: Sequence[float] | None = None
        validation: float | None = None
        val: str = "dev.csv"

        def read(self) -> Posts:
            raise NotImplementedError

    assert Mine().validation is None
    with pytest.raises(UserError, match="validation=2"):
        Mine(validation=2)


def test_a_number_that_float32_does_not_hold_is_told() -> None:
    with pytest.raises(UserError, match="score: post 2 carries a number"):
        Column.of("score", ["score"], [1.0, 1e39])
    assert not Column.of("score", ["score"], [1.0, 1e39], np.array([True, False])).has[1]
