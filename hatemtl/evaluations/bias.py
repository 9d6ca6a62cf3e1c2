"""Tells whether posts about a community are judged less well than others: AUCs (Borkan et al. 2019), error rates, F1."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from hatemtl.corpora.base import Column
from hatemtl.errors import UserError, did_you_mean
from hatemtl.evaluations.base import Beforehand, Needs, Predicted, Reader, Row, check_one_label
from hatemtl.labels import LabelSpace

Background = Literal["hatexplain", "borkan"]
POWER = -5.0


@dataclass(frozen=True, kw_only=True)
class Bias:
    """Tells how well a task judges posts within each community, and between it and a background, with intervals.

    Borkan et al. 2019, Nuanced metrics for measuring unintended bias with real data for text classification,
    arXiv:1903.04561; each an area under the ROC curve of 1 - p(normal), 1/2 where nothing is told apart. subgroup_auc: toxic
    posts that name the community against its others. bpsn_auc: toxic posts of the background against the community's others;
    low where these are taken for toxic. bnsp_auc: its toxic posts against the background's others; low where they are
    overlooked. Of each the generalised mean over communities, gmb_AUC, and over how many, gmb_AUC__communities: a community
    with no toxic or no other post, or whose background has none, gets no row and is not in the mean. A post whose
    communities nobody annotated counts nowhere.

    Of the likeliest label: subgroup_false_positive_rate, of the community's normal posts how many get a toxic one;
    subgroup_false_negative_rate, of its toxic posts how many get normal; subgroup_macro_f1 over the labels that its posts
    carry or get.

    Behind every figure stand percentiles of its Bayesian bootstrap over posts (Rubin 1981, doi:10.1214/aos/1176345338),
    __low and __high, and the number of its posts: a resample weighs each post by an exponential draw. Counts of a draw with
    replacement, as of the usual bootstrap, would lose both of a community's two normal posts in every eighth resample;
    with weights no class vanishes, so no strata are needed, and all rows share a resample, means over communities as well.

    leave_out: labels of the column that are no community; None for `other`, where there is one.
    backgrounds: one set of rows each; hatexplain: posts that name another community but not this one, as in HateXplain's
    code (Mathew et al. 2021, arXiv:2012.10289); borkan: all posts that do not name this one, as in Borkan et al.
    resamples: 0 for no intervals. confidence: the share of the resamples that lies within. seed: of the draws.
    Raises UserError where these are out of their range.
    """

    task: str
    normal: str
    communities: str
    leave_out: Sequence[str] | None
    backgrounds: Sequence[Background]
    resamples: int
    confidence: float
    seed: int
    scalar: ClassVar[None] = None  # of most of these more is better

    def __post_init__(self) -> None:
        if self.resamples < 0:
            raise UserError(f"resamples={self.resamples}: expected a number, 0 for no intervals; type 1000")
        if not 0 < self.confidence < 1:
            raise UserError(f"confidence={self.confidence}: expected a share above 0 and below 1; type 0.95")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: expected a whole number from 0; type 0")

    @property
    def needs(self) -> Needs:
        return Needs(columns={self.task: {self.communities: "multilabel"}})

    def check(self, spaces: Mapping[str, LabelSpace], test: Beforehand | None = None) -> None:
        check_one_label(spaces, self.task, "bias")
        space = spaces[self.task]
        if self.normal not in space.names:
            raise UserError(
                f"task {self.task!r} has no label {self.normal!r} for evaluations.bias.normal; "
                f"{did_you_mean(self.normal, space.names)}"
            )
        if test is not None:
            known = test.columns[self.task][self.communities].space.names
            if wrong := [name for name in self.leave_out or () if name not in known]:
                given = f"leave_out=[{','.join(self.leave_out or ())}]"
                raise UserError(
                    f"{given}: column {self.communities!r} has no label {wrong[0]!r}; {did_you_mean(wrong[0], known)}"
                )

    def rows(
        self, predictions: Mapping[str, Predicted], posts: Mapping[str, Mapping[str, Column]], reader: Reader | None = None
    ) -> list[Row]:
        said, named = predictions[self.task], posts[self.task][self.communities]
        normal = said.space.names.index(self.normal)
        score = 1 - said.scores[:, normal].astype(np.float64)
        toxic, harmless = (said.gold != normal) & named.has, (said.gold == normal) & named.has
        left_out = ("other",) if self.leave_out is None else self.leave_out
        about = {
            community: (named.values[:, place] >= 0.5) & named.has
            for place, community in enumerate(named.space.names)
            if community not in left_out
        }
        anyone = np.logical_or.reduce([*about.values()]) if about else np.zeros(len(score), bool)
        # (posts, 1 + resamples): the first of all weights is that of the posts themselves
        drawn = np.random.default_rng(self.seed).standard_exponential((len(score), self.resamples))
        weights = np.concatenate([np.ones((len(score), 1)), drawn], axis=1)

        pairs = {"subgroup_auc": {c: (toxic & mine, harmless & mine) for c, mine in about.items()}}
        for background in self.backgrounds:
            rest = {c: ~mine & anyone if background == "hatexplain" else ~mine for c, mine in about.items()}
            pairs[f"bpsn_auc_{background}"] = {c: (toxic & rest[c], harmless & about[c]) for c in about}
            pairs[f"bnsp_auc_{background}"] = {c: (toxic & about[c], harmless & rest[c]) for c in about}
        rows: list[Row] = []
        for name, of_each in pairs.items():
            known = {c: pair for c, pair in of_each.items() if pair[0].any() and pair[1].any()}
            found = {c: aucs(score, *pair, weights) for c, pair in known.items()}
            for community, values in found.items():
                rows += self._figure(said, name, community, values, known[community][0] | known[community][1])
            if known:
                mean, used = (
                    generalised_mean(np.stack([*found.values()])),
                    np.logical_or.reduce([*known.values()]).any(axis=0),
                )
                rows += self._figure(said, f"gmb_{name}", None, mean, used)
            rows.append(Row(said.stage, self.task, f"gmb_{name}", None, float(len(known)), "communities"))

        given = said.scores.argmax(axis=1)
        for name, chosen, wrong in (
            ("subgroup_false_positive_rate", harmless, given != normal),
            ("subgroup_false_negative_rate", toxic, given == normal),
        ):
            for community, mine in about.items():
                if (used := chosen & mine).any():
                    rate = wrong[used] @ weights[used] / weights[used].sum(axis=0)
                    rows += self._figure(said, name, community, rate, used)
        for community, mine in about.items():
            if mine.any():
                value = macro_f1(said.gold[mine], given[mine], weights[mine])
                rows += self._figure(said, "subgroup_macro_f1", community, value, mine)
        return rows

    def _figure(self, said: Predicted, name: str, label: str | None, values: np.ndarray, posts: np.ndarray) -> Iterator[Row]:
        """The rows of one figure. values: (1 + resamples,), the first of the posts as they are. posts: (N,) bool."""
        yield Row(said.stage, self.task, name, label, float(values[0]))
        if self.resamples:
            outside = (1 - self.confidence) / 2
            low, high = np.quantile(values[1:], [outside, 1 - outside])
            yield Row(said.stage, self.task, name, label, float(low), "low")
            yield Row(said.stage, self.task, name, label, float(high), "high")
        yield Row(said.stage, self.task, name, label, float(posts.sum()), "posts")


def aucs(scores: np.ndarray, positive: np.ndarray, negative: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Computes areas under the ROC curve of scores (N,) between two sets of posts, (N,) bool, by R weightings (N, R); (R,).

    How often a positive post scores above a negative one, a tie counting half, each pair as much as the product of their
    weights. Raises ValueError where one set is empty.
    """
    if not positive.any() or not negative.any():
        raise ValueError("an AUC needs posts of both kinds")
    if positive.sum() > negative.sum():  # what follows looks up the fewer among the others' sums
        return 1 - aucs(scores, negative, positive, weights)
    order = np.flatnonzero(negative)[np.argsort(scores[negative], kind="stable")]
    below = np.zeros((len(order) + 1, weights.shape[1]))
    np.cumsum(weights[order], axis=0, out=below[1:])
    above, ranked = scores[positive], scores[order]
    won = below[np.searchsorted(ranked, above, "left")] + below[np.searchsorted(ranked, above, "right")]
    mine = weights[positive]
    return np.einsum("pr,pr->r", won, mine) / (2 * mine.sum(axis=0) * below[-1])


def macro_f1(gold: np.ndarray, given: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Averages F1 over the labels that posts (N,) carry or get, by R weightings (N, R); (R,)."""
    f1s = []
    for label in np.union1d(gold, given):
        true, said = gold == label, given == label
        f1s.append(2 * ((true & said) @ weights) / (true @ weights + said @ weights))
    return np.mean(f1s, axis=0)


def generalised_mean(values: np.ndarray) -> np.ndarray:
    """Computes (1/N Σ vᵖ)^(1/p) over the first axis, which for p = -5 lies near the least of them, and is 0 where one is.

    Of bias: Mathew et al. 2021, HateXplain, arXiv:2012.10289, after the competition of Jigsaw's of 2019.
    """
    least = np.min(values, axis=0)  # taken out of the sum, so that none divides by 0 or overflows
    shares = np.divide(values, least, out=np.ones_like(values), where=least > 0)
    return least * np.mean(shares**POWER, axis=0) ** (1 / POWER)
