"""HateCheck's cases asked of a network: the rows by hand and by scikit-learn, and what is refused before a training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figures import by_metric
from sklearn.metrics import accuracy_score, f1_score

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.corpora.hatecheck import HateCheck
from hatemtl.corpora.sample import Sample
from hatemtl.errors import UserError
from hatemtl.evaluations.base import Predicted
from hatemtl.evaluations.functional import Functional
from hatemtl.labels import LabelSpace

LABEL = LabelSpace("multiclass", ("hatespeech", "normal", "offensive"))
TESTS, GROUPS = ("derog_h", "ident_nh", "soup_nh"), ("snorfs", "dronks")
# functionality, whether it is hateful, the group, and the label of LABEL that the network likes best
CASES = [(0, 1, 0, 0), (0, 1, 1, 2), (0, 1, 1, 0), (1, 0, 0, 1), (1, 0, 1, 0), (2, 0, -1, 2)]


@dataclass(frozen=True, kw_only=True)
class Cases(Corpus):
    given: tuple[tuple[int, int, int, int], ...] = tuple(CASES)

    def read(self) -> Posts:
        tests, labels, groups, _ = np.array(self.given).T
        columns = {
            "label": Column.of("multiclass", ["non_hateful", "hateful"], labels),
            "functionality": Column.of("multiclass", TESTS, tests),
            "target": Column.of("multiclass", GROUPS, np.maximum(groups, 0), groups >= 0),
        }
        texts = [f"case {i}" for i in range(len(tests))]
        return Posts(texts, texts, np.full(len(tests), "test"), columns)


class Asked:
    """A network that likes the label best that a case gives it."""

    def scores(self, task: str, posts: Posts) -> np.ndarray:
        assert task == "label"
        liked = [Cases().given[int(text.removeprefix("case "))][3] for text in posts.texts]
        return np.eye(3, dtype=np.float32)[liked] * 0.4 + 0.2


class Unlabelled(Cases):
    """Of one case no label is known."""

    def read(self) -> Posts:
        posts = super().read()
        posts.columns["label"].has[0] = False
        return posts


def functional(**given: Any) -> Functional:
    return Functional(**{"task": "label", "hateful": ["hatespeech"], "corpus": Cases(), **given})


def measured(**given: Any) -> dict[str, float]:
    said = Predicted("test", LABEL, np.zeros(0, np.int64), np.zeros((0, 3), np.float32), np.zeros(0, np.int64))
    rows = by_metric(functional(**given).rows({"label": said}, {}, Asked()))  # type: ignore[arg-type]
    return {name.removeprefix("test_label_functional_"): value for name, value in rows.items()}


def test_rows_by_hand() -> None:
    rows = measured()
    values = {name: value for name, value in rows.items() if "__posts" not in name}
    assert values == pytest.approx(
        {
            "accuracy": 4 / 6,
            "macro_f1": 2 / 3,  # of either: two right of three, and three called so
            "label_accuracy_non_hateful": 2 / 3,
            "label_accuracy_hateful": 2 / 3,
            "functionality_accuracy_derog_h": 2 / 3,
            "functionality_accuracy_ident_nh": 1 / 2,
            "functionality_accuracy_soup_nh": 1,
            "target_accuracy_snorfs": 1,
            "target_accuracy_dronks": 1 / 3,
        }
    )
    numbers = {name.removesuffix("__posts"): value for name, value in rows.items() if "__posts" in name}
    assert list(numbers) == list(values)
    assert [*numbers.values()] == [6, 6, 3, 3, 3, 2, 1, 2, 3]


@pytest.mark.parametrize("hateful", [["hatespeech"], ["offensive"], ["hatespeech", "offensive"]])
def test_rows_are_scikit_learns(hateful: list[str]) -> None:
    _, gold, _, liked = np.array(CASES).T
    called = np.isin(liked, [LABEL.names.index(name) for name in hateful])
    rows = measured(hateful=hateful)
    assert rows["accuracy"] == pytest.approx(accuracy_score(gold, called))
    assert rows["macro_f1"] == pytest.approx(f1_score(gold, called, average="macro"))
    each = [rows[f"functionality_accuracy_{name}"] * rows[f"functionality_accuracy_{name}__posts"] for name in TESTS]
    assert sum(each) / 6 == pytest.approx(rows["accuracy"])


def test_a_group_without_cases_has_no_row() -> None:
    rows = measured(corpus=Cases(given=tuple(CASES[:2])))
    assert "functionality_accuracy_ident_nh" not in rows
    assert "label_accuracy_non_hateful" not in rows
    assert rows["macro_f1"] == pytest.approx(f1_score([1, 1], [1, 0], average="macro"))


@pytest.mark.parametrize(
    ("given", "spaces", "said"),
    [
        ({}, {"target": LABEL}, r"no task 'label' among tasks=\[target\]; type evaluations.functional.task=NAME"),
        ({}, {"label": LabelSpace("multilabel", LABEL.names)}, r"one label a post .*'label' is multilabel; type "),
        ({"hateful": ["hatespech"]}, {"label": LABEL}, r"no label 'hatespech' .*hateful; did you mean 'hatespeech'"),
        ({"hateful": []}, {"label": LABEL}, r"hateful=\[\]: expected some of the labels .*hatespeech, normal, offensive"),
        ({"hateful": [*LABEL.names]}, {"label": LABEL}, r"expected some of the labels of task 'label', not all"),
        ({"corpus": Unlabelled()}, {"label": LABEL}, r"labels are non_hateful, hateful, expected two, and .*=hatecheck"),
        ({"corpus": Sample(size=100)}, {"label": LABEL}, r"no multiclass column 'functionality'; .*corpus=hatecheck"),
    ],
)
def test_what_it_is_not_for_is_refused(given: dict[str, Any], spaces: dict[str, LabelSpace], said: str) -> None:
    functional().check({"label": LABEL})
    with pytest.raises(UserError, match=said):
        functional(**given).check(spaces)


def test_a_missing_file_is_told_before_anything_is_trained(tmp_path: Path, hub: Path) -> None:
    with pytest.raises(UserError, match=r"test_suite_cases.csv.*evaluations=\[\] does without these cases"):
        functional(corpus=HateCheck(dir=str(tmp_path))).check({"label": LABEL})


def test_the_real_file_has_the_papers_numbers_of_cases(data: Path) -> None:
    cases = functional(corpus=HateCheck(dir=str(data / "hatecheck"))).cases()
    assert np.bincount(cases.columns["label"].values).tolist() == [1165, 2563]
    assert len(cases.columns["functionality"].space) == 29
    assert len(cases.columns["target"].space) == 7
