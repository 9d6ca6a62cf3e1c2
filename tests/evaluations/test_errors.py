"""Errors listed by hand: which posts, in which order, and which words stand behind them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from evaluations.test_explained import WEIGHTS, Adding

from hatemtl.corpora.base import Column
from hatemtl.errors import UserError
from hatemtl.evaluations.base import Beforehand, Listing, Predicted
from hatemtl.evaluations.errors import POSTS, WORDS, Errors, log_odds
from hatemtl.labels import LabelSpace

TEXTS = ["Kind words", "kind, kind tea", "bad tea", "bad day", "=1+1 bad", "good day"]
# post: its label, what the network says of hate and of fine, whom it is about
GOLD, HATE, GROUPS = [1, 1, 1, 0, 0, 0], [0.9, 0.2, 0.6, 0.7, 0.1, 0.4], [(1, 0), (0, 0), (1, 1), (0, 1), (0, 1), (0, 1)]


class Asked:
    """A network's posts."""

    def text(self, post: int) -> str:
        return TEXTS[post]

    def named(self, post: int) -> tuple[str, int]:
        return f"p{post}", TEXTS[post].count(" ") + 1


def errors(**given: Any) -> Errors:
    usual = {"task": "label", "groups": "target", "posts": 5, "words": 20, "least": 1, "prior": 10.0, "texts": False}
    return Errors(**{**usual, "marked": None, "explainer": None, **given})


def listed(hate: Sequence[float] = HATE, **given: Any) -> dict[str, Any]:
    scores = np.stack([hate, 1 - np.array(hate)], axis=1).astype(np.float32)
    said = Predicted("test", LabelSpace("multiclass", ("hate", "fine")), np.arange(6), scores, np.array(GOLD))
    words = [np.array([0, 1] if "bad" in text else [0] * len(text.split(" ")), np.float32) for text in TEXTS]
    marked = np.empty(6, object)
    marked[:] = words
    target, marks = Column.of("multilabel", ["women", "arab"], GROUPS), Column.of("tokens", ["marked"], marked)
    columns = {"target": target, "marks": marks}
    return errors(**given).tables({"label": said}, {"label": columns}, Asked())  # type: ignore[arg-type, return-value]


def test_errors_are_listed_by_label_and_side_the_most_confident_first() -> None:
    rows = listed()[POSTS]
    found = [(row["label"], row["error"], row["post_id"]) for row in rows]
    assert found == [
        *(("hate", "false_positive", post) for post in ("p0", "p2")),
        *(("hate", "false_negative", post) for post in ("p4", "p5")),
        *(("fine", "false_positive", post) for post in ("p4", "p5")),
        *(("fine", "false_negative", post) for post in ("p0", "p2")),
    ]
    assert rows[0] == {"task": "label", "label": "hate", "error": "false_positive", "post_id": "p0",
                       "score": pytest.approx(0.9), "gold": "fine", "predicted": "hate", "groups": "women"}  # fmt: skip
    assert rows[1]["groups"] == "women; arab"


def test_as_many_are_listed_of_each_group() -> None:
    first = [row["post_id"] for row in listed(posts=1)[POSTS][:3]]
    assert first == ["p0", "p2", "p4"]  # p0 the first and the first of women, p2 the first of arab; p4 is the next side's
    assert [row["post_id"] for row in listed(posts=1, groups=None)[POSTS][:2]] == ["p0", "p4"]


def test_texts_marks_and_explanations_stand_there_where_they_are_asked_for() -> None:
    assert not {"text", "marked", "explained"} & listed()[POSTS][0].keys()
    row = listed(texts=True, marked="marks")[POSTS][1]
    assert (row["text"], row["marked"]) == ("bad tea", "0 1")


