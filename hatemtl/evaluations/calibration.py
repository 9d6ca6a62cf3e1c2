"""Tells whether probabilities are as sure as they are right, as they are and after temperature scaling (Guo et al. 2017)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logsumexp, softmax

from hatemtl.corpora.base import Column
from hatemtl.errors import UserError
from hatemtl.evaluations.base import Beforehand, Needs, Predicted, Reader, Row, check_some
from hatemtl.labels import LabelSpace

TEMPERATURES = (0.01, 100.0)  # what is searched: beyond, every probability is 0 or 1, or all are alike
SMALLEST, LARGEST = np.finfo(np.float32).tiny, 1 - np.finfo(np.float32).epsneg  # what a float32 tells from 0 and 1


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """For each task of labels: ECE, Brier score and NLL, the temperature of the validation posts, and all three after it.

    Of a task with one label a post p is its distribution (N, C), and each score a mean over posts. ece: Σ over bins of
    equal width of the largest p of |share of the bin's posts where that label is right - mean of the bin's p| · the bin's
    share of the posts (Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602; Guo et al. 2017, On calibration of modern neural
    networks, arXiv:1706.04599). brier: Σ over labels of (p - y)², from 0 to 2 (Brier 1950,
    doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2). nll: -log p of the right label, in nats.
    Of a multilabel task each label is a task of its own, yes or no by p (N, C) in [0, 1], and each score the mean over
    labels; ece compares in bins of p with the share of posts that carry the label; brier is (p - y)², from 0 to 1; soft y
    are taken as they are.
    temperature: T of softmax(log p / T), or of σ(logit p / T), with the least NLL on the validation posts, one a task,
    between 0.01 and 100. _scaled: with it. Labels do not change by it where they are the likeliest. A temperature of 0.01 or
    100 is no least: the NLL goes on falling there, as where every validation post is right, or their scores say nothing of
    their labels; then there are no rows with it.
    """

    bins: int
    scalar: ClassVar[None] = None
    needs: ClassVar[Needs] = Needs(reader=True)

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise UserError(f"bins={self.bins}: expected at least one; type 15")

    def check(self, spaces: Mapping[str, LabelSpace], test: Beforehand | None = None) -> None:
        check_some(spaces, ("one", "any"), "a task whose labels have probabilities (multiclass, ordinal or multilabel)")
        validation = dict[str, int]() if test is None else test.validation
        for task, posts in validation.items():
            if task in spaces and spaces[task].carries is not None and not posts:
                raise UserError(
                    f"task {task!r}: no post of the val split is annotated, and the temperature is fitted on those; give "
                    f"other splits, or leave calibration out of evaluations=[...]"
                )

    def rows(
        self, predictions: Mapping[str, Predicted], posts: Mapping[str, Mapping[str, Column]], reader: Reader | None = None
    ) -> list[Row]:
        assert reader is not None  # it is in `needs`
        validation, rows = reader.predicted("val"), []
        for task, said in predictions.items():
            if said.space.carries is None:
                continue
            several, y = said.space.carries == "any", truth(said)
            logits = log_odds(said)
            fitted = temperature(log_odds(validation[task]), truth(validation[task]), several=several)
            scaled = () if fitted in TEMPERATURES else (("_scaled", logits / fitted),)
            for behind, z in (("", logits), *scaled):
                p = probabilities(z, several=several)
                errors = ((p - y) ** 2).mean(axis=0)
                values = {"ece": ece(p, y, self.bins, several=several), "brier": errors.mean() if several else errors.sum()}
                values["nll"] = nll(z, y, several=several)
                rows += [Row(said.stage, task, f"{name}{behind}", None, float(value)) for name, value in values.items()]
            rows.append(Row(said.stage, task, "temperature", None, fitted))
        return rows


def truth(said: Predicted) -> np.ndarray:
    """Gives what the posts carry, (N, C) in [0, 1]: of one label a post 1 in its place."""
    return said.gold.astype(np.float64) if said.space.carries == "any" else np.eye(len(said.space))[said.gold]


def log_odds(said: Predicted) -> np.ndarray:
    """Computes log p of one label a post, logit p of any number, (N, C); of p of 0 or 1 that of the nearest float32."""
    p = said.scores.astype(np.float64).clip(SMALLEST, LARGEST)
    return np.log(p) - np.log1p(-p) if said.space.carries == "any" else np.log(p)


def probabilities(z: np.ndarray, *, several: bool) -> np.ndarray:
    """Computes the softmax over the labels (N, C), or the sigmoid of each."""
    return expit(z) if several else softmax(z, axis=1)


def nll(z: np.ndarray, y: np.ndarray, *, several: bool) -> float:
    """Averages -log p of what is true, over posts, or over posts and labels, in nats."""
    losses = np.logaddexp(0, z) - y * z if several else logsumexp(z, axis=1) - (y * z).sum(axis=1)
    return float(losses.mean())


def temperature(z: np.ndarray, y: np.ndarray, *, several: bool) -> float:
    """Finds T of the least NLL of z / T, which is convex in 1 / T; an end of `TEMPERATURES` where none between is better."""

    def of(t: float) -> float:
        return nll(z / t, y, several=several)

    bounds = np.log(TEMPERATURES)
    found = minimize_scalar(lambda log_t: of(np.exp(log_t)), bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return next((end for end in TEMPERATURES if of(end) <= found.fun), float(np.exp(found.x)))


def ece(p: np.ndarray, y: np.ndarray, bins: int, *, several: bool) -> float:
    """Computes the expected calibration error of the likeliest label's p; of several, the mean over labels of theirs."""
    if several:
        return float(np.mean([gap(of, true, bins) for of, true in zip(p.T, y.T, strict=True)]))
    top = p.argmax(axis=1)[:, None]
    return gap(np.take_along_axis(p, top, axis=1)[:, 0], np.take_along_axis(y, top, axis=1)[:, 0], bins)


def gap(p: np.ndarray, true: np.ndarray, bins: int) -> float:
    """Computes Σ over bins of |mean of true - mean of p| · share of the posts, for p (N,) in ((m - 1) / bins, m / bins]."""
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], p)
    return float(abs(np.bincount(place, true - p)).sum() / len(p))
