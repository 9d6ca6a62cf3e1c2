import time

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.multiclass import OneVsRestClassifier

from hatemtl.corpora.base import SPLITS, Posts
from hatemtl.corpora.hatexplain import COMMUNITIES, LABELS
from hatemtl.corpora.sample import GROUPS, TEMPLATES, Sample
from hatemtl.errors import UserError


@pytest.fixture(scope="module")
def posts() -> Posts:
    return Sample().load()


def test_columns_are_those_of_hatexplain(posts: Posts) -> None:
    spaces = {name: (column.space.kind, column.space.names) for name, column in posts.columns.items()}
    assert spaces == {
        "label": ("multiclass", LABELS),
        "target": ("multilabel", COMMUNITIES),
        "rationale": ("tokens", ("rationale",)),
    }
    assert tuple(GROUPS) == COMMUNITIES
    assert posts.columns["label"].values.dtype == np.int64
    assert posts.columns["target"].values.dtype == np.float32
    assert posts.columns["label"].has.all() and posts.columns["target"].has.all()


def test_eight_tenths_are_for_training(posts: Posts) -> None:
    assert [int((posts.splits == split).sum()) for split in SPLITS] == [2400, 300, 300]
    odd = Sample(size=109).load()
    assert [int((odd.splits == split).sum()) for split in SPLITS] == [89, 10, 10]


def test_posts_have_five_to_thirty_words_and_rarely_repeat(posts: Posts) -> None:
    words = [text.split(" ") for text in posts.texts]
    lengths = np.array([len(w) for w in words])
    assert lengths.min() >= 5 and lengths.max() <= 30 and 13 <= lengths.mean() <= 18
    assert all(word and word == word.strip("{!}") for post in words for word in post)
    assert len(set(posts.texts)) > 0.99 * len(posts)


def test_equal_arguments_write_equal_posts_whatever_was_drawn_before(posts: Posts) -> None:
    state, torch_state = str(np.random.get_state(legacy=False)), torch.get_rng_state()
    again = Sample().load()
    assert str(np.random.get_state(legacy=False)) == state and torch.equal(torch.get_rng_state(), torch_state)
    assert again.fingerprint() == posts.fingerprint()
    assert Sample() == Sample() and hash(Sample()) == hash(Sample())
    assert Sample(seed=1).load().fingerprint() != posts.fingerprint()


@pytest.mark.parametrize("size", [400, 3000])
def test_every_label_and_every_target_is_in_every_split(size: int) -> None:
    posts = Sample(size=size).load()
    for split in SPLITS:
        rows = posts.splits == split
        assert posts.columns["target"].values[rows].any(axis=0).all()
        assert set(posts.columns["label"].values[rows]) == {0, 1, 2}


def test_communities_are_uneven(posts: Posts) -> None:
    counts = posts.columns["target"].values.sum(axis=0)
    assert counts.max() > 2 * counts.min()
    assert COMMUNITIES[counts.argmax()] == "african"


def test_the_rationale_marks_the_attacked_group_and_some_abuse_beside_it(posts: Posts) -> None:
    rationale, target = posts.columns["rationale"], posts.columns["target"]
    for i, text in enumerate(posts.texts):
        words, marks = text.split(" "), rationale.values[i]
        assert len(words) == len(marks) and marks.dtype == np.float32
        marked = " ".join(word for word, mark in zip(words, marks, strict=True) if mark)
        for attacked, (_, names) in zip(target.values[i], GROUPS.values(), strict=True):
            assert bool(attacked) == any(f" {name} " in f" {marked} " for name in names)
        assert not marks.all()
    assert set(np.concatenate(rationale.values)) == {0.0, 1.0}


def test_only_abusive_posts_have_a_rationale_and_without_noise_all_do() -> None:
    for noise in (0.0, 0.3):
        posts = Sample(size=500, label_noise=noise).load()
        rationale, normal = posts.columns["rationale"], posts.columns["label"].values == LABELS.index("normal")
        assert not rationale.has[normal].any()
        assert all(values.any() for values in rationale.values[rationale.has])
        assert noise or rationale.has[~normal].all()


def test_noise_touches_nothing_but_that_share_of_labels(posts: Posts) -> None:
    clean = Sample(label_noise=0).load()
    assert clean.texts == posts.texts
    assert np.array_equal(clean.columns["target"].values, posts.columns["target"].values)
    swapped = clean.columns["label"].values != posts.columns["label"].values
    assert 0.02 < swapped.mean() < 0.04


def test_some_posts_differ_in_label_but_not_in_words() -> None:
    bags = {label: {tuple(sorted(t.replace("!", "").split())) for t in TEMPLATES[label]} for label in LABELS}
    assert bags["hatespeech"] & bags["normal"]
    assert bags["offensive"] & bags["normal"]
    assert bags["hatespeech"] & bags["offensive"]


def test_counting_words_learns_something_but_not_all(posts: Posts) -> None:
    train, test = posts.splits == "train", posts.splits != "train"
    texts = np.array(posts.texts, object)
    label, target = posts.columns["label"].values, posts.columns["target"].values
    counts = CountVectorizer().fit(texts[train])
    seen, unseen = counts.transform(texts[train]), counts.transform(texts[test])

    accuracy = LogisticRegression(max_iter=1000).fit(seen, label[train]).score(unseen, label[test])
    majority = np.bincount(label[test]).max() / test.sum()
    assert majority + 0.2 < accuracy < 0.9

    # Attacking everybody always is the baseline of micro-F1 that needs no text.
    guess = OneVsRestClassifier(LogisticRegression(max_iter=1000, C=10)).fit(seen, target[train]).predict(unseen)
    baseline = f1_score(target[test], np.ones_like(target[test]), average="micro")
    assert baseline + 0.2 < f1_score(target[test], guess, average="micro") < 0.95


def test_writing_takes_a_fraction_of_a_second() -> None:
    start = time.process_time()
    Sample(seed=5).load()
    assert time.process_time() - start < 1


def test_limit_keeps_so_many_posts_of_each_split(posts: Posts) -> None:
    few = Sample(limit=7).load()
    assert np.unique(few.splits, return_counts=True)[1].tolist() == [7, 7, 7]
    assert {*few.ids} < {*posts.ids} and few.ids == Sample(limit=7).load().ids


@pytest.mark.parametrize(("size", "label_noise"), [(99, 0.0), (0, 0.0), (100, -0.1), (100, 0.6)])
def test_arguments_out_of_range_are_refused(size: int, label_noise: float) -> None:
    with pytest.raises(UserError, match="expected"):
        Sample(size=size, label_noise=label_noise)
