"""HateCheck (Röttger et al., ACL 2021): 3,728 written test cases in 29 functional tests for detectors of hate speech.

Layout: test_suite_cases.csv with the columns (none, the index), functionality, case_id, test_case, label_gold (hateful,
non-hateful), target_ident (the group, where there is one), direction, focus_words and others that are not read. The hub's
copy (Paul/hatecheck) has the same names.
Splits: test alone.
Licence: CC BY 4.0. Source: github.com/paul-rottger/hatecheck-data.
Cite Röttger, Vidgen, Nguyen, Waseem, Margetts and Pierrehumbert (2021), "HateCheck: Functional Tests for Hate Speech
Detection Models".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.corpora.files import Hub, label_name, official
from hatemtl.corpora.rows import ids
from hatemtl.errors import UserError

LABELS = ("non_hateful", "hateful")
HOME = "github.com/paul-rottger/hatecheck-data"


@dataclass(frozen=True, kw_only=True)
class HateCheck(Corpus):
    """HateCheck's cases, all of them test posts, with the columns label, functionality and target.

    functionality: in the order of the file. target: the group a case is about, if any, in the order of the alphabet.
    """

    dir: str
    labels: Sequence[str] = LABELS

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.labels)) != 2 or len(self.labels) != 2:
            raise UserError(f"labels={list(self.labels)}: expected two names, first of cases that are not hateful")

    def read(self) -> Posts:
        hub = Hub("Paul/hatecheck", "default")
        ((_, rows),) = official(self.dir, ["test_suite_cases.csv"], HOME, hub=hub, splits=["test"])
        label = rows.positions("label_gold", LABELS, label_name)
        tests = [label_name(test) for test in rows.texts("functionality")]
        groups = [label_name(group or "") for group in rows["target_ident"]]
        columns = {
            "label": Column.of("multiclass", self.labels, label),
            "functionality": _named(tests, list(dict.fromkeys(tests))),
            "target": _named(groups, sorted({*groups} - {""}) or ["none"]),
        }
        splits = np.full(len(rows), "test")
        return Posts(ids(rows["case_id"], len(rows), "hatecheck"), rows.texts("test_case"), splits, columns)


def _named(labels: list[str], names: list[str]) -> Column:
    places = {name: i for i, name in enumerate(names)}
    return Column.of("multiclass", names, [places.get(x, 0) for x in labels], np.array([x != "" for x in labels]))
