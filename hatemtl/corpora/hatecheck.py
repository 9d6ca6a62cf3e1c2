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
from pathlib import Path

import numpy as np

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.corpora.files import Hub, again, label_name, read_delimited, ways_out
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace

LABELS = ("non_hateful", "hateful")
FILE = "test_suite_cases.csv"
HUB = Hub("Paul/hatecheck", "default")
READ = {"functionality", "case_id", "test_case", "label_gold", "target_ident"}


@dataclass(frozen=True, kw_only=True)
class HateCheck(Corpus):
    """HateCheck's cases, all of them test posts, with the columns label, functionality and target.

    label: non_hateful or hateful. functionality: which functional test a case belongs to, in the order of the file.
    target: the group that a case is about, in the order of the alphabet; cases about none have no target.

    dir: the folder with the official test_suite_cases.csv; where it is not there, the hub is asked.
    labels: the two labels as a head under test calls them, that of cases which are not hateful first.
    """

    dir: str
    labels: Sequence[str] = LABELS

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.labels)) != 2 or len(self.labels) != 2:
            raise UserError(f"labels={list(self.labels)}: expected two names, first of cases that are not hateful")

    def read(self) -> Posts:
        folder = Path(self.dir).expanduser()
        if (path := folder / FILE).is_file():
            rows = read_delimited(path, again=again(path, "github.com/paul-rottger/hatecheck-data"), only=READ.__contains__)
        else:
            ((_, rows),) = HUB.splits(["test"], ways_out(folder, FILE), READ.__contains__)
        ids = [str(case) for case in rows["case_id"]]
        if len(set(ids)) != len(ids):
            ids = [f"hatecheck_{i}" for i in range(len(ids))]
        label = rows.positions("label_gold", {name: i for i, name in enumerate(LABELS)}, label_name)
        tests = [label_name(test) for test in rows.texts("functionality")]
        groups = [label_name(group or "") for group in rows["target_ident"]]
        everywhere = np.ones(len(rows), bool)
        columns = {
            "label": Column(LabelSpace("multiclass", tuple(self.labels)), np.array(label, np.int64), everywhere),
            "functionality": _named(tests, list(dict.fromkeys(tests)), everywhere),
            "target": _named(groups, sorted({*groups} - {""}) or ["none"], np.array([group != "" for group in groups])),
        }
        return Posts(ids, rows.texts("test_case"), np.full(len(rows), "test"), columns)


def _named(labels: list[str], names: list[str], has: np.ndarray) -> Column:
    places = {name: i for i, name in enumerate(names)}
    return Column(LabelSpace("multiclass", tuple(names)), np.array([places.get(x, 0) for x in labels], np.int64), has)