@pytest.mark.parametrize("explainer", ["attention", "gradient_input", "integrated_gradients"])
def test_a_words_explanation_is_the_sum_of_its_pieces(explainer: str) -> None:
    """Of posts called rude and fine by turns; 0 of the word that was cut off."""
    reader: Any = Adding(scores=lambda logits: logits)
    reader.text, reader.paired = str, np.zeros(2, bool)
    space, scores = LabelSpace("multiclass", ("rude", "fine")), np.eye(2, dtype=np.float32)
    said = Predicted("test", space, np.arange(2), scores, np.array([1, 0]))
    asked = errors(explainer=explainer, groups=None)
    part = (reader.table @ reader.side).numpy()
    for row in asked.tables({"label": said}, {}, reader)[POSTS]:
        sign = 1 if row["label"] == "rude" else -1
        of = {"attention": WEIGHTS, "gradient_input": sign * part}.get(explainer, sign * (part - part[0]))
        words = [of[10], of[11] + of[12], of[13], of[14]] if row["post_id"] == "p0" else [*of[[15, 14, 13, 10]], 0]
        assert [*map(float, str(row["explained"]).split())] == pytest.approx(words, rel=1e-2, abs=1e-3)
    spaces, test = {"label": space}, Beforehand({"label": np.arange(2)}, {}, {}, reader)
    asked.check(spaces, test)
    reader.paired[1] = True
    with pytest.raises(UserError, match=f"^explainer={explainer}: .*; type evaluations.errors.explainer=null$"):
        asked.check(spaces, test)


def test_words_are_those_that_wrong_posts_hold_more_often() -> None:
    """Of the fine posts p0 and p2 are wrong and p1 is right: kind is in one of each, words and bad in wrong ones alone."""
    rows = [row for row in listed()[WORDS] if (row["label"], row["error"]) == ("hate", "false_positive")]
    assert {row["word"] for row in rows} == {"words", "bad"}  # tea and kind are in the right one as well
    (bad,) = [row for row in rows if row["word"] == "bad"]
    assert (bad["wrong"], bad["of_wrong"], bad["right"], bad["of_right"]) == (1, 2, 0, 1)
    of_wrong, of_right = dict.fromkeys(("words", "bad", "kind", "tea"), 1), dict.fromkeys(("kind", "tea"), 1)
    assert bad["log_odds"] == pytest.approx(log_odds(of_wrong, of_right, 10)["bad"][0])
    assert not listed(least=2)[WORDS]
    wrong = listed([0.9, 0.8, 0.6, 0.7, 0.1, 0.4])[WORDS]  # of the fine posts none is right, to compare with
    assert {(row["label"], row["error"]) for row in wrong} == {("hate", "false_negative"), ("fine", "false_positive")}


def test_log_odds_are_those_of_the_formula_and_turn_with_the_sides() -> None:
    wrong, right = {"a": 5, "b": 1, "c": 2}, {"a": 2, "b": 9}
    found, turned = log_odds(wrong, right, 4.0), log_odds(right, wrong, 4.0)
    alpha = 4 * 7 / 19
    odds = np.log((5 + alpha) / (8 + 4 - 5 - alpha)) - np.log((2 + alpha) / (11 + 4 - 2 - alpha))
    assert found["a"] == pytest.approx((odds, odds / np.sqrt(1 / (5 + alpha) + 1 / (2 + alpha))))
    for word in "abc":
        assert found[word] == pytest.approx([-of for of in turned[word]])


def test_labels_of_several_a_post_have_thresholds_of_their_own() -> None:
    gold = np.array([[1, 0], [0, 0], [0, 1]], np.float32)
    scores, limits = np.array([[0.2, 0.6], [0.35, 0.1], [0.1, 0.6]], np.float32), np.array([0.3, 0.7], np.float32)
    said = Predicted("test", LabelSpace("multilabel", ("a", "b")), np.arange(3), scores, gold, limits)
    rows = errors(groups=None, task="t").tables({"t": said}, {}, Asked())[POSTS]  # type: ignore[arg-type]
    found = [(row["label"], row["error"], row["post_id"], row["gold"], row["predicted"]) for row in rows]
    assert found == [
        ("a", "false_positive", "p1", "", "a"),
        ("a", "false_negative", "p0", "a", ""),
        ("b", "false_negative", "p2", "b", ""),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"posts": 0}, "posts=0: expected a whole number from 1"),
        ({"prior": 0.0}, "prior=0.0: expected a number above 0"),
        ({"explainer": "lime"}, "explainer=lime: expected null or one of attention, gradient_input"),
    ],
)
def test_settings_out_of_range_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        errors(**given)


def test_a_task_without_labels_is_refused() -> None:
    assert isinstance(errors(), Listing)
    with pytest.raises(UserError, match="'label' is score; type evaluations.errors.task=NAME"):
        errors().check({"label": LabelSpace("score", ("x",))})
