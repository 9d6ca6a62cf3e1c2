"""Bias by hand, by scikit-learn's AUC and by loops over posts; and what is no input for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figures import by_metric
from omegaconf import OmegaConf
from sklearn.metrics import f1_score, roc_auc_score

from hatemtl.command.configuration import build
from hatemtl.corpora.base import Column
from hatemtl.errors import UserError
from hatemtl.evaluations.base import Beforehand, Needs, Predicted
from hatemtl.evaluations.bias import Bias, aucs, generalised_mean
from hatemtl.labels import LabelSpace

CONF = Path(__file__).parents[2] / "conf/evaluations/bias.yaml"
LABEL = LabelSpace("multiclass", ("hatespeech", "normal", "offensive"))
TOXIC = LabelSpace("multiclass", ("normal", "toxic"))
TARGET = LabelSpace("multilabel", ("a", "b", "c", "other"))
Post = tuple[float, bool, set[str]]  # 1 - p(normal), whether it is toxic, whom it is about


def bias(**given: Any) -> Bias:
    usual = {"task": "label", "normal": "normal", "communities": "target", "leave_out": ["other"]}
    return Bias(**{**usual, "backgrounds": ["hatexplain", "borkan"], "resamples": 0, "confidence": 0.9, "seed": 0, **given})


def measured(posts: list[Post], has: list[bool] | None = None, *, behind: bool = False, **given: Any) -> dict[str, float]:
    """The rows of these posts, without the stage and task in their names. behind: with intervals and numbers of posts."""
    toxic = np.array([1 - score for score, _, _ in posts], np.float32)
    said = Predicted(
        "test",
        TOXIC,
        np.arange(len(posts)),
        np.stack([toxic, 1 - toxic], axis=1),
        np.array([int(is_toxic) for _, is_toxic, _ in posts]),
    )
    named = np.array([[name in about for name in TARGET.names] for _, _, about in posts], np.float32)
    columns = {"target": Column(TARGET, named, np.array(has or [True] * len(posts)))}
    rows = by_metric(bias(**given).rows({"label": said}, {"label": columns}))
    assert all(name.startswith("test_label_") for name in rows)
    rows = {name: value for name, value in rows.items() if behind or not name.endswith(("__low", "__high", "__posts"))}
    return {name.removeprefix("test_label_"): value for name, value in rows.items()}


def aucs_of(rows: dict[str, float]) -> dict[str, float]:
    """Rows without those of labels."""
    return {name: value for name, value in rows.items() if not name.startswith(("subgroup_false", "subgroup_macro"))}


def drawn(n: int, seed: int = 0) -> list[Post]:
    """Posts with coarse scores, so that many tie."""
    draw = np.random.default_rng(seed)
    about = [{name for name in TARGET.names if draw.random() < 0.3} for _ in range(n)]
    return [(round(float(draw.random()), 1), bool(draw.random() < 0.4), names) for names in about]


# The area under the curve


@pytest.mark.parametrize("decimals", [1, 2, 15])
@pytest.mark.parametrize("seed", range(5))
def test_auc_is_scikit_learns_with_ties_or_without(seed: int, decimals: int) -> None:
    draw = np.random.default_rng(seed)
    scores, truth = draw.random(200).round(decimals), draw.random(200) < 0.3
    used = draw.random(200) < 0.7
    weights = draw.exponential(size=(200, 3)) if decimals < 15 else draw.integers(0, 3, (200, 3)).astype(float)
    found = aucs(scores, truth & used, ~truth & used, weights)
    for of, found_of in zip(weights.T, found, strict=True):
        expected = roc_auc_score(truth[used], scores[used], sample_weight=of[used])
        assert found_of == pytest.approx(expected, abs=1e-12)
    assert aucs(-scores, truth & used, ~truth & used, weights) == pytest.approx(1 - found)


@pytest.mark.parametrize(
    ("toxic", "others", "expected"),
    [
        ([0.9, 0.8], [0.1], 1.0),
        ([0.1], [0.9, 0.8], 0.0),
        ([0.5], [0.5], 0.5),
        ([0.5, 0.5], [0.5, 0.1], 0.75),  # two ties and two wins of four pairs
        ([0.6, 0.2], [0.4, 0.2, 0.1], (3 + 0.5 + 1) / 6),
    ],
)
def test_auc_by_hand(toxic: list[float], others: list[float], expected: float) -> None:
    scores, positive = np.array([*toxic, *others]), np.arange(len(toxic) + len(others)) < len(toxic)
    assert aucs(scores, positive, ~positive, np.ones((len(scores), 1))) == pytest.approx([expected])


def test_auc_of_one_class_is_not_told() -> None:
    every = np.ones(3, bool)
    for positive in (every, ~every):
        with pytest.raises(ValueError, match="^an AUC needs posts of both kinds$"):
            aucs(np.arange(3.0), positive, ~positive, np.ones((3, 1)))


# The mean


def test_the_mean_by_hand() -> None:
    found = generalised_mean(np.array([[0.5, 0.7, 0.9], [1.0, 0.7, 0.0]]))  # of each column
    assert found == pytest.approx([((2**5 + 1) / 2) ** -0.2, 0.7, 0])


@pytest.mark.filterwarnings("error")
def test_the_mean_lies_between_the_least_and_the_arithmetic_mean() -> None:
    for seed in range(20):
        values = np.random.default_rng(seed).random(10)
        assert min(values) <= generalised_mean(values) <= sum(values) / 10
        assert generalised_mean(np.array([*values, 0.0])) == 0


# The rows


def test_rows_by_hand() -> None:
    """a: a toxic post above one of its two others; b: its only pair the wrong way round; the last two are no one's."""
    posts: list[Post] = [
        *((0.5, True, {"a"}), (0.3, False, {"a"}), (0.6, False, {"a"})),
        *((0.2, True, {"b"}), (0.4, False, {"b", "other"})),
        *((0.9, True, {"other"}), (0.1, False, set())),
    ]
    rows = measured(posts)
    assert list(rows) == [
        *("subgroup_auc_a", "subgroup_auc_b", "gmb_subgroup_auc", "gmb_subgroup_auc__communities"),
        *(
            "bpsn_auc_hatexplain_a",
            "bpsn_auc_hatexplain_b",
            "gmb_bpsn_auc_hatexplain",
            "gmb_bpsn_auc_hatexplain__communities",
        ),
        *(
            "bnsp_auc_hatexplain_a",
            "bnsp_auc_hatexplain_b",
            "gmb_bnsp_auc_hatexplain",
            "gmb_bnsp_auc_hatexplain__communities",
        ),
        *("bpsn_auc_borkan_a", "bpsn_auc_borkan_b", "gmb_bpsn_auc_borkan", "gmb_bpsn_auc_borkan__communities"),
        *("bnsp_auc_borkan_a", "bnsp_auc_borkan_b", "gmb_bnsp_auc_borkan", "gmb_bnsp_auc_borkan__communities"),
        *("subgroup_false_positive_rate_a", "subgroup_false_positive_rate_b"),
        *("subgroup_false_negative_rate_a", "subgroup_false_negative_rate_b"),
        *("subgroup_macro_f1_a", "subgroup_macro_f1_b"),
    ]
    assert (rows["subgroup_auc_a"], rows["subgroup_auc_b"]) == (0.5, 0)
    assert (rows["gmb_subgroup_auc"], rows["gmb_subgroup_auc__communities"]) == (0, 2)  # c is named by no post
    assert rows["bpsn_auc_hatexplain_a"] == 0  # .2 of b against .3 and .6
    assert rows["bpsn_auc_borkan_a"] == 0.5  # .2 and the .9 that names no community
    assert rows["bnsp_auc_hatexplain_a"] == 1  # .5 against .4 of b
    assert rows["bnsp_auc_borkan_a"] == 1  # and against .1
    assert rows["bnsp_auc_hatexplain_b"] == 0  # .2 against .3 and .6
    assert rows["bnsp_auc_borkan_b"] == pytest.approx(1 / 3)
    assert rows["subgroup_false_positive_rate_a"] == 0.5  # .6 of .3 and .6
    assert rows["subgroup_false_negative_rate_a"] == 1  # .5: of two labels alike the first is given, here normal
    assert rows["subgroup_macro_f1_a"] == pytest.approx((0 + 1 / 2) / 2)
    assert (rows["subgroup_false_positive_rate_b"], rows["subgroup_false_negative_rate_b"]) == (0, 1)
    assert rows["subgroup_macro_f1_b"] == pytest.approx((0 + 2 / 3) / 2)
    whole = measured(posts, behind=True)
    assert [whole[f"{name}_a__posts"] for name in ("subgroup_auc", "bpsn_auc_hatexplain", "bnsp_auc_borkan")] == [3, 3, 3]
    assert [whole[f"gmb_{name}__posts"] for name in ("subgroup_auc", "bpsn_auc_borkan")] == [5, 6]
    assert [whole[f"subgroup_{name}_a__posts"] for name in ("false_positive_rate", "false_negative_rate", "macro_f1")] == [
        *(2, 1, 3)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_what_a_loop_over_posts_and_scikit_learn_say(seed: int) -> None:
    posts = drawn(150, seed)
    rows = measured(posts)
    communities = {"a", "b", "c"}
    for background in ("hatexplain", "borkan"):
        found: dict[str, list[float]] = {}
        for c in sorted(communities):
            rest = [p for p in posts if c not in p[2] and (background == "borkan" or p[2] & communities)]
            mine = [p for p in posts if c in p[2]]
            for name, chosen in (
                ("subgroup_auc", mine),
                (f"bpsn_auc_{background}", [p for p in mine if not p[1]] + [p for p in rest if p[1]]),
                (f"bnsp_auc_{background}", [p for p in mine if p[1]] + [p for p in rest if not p[1]]),
            ):
                expected = roc_auc_score([p[1] for p in chosen], [p[0] for p in chosen])
                assert rows[f"{name}_{c}"] == pytest.approx(expected)
                found.setdefault(name, []).append(float(expected))
        for name, values in found.items():
            assert rows[f"gmb_{name}"] == pytest.approx(np.mean(np.power(values, -5.0)) ** -0.2)
            assert rows[f"gmb_{name}__communities"] == 3


def test_three_classes_are_judged_as_two() -> None:
    """Whoever is not normal is toxic, and a post's score is what normal leaves."""
    posts, draw = drawn(80), np.random.default_rng(1)
    share, kind = draw.random(80), draw.integers(0, 2, 80) * 2
    normal = np.array([1 - score for score, _, _ in posts])
    scores = np.stack([share * (1 - normal), normal, (1 - share) * (1 - normal)], axis=1).astype(np.float32)
    gold = np.where([is_toxic for _, is_toxic, _ in posts], kind, 1)
    named = np.array([[name in about for name in TARGET.names] for _, _, about in posts], np.float32)
    said = Predicted("test", LABEL, np.arange(80), scores, gold)
    columns = {"label": {"target": Column(TARGET, named, np.ones(80, bool))}}
    rows = by_metric(bias().rows({"label": said}, columns))
    two = {f"test_label_{name}": value for name, value in aucs_of(measured(posts)).items()}
    assert {name: rows[name] for name in two} == pytest.approx(two)


def test_a_community_with_one_kind_of_posts_has_no_row_and_is_in_no_mean() -> None:
    posts: list[Post] = [(0.9, True, {"a"}), (0.2, False, {"a"}), (0.8, True, {"b"}), (0.7, True, {"b"})]
    rows = measured(posts, backgrounds=["hatexplain"])
    assert (rows["subgroup_auc_a"], rows["gmb_subgroup_auc"], rows["gmb_subgroup_auc__communities"]) == (1, 1, 1)
    assert "subgroup_auc_b" not in rows
    assert "bpsn_auc_hatexplain_b" not in rows  # no other post of b
    assert rows["bnsp_auc_hatexplain_b"] == 1
    assert "bnsp_auc_hatexplain_a" not in rows  # no other post in its background
    assert rows["gmb_bnsp_auc_hatexplain__communities"] == 1
    alone = aucs_of(measured([post for post in posts if post[1]], backgrounds=["borkan"]))
    assert not any(value for value in alone.values()), "the numbers of communities, all 0"
    assert [*alone] == [f"gmb_{name}__communities" for name in ("subgroup_auc", "bpsn_auc_borkan", "bnsp_auc_borkan")]


def test_posts_whose_communities_nobody_annotated_count_nowhere() -> None:
    posts = drawn(60)
    more = [(1 - score, not is_toxic, set[str]()) for score, is_toxic, _ in posts]
    assert measured(posts + more, [True] * 60 + [False] * 60) == measured(posts)


def test_what_is_left_out_is_no_community() -> None:
    rows = measured(drawn(100), leave_out=["a", "nobody"])
    assert {name for name in rows if name.startswith("subgroup_auc")} == {f"subgroup_auc_{c}" for c in ("b", "c", "other")}


# The intervals and the labels


def in_three(n: int, seed: int) -> tuple[Predicted, dict[str, dict[str, Column]]]:
    """Posts of three labels with communities."""
    draw = np.random.default_rng(seed)
    said = Predicted("test", LABEL, np.arange(n), draw.dirichlet([1, 1, 1], n).astype(np.float32), draw.integers(0, 3, n))
    named = (draw.random((n, 4)) < 0.4).astype(np.float32)
    return said, {"label": {"target": Column(TARGET, named, draw.random(n) < 0.9)}}


def test_labels_are_judged_as_fairlearn_and_scikit_learn_do() -> None:
    from fairlearn.metrics import MetricFrame, false_negative_rate, false_positive_rate

    said, columns = in_three(200, seed=1)
    named, given = columns["label"]["target"], said.scores.argmax(axis=1)
    rows = by_metric(bias().rows({"label": said}, columns))
    for place, community in enumerate("abc"):
        used = named.has.nonzero()[0]
        rates = {"false_positive_rate": false_positive_rate, "false_negative_rate": false_negative_rate}
        mine = named.values[used, place] > 0
        frame = MetricFrame(
            metrics=rates, y_true=said.gold[used] != 1, y_pred=given[used] != 1, sensitive_features=mine
        ).by_group.loc[True]
        for name in rates:
            assert rows[f"test_label_subgroup_{name}_{community}"] == pytest.approx(frame[name])
        f1 = f1_score(said.gold[used][mine], given[used][mine], average="macro")
        assert rows[f"test_label_subgroup_macro_f1_{community}"] == pytest.approx(f1)


def test_intervals_are_those_of_a_loop_over_resamples() -> None:
    said, columns = in_three(60, seed=2)
    named, given, normal = columns["label"]["target"], said.scores.argmax(axis=1), said.gold == 1
    score = 1 - said.scores[:, 1].astype(float)
    drawn = np.random.default_rng(7).standard_exponential((60, 50))
    found: dict[str, list[float]] = {}
    for weights in drawn.T:
        each = []
        for place in range(3):
            mine = (named.values[:, place] > 0) & named.has
            each.append(roc_auc_score(~normal[mine], score[mine], sample_weight=weights[mine]))
            wrong = [w for w, m, n, g in zip(weights, mine, normal, given, strict=True) if m and n and g != 1]
            found.setdefault(f"subgroup_false_positive_rate_{'abc'[place]}__END", []).append(
                sum(wrong) / weights[mine & normal].sum()
            )
            f1 = f1_score(said.gold[mine], given[mine], average="macro", sample_weight=weights[mine])
            found.setdefault(f"subgroup_macro_f1_{'abc'[place]}__END", []).append(f1)
            found.setdefault(f"subgroup_auc_{'abc'[place]}__END", []).append(each[-1])
        found.setdefault("gmb_subgroup_auc__END", []).append(float(np.mean(np.power(each, -5.0)) ** -0.2))
    rows = by_metric(bias(resamples=50, confidence=0.8, seed=7).rows({"label": said}, columns))
    for name, values in found.items():
        low, high = sorted(values)[4:6], sorted(values)[44:46]  # percentiles 10 and 90 lie between them
        assert low[0] <= rows[f"test_label_{name.replace('END', 'low')}"] <= low[1] + 1e-12, name
        assert high[0] - 1e-12 <= rows[f"test_label_{name.replace('END', 'high')}"] <= high[1] + 1e-12, name


def test_intervals_are_near_those_of_draws_with_replacement() -> None:
    """The usual bootstrap, where there are posts enough that no class vanishes."""
    posts = drawn(400, seed=3)
    rows = measured(posts, behind=True, resamples=2000, confidence=0.9)
    mine = [post for post in posts if "a" in post[2]]
    draw = np.random.default_rng(0)
    counts = draw.multinomial(len(mine), np.ones(len(mine)) / len(mine), 2000).T.astype(float)
    score, toxic = np.array([post[0] for post in mine]), np.array([post[1] for post in mine])
    expected = np.quantile(aucs(score, toxic, ~toxic, counts), [0.05, 0.95])
    found = [rows["subgroup_auc_a__low"], rows["subgroup_auc_a__high"]]
    assert found == pytest.approx(expected.tolist(), abs=0.01)
    assert found[0] < rows["subgroup_auc_a"] < found[1]


def test_a_single_post_of_a_class_still_has_an_interval_and_a_seed_its_own() -> None:
    posts: list[Post] = [(score / 10, score == 5, {"a"}) for score in range(10)]
    rows = measured(posts, behind=True, resamples=100)
    assert 0 < rows["subgroup_auc_a__low"] < rows["subgroup_auc_a"] == 5 / 9 < rows["subgroup_auc_a__high"] < 1
    assert measured(posts, behind=True, resamples=100) == rows
    assert measured(posts, behind=True, resamples=100, seed=1) != rows
    assert not [name for name in measured(posts, behind=True) if "__low" in name or "__high" in name]


# What it needs


def test_it_needs_the_communities_of_the_tasks_corpus() -> None:
    assert bias(task="toxic", communities="groups").needs == Needs(columns={"toxic": {"groups": "multilabel"}})
    bias().check({"label": LABEL, "target": TARGET})
    bias(task="toxic").check({"toxic": TOXIC})


@pytest.mark.parametrize(
    ("given", "spaces", "said"),
    [
        ({}, {"target": TARGET}, r"no task 'label' among tasks=\[target\]; type evaluations.bias.task=NAME"),
        ({"task": "target"}, {"target": TARGET}, r"expected a task with one label a post .*'target' is multilabel; type "),
        ({"normal": "norml"}, {"label": LABEL}, r"no label 'norml' for evaluations.bias.normal; did you mean 'normal'"),
    ],
)
def test_other_tasks_are_refused(given: dict[str, Any], spaces: dict[str, LabelSpace], said: str) -> None:
    with pytest.raises(UserError, match=said):
        bias(**given).check(spaces)


def test_a_label_that_is_left_out_must_be_one_but_other_need_not_be_there() -> None:
    column = Column(LabelSpace("multilabel", ("a", "b")), np.zeros((2, 2), np.float32), np.ones(2, bool))
    test = Beforehand({"label": np.arange(2)}, {"label": {"target": column}}, {})
    for given in (None, [], ["a"]):
        bias(leave_out=given).check({"label": LABEL}, test)
    for given in (["a", "other"], ["B"]):
        with pytest.raises(
            UserError, match=rf"^leave_out=\[{','.join(given)}\]: column 'target' has no label '{given[-1]}'"
        ):
            bias(leave_out=given).check({"label": LABEL}, test)
    posts = drawn(60)
    assert measured(posts, leave_out=None) == measured(posts, leave_out=["other"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"backgrounds": ["borkn"]}, r"backgrounds=\[borkn\]: expected a list.*type 'evaluations.bias.backgrounds=\["),
        ({"backgrounds": "borkan"}, r"backgrounds=borkan: expected a list.*type 'evaluations.bias.backgrounds=\[borkan\]"),
        ({"leave_out": "other"}, r"leave_out=other: expected a list.*type 'evaluations.bias.leave_out=\[other\]"),
        ({"resamples": -1}, r"resamples=-1: expected a number, 0 for no intervals; type 1000"),
        ({"confidence": 95}, r"confidence=95: expected a share above 0 and below 1; type 0.95"),
        ({"seed": -1}, r"seed=-1: expected a whole number from 0; type 0"),
    ],
)
def test_other_settings_are_refused(given: dict[str, Any], said: str) -> None:
    node = OmegaConf.create({"evaluations": OmegaConf.load(CONF)})
    node.evaluations.bias = {**node.evaluations.bias, **given}
    with pytest.raises(UserError, match=said):
        build(node.evaluations.bias)
