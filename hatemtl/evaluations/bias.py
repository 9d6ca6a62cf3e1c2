"""Tells whether posts about a community are told apart less well than others: AUCs of subgroups (Borkan et al. 2019)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from hatemtl.corpora.base import Column
from hatemtl.errors import UserError, did_you_mean
from hatemtl.evaluations.base import Needs, Predicted, Reader, Row
from hatemtl.labels import LabelSpace

Background = Literal["hatexplain", "borkan"]
POWER = -5.0


@dataclass(frozen=True, kw_only=True)
class Bias:
    """Tells how well a task tells toxic posts from others within each community, and between it and a background.

    Borkan et al. 2019, Nuanced metrics for measuring unintended bias with real data for text classification,
    arXiv:1903.04561; each an area under the ROC curve of 1 - p(normal), 1/2 where nothing is told apart. subgroup_auc: toxic
    posts that name the community against its others. bpsn_auc: toxic posts of the background against the community's others;
    low where these are taken for toxic. bnsp_auc: its toxic posts against the background's others; low where they are
    overlooked. Of each the generalised mean over communities, gmb_AUC, and over how many, gmb_AUC_communities: a community
    with no toxic or no other post, or whose background has none, gets no row and is not in the mean. A post whose
    communities nobody annotated counts nowhere.

    backgrounds: one set of rows each; hatexplain: posts that name another community but not this one, as in HateXplain's
    code (Mathew et al. 2021, arXiv:2012.10289); borkan: all posts that do not name this one, as in Borkan et al.
    """

    task: str
    normal: str
    communities: str
    leave_out: Sequence[str]
    backgrounds: Sequence[Background]
    scalar: ClassVar[None] = None  # of all of these more is better

    @property
    def needs(self) -> Needs:
        return Needs(columns={self.task: {self.communities: "multilabel"}})

    def check(self, spaces: Mapping[str, LabelSpace]) -> None:
        if self.task not in spaces:
            raise UserError(
                f"no task {self.task!r} among tasks=[{','.join(spaces)}]; type evaluations.bias.task=NAME, or evaluations=[]"
            )
        space = spaces[self.task]
        if space.kind != "multiclass":
            raise UserError(
                f"expected a task with one label a post (multiclass), and {self.task!r} is {space.kind}; type "
                f"evaluations.bias.task=NAME of another, or evaluations=[]"
            )
        if self.normal not in space.names:
            raise UserError(
                f"task {self.task!r} has no label {self.normal!r} for evaluations.bias.normal; "
                f"{did_you_mean(self.normal, space.names)}"
            )

    def rows(
        self, predictions: Mapping[str, Predicted], posts: Mapping[str, Mapping[str, Column]], reader: Reader | None = None
    ) -> list[Row]:
        said, named = predictions[self.task], posts[self.task][self.communities]
        normal = said.space.names.index(self.normal)
        score = 1 - said.scores[:, normal].astype(np.float64)
        toxic, harmless = (said.gold != normal) & named.has, (said.gold == normal) & named.has
        about = {
            community: named.values[:, place] >= 0.5
            for place, community in enumerate(named.space.names)
            if community not in self.leave_out
        }
        anyone = np.logical_or.reduce([*about.values()]) if about else np.zeros(len(score), bool)
        aucs = {"subgroup_auc": {c: auc(score, toxic & mine, harmless & mine) for c, mine in about.items()}}
        for background in self.backgrounds:
            rest = {c: ~mine & anyone if background == "hatexplain" else ~mine for c, mine in about.items()}
            aucs[f"bpsn_auc_{background}"] = {c: auc(score, toxic & rest[c], harmless & about[c]) for c in about}
            aucs[f"bnsp_auc_{background}"] = {c: auc(score, toxic & about[c], harmless & rest[c]) for c in about}
        rows = []
        for name, found in aucs.items():
            known = {community: value for community, value in found.items() if not np.isnan(value)}
            rows += [Row(said.stage, self.task, name, community, value) for community, value in known.items()]
            if known:
                rows.append(Row(said.stage, self.task, f"gmb_{name}", None, generalised_mean([*known.values()])))
            rows.append(Row(said.stage, self.task, f"gmb_{name}_communities", None, float(len(known))))
        return rows


def auc(scores: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    """The area under the ROC curve of scores (N,) between two sets of posts, each (N,) bool; NaN where one is empty.

    How often a positive post scores above a negative one, a tie counting half: the Mann-Whitney U of the ranks (Hanley &
    McNeil 1982, doi:10.1148/radiology.143.1.7063747).
    """
    wins, above, below = positive.sum(), scores[positive], scores[negative]
    if not len(above) or not len(below):
        return float("nan")
    _, place, counts = np.unique(np.concatenate([above, below]), return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[place]  # from 1 on; equal scores share the mean of theirs
    return float((ranks[:wins].sum() - wins * (wins + 1) / 2) / (wins * len(below)))


def generalised_mean(values: Sequence[float]) -> float:
    """(1/N Σ vᵖ)^(1/p), which for p = -5 lies near the least of them, and is 0 where one is.

    Of bias: Mathew et al. 2021, HateXplain, arXiv:2012.10289, after the competition of Jigsaw's of 2019.
    """
    if 0 in values:  # the limit; to divide by it would warn
        return 0.0
    return float(np.mean(np.power(values, POWER)) ** (1 / POWER))
