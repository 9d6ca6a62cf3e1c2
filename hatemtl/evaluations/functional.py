"""Asks a network the cases of HateCheck, whatever it was trained on, and tells by functional test where it is right."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.errors import UserError, did_you_mean
from hatemtl.evaluations.base import Beforehand, Needs, Predicted, Reader, Row, check_one_label
from hatemtl.labels import LabelSpace

COLUMNS = ("label", "functionality", "target")


@dataclass(frozen=True, kw_only=True)
class Functional:
    """Tells how often a task's likeliest label says rightly whether a test case is hateful, by functionality and by group.

    Röttger et al. 2021, HateCheck, doi:10.18653/v1/2021.acl-long.4: accuracy of all cases, of the hateful and of the others,
    of each functionality and each target group, and the macro-F1 of hateful against not. As there, the labels of a task are
    joined to these two before anything is counted. Every row has one with its number of cases, __posts, behind it.

    hateful: the labels of the task that say that a case is hateful; any other says that it is not.
    corpus: the cases, with the columns label (not hateful, hateful), functionality and target, all of them asked.
    """

    task: str
    hateful: Sequence[str]
    corpus: Corpus
    needs: ClassVar[Needs] = Needs(reader=True)
    scalar: ClassVar[None] = None  # of all of these more is better

    def check(self, spaces: Mapping[str, LabelSpace], test: Beforehand | None = None) -> None:
        check_one_label(spaces, self.task, "functional")
        space = spaces[self.task]
        for name in self.hateful:
            if name not in space.names:
                raise UserError(
                    f"task {self.task!r} has no label {name!r} for evaluations.functional.hateful; "
                    f"{did_you_mean(name, space.names)}"
                )
        if not 0 < len(set(self.hateful)) < len(space):
            raise UserError(
                f"evaluations.functional.hateful=[{','.join(self.hateful)}]: expected some of the labels of task "
                f"{self.task!r}, not all, and at least one; they are {', '.join(space.names)}"
            )
        try:
            self.cases()  # a file that is missing is told before anything is trained
        except UserError as error:
            raise UserError(f"{error}; evaluations=[] does without these cases") from error

    def cases(self) -> Posts:
        """Loads the cases. Raises UserError where they are not there, or are no HateCheck."""
        posts = self.corpus.load()
        for name in COLUMNS:
            if name not in posts.columns or posts.columns[name].space.kind != "multiclass":
                raise UserError(
                    f"evaluations.functional.corpus has no multiclass column {name!r}; "
                    f"{did_you_mean(name, posts.columns)}; type corpus@evaluations.functional.corpus=hatecheck"
                )
        label = posts.columns["label"]
        if len(label.space) != 2 or not label.has.all():
            raise UserError(
                f"evaluations.functional.corpus: its labels are {', '.join(label.space.names)}, expected two, and one of "
                f"them for each case; type corpus@evaluations.functional.corpus=hatecheck"
            )
        return posts

    def rows(
        self, predictions: Mapping[str, Predicted], posts: Mapping[str, Mapping[str, Column]], reader: Reader | None = None
    ) -> list[Row]:
        assert reader is not None  # as `needs` says
        said, cases = predictions[self.task], self.cases()
        places = [said.space.names.index(name) for name in self.hateful]
        called = np.isin(reader.scores(self.task, cases).argmax(axis=1), places)
        hateful = cases.columns["label"].values == 1
        rows = []
        for name, label, value, number in _measured(called, hateful, cases.columns):
            rows.append(Row(said.stage, self.task, f"functional_{name}", label, value))
            rows.append(Row(said.stage, self.task, f"functional_{name}", label, float(number), "posts"))
        return rows


def _measured(
    called: np.ndarray, hateful: np.ndarray, columns: Mapping[str, Column]
) -> Iterator[tuple[str, str | None, float, int]]:
    """Name, group, value and number of cases of each row. called, hateful: (N,) bool."""
    right = called == hateful
    yield "accuracy", None, float(right.mean()), len(right)
    sides = ((hateful, called), (~hateful, ~called))
    f1s = [2 * (right & gold).sum() / max(gold.sum() + said.sum(), 1) for gold, said in sides]
    yield "macro_f1", None, float(np.mean(f1s)), len(right)
    for name in COLUMNS:
        column = columns[name]
        for place, group in enumerate(column.space.names):
            of_group = column.has & (column.values == place)
            if of_group.any():
                yield f"{name}_accuracy", group, float(right[of_group].mean()), int(of_group.sum())
