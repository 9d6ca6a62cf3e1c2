"""Turns a run's predictions into metrics that are functions of sums over posts, so that any weighting of posts is a product.

F1, accuracy, Matthews' correlation, kappa, Brier score: each is a formula over a few sums of what happened at each post
(was the label predicted, was it there). A resample of posts weighs the posts, and its metric is
formula(weights @ indicators).
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
from results import Results, ResultsError, parquet_table, sidecar, testing_line

Array = np.ndarray[Any, Any]


class Measure(NamedTuple):
    """A metric of one run. indicators: (N, K) float64, a row a post. of: the metric, (...), from sums of them, (..., K)."""

    indicators: Array
    of: Callable[[Array], Array]

    def value(self) -> float:
        """The metric over all posts."""
        return float(self.of(self.indicators.sum(axis=0)))

    def grouped(self, groups: Array) -> "Measure":
        """The same metric with a row a group, (G, K): what is drawn is then groups. groups: each post's, (N,), from 0 on."""
        sums = np.zeros((int(groups.max()) + 1, self.indicators.shape[1]))
        np.add.at(sums, groups, self.indicators)
        return self._replace(indicators=sums)


@dataclass(frozen=True)
class Outcome:
    """What a run said of N tested posts of one task, sorted by id.

    gold, scores: as in predictions.parquet, (N, C) float32, but for tokens and span (N,) of objects. thresholds: (C,)
    float32. answers: of span, what was answered, and what is right.
    """

    run: Results
    task: str
    kind: str
    names: tuple[str, ...]
    posts: tuple[str, ...]
    gold: Array
    scores: Array
    thresholds: Array
    answers: Sequence[tuple[str, Sequence[str]]] = ()

    def measures(self) -> dict[str, Measure]:
        """Every metric that can be recomputed, by its name without stage and task: macro_f1, f1_women."""
        return MEASURES[self.kind](self) if self.kind in MEASURES else {}

    def ordered(self, names: Sequence[str]) -> "Outcome":
        """The same, multilabel, with its labels in this order."""
        places = [self.names.index(name) for name in names]
        gold, scores, thresholds = self.gold[:, places], self.scores[:, places], self.thresholds[places]
        return replace(self, names=tuple(names), gold=gold, scores=scores, thresholds=thresholds)

    def check(self) -> None:
        """Raises ResultsError where a recomputed metric is not the one in results.csv: the two are of different tests."""
        for name, measure in self.measures().items():
            metric = f"test_{self.task}_{name}"
            stated = self.run.rows.get(metric)
            if stated is not None and not math.isclose(stated, measure.value(), rel_tol=1e-6, abs_tol=1e-6):
                raise ResultsError(
                    f"{self.run.path.parent}: predictions.parquet gives {metric} {measure.value():.6f}, results.csv says "
                    f"{stated:.6f}; was it tested again? test once more: {testing_line(self.run)}"
                )


def read_outcome(run: Results, task: str) -> Outcome:
    """Reads what a run said of the test posts. Raises ResultsError where it was not tested, or a file is garbled."""
    folder = run.path.parent
    path, again = folder / "predictions.parquet", f"test it: {testing_line(run)}"
    labels = (sidecar(run, "labels.json") or {}).get(task)
    if not labels:
        raise ResultsError(f"{folder}: no labels.json that knows task {task!r}; expected a saved run; {again}")
    if not path.is_file():
        raise ResultsError(f"{folder}: no predictions.parquet in it; {again}")
    try:
        wanted = ["post_id", "gold", "scores", *(["answer", "right_answers"] if labels["kind"] == "span" else [])]
        table = parquet_table(path, again, ["task", *wanted])
        mine = [of == task for of in table["task"].to_pylist()]
        ids, *cells = ([*compress(table[name].to_pylist(), mine)] for name in wanted)
        posts, kind, names = [*map(str, ids)], labels["kind"], tuple(labels["names"])
        gold, scores = (_cells(values, kind) for values in cells[:2])
        answers = [*zip(*cells[2:], strict=True)]
    except (ValueError, TypeError, KeyError) as error:
        raise ResultsError(f"{path} cannot be read ({error}); expected what a test left; {again}") from None
    width = {"multiclass": len(names), "multilabel": len(names), "ordinal": len(names), "score": 1}.get(kind)
    if not posts or len(set(posts)) < len(posts) or width not in (None, scores.shape[-1]):
        raise ResultsError(
            f"{path}: expected one row a post of task {task!r}, with {width or 'its'} scores, given {len(posts)} rows of "
            f"{len(set(posts))} posts with {scores.shape[-1]}; {again}"
        )
    order = sorted(range(len(posts)), key=posts.__getitem__)
    head = (((sidecar(run, "config.yaml") or {}).get("tasks") or {}).get(task) or {}).get("head") or {}
    thresholds = labels.get("thresholds") or [head.get("threshold") or 0.5] * len(names)
    if len(thresholds) != len(names) or not all(isinstance(cut, int | float) for cut in thresholds):
        given = ", ".join(map(str, thresholds))
        raise ResultsError(
            f"{folder}/labels.json: thresholds {given} of {task!r}, expected a number for each of {len(names)} labels; "
            f"{again}"
        )
    limits = np.array(thresholds, np.float32)  # as heads compare: as a double, a score of .7 lies below .7
    said = [answers[i] for i in order] if answers else []
    return Outcome(run, task, kind, names, tuple(posts[i] for i in order), gold[order], scores[order], limits, said)


def _cells(values: list[list[float]], kind: str) -> Array:
    if kind not in ("tokens", "span"):
        return np.array(values, np.float32)
    cells = np.empty(len(values), object)
    cells[:] = [np.array(value, np.float32) for value in values]
    return cells


def _ratio(above: Array, below: Array) -> Array:
    """above / below, 0 where nothing is below, as scikit-learn's zero_division=0."""
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 0)


def _share(sums: Array) -> Array:
    return _ratio(sums[..., 0], sums[..., 1])


def _f1(sums: Array) -> Array:
    """F1 of true positives and the sum of those predicted and those there, (..., 2)."""
    return 2 * _share(sums)


def _macro_f1(sums: Array) -> Array:
    right, size = np.split(sums, 2, axis=-1)
    return 2 * _ratio(right, size).mean(axis=-1)


def label_f1s(given: Array, true: Array, names: Sequence[str]) -> dict[str, Measure]:
    """F1 of each label, their mean, and of all labels pooled, from (N, C) booleans."""
    right, size = (given & true).astype(float), given.astype(float) + true
    each = {f"f1_{name}": Measure(np.stack([right[:, i], size[:, i]], axis=1), _f1) for i, name in enumerate(names)}
    pooled = Measure(np.stack([right.sum(axis=1), size.sum(axis=1)], axis=1), _f1)
    return {**each, "macro_f1": Measure(np.concatenate([right, size], axis=1), _macro_f1), "micro_f1": pooled}


def _of_labels(outcome: Outcome) -> dict[str, Measure]:
    found = label_f1s(outcome.scores >= outcome.thresholds, outcome.gold >= 0.5, outcome.names)
    return {**found, **_of_probabilities(outcome.scores, outcome.gold, several=True)}


def _of_probabilities(p: Array, y: Array, *, several: bool) -> dict[str, Measure]:
    """As evaluations/calibration.py: Brier score and NLL, means over posts, of p and what is true, (N, C)."""
    p = p.astype(float).clip(np.finfo(np.float32).tiny, 1 - np.finfo(np.float32).epsneg)
    p = p if several else p / p.sum(axis=1, keepdims=True)
    missed, surprise = (p - y) ** 2, -(y * np.log(p) + ((1 - y) * np.log1p(-p) if several else 0))
    found = {"brier": missed, "nll": surprise}
    own = {name: values.mean(axis=1) if several else values.sum(axis=1) for name, values in found.items()}
    return {name: Measure(np.stack([values, np.ones(len(p))], axis=1), _share) for name, values in own.items()}


def _right(given: Array, true: Array) -> Measure:
    return Measure(np.stack([given == true, np.ones(len(true))], axis=1), _share)


def _classes(given: Array, true: Array, names: Sequence[str]) -> dict[str, Measure]:
    levels = np.arange(len(names))
    return {"accuracy": _right(given, true), **label_f1s(given[:, None] == levels, true[:, None] == levels, names)}


def _of_classes(outcome: Outcome) -> dict[str, Measure]:
    given, true, levels = outcome.scores.argmax(axis=1), outcome.gold[:, 0].astype(int), np.arange(len(outcome.names))
    sides = [(side[:, None] == levels) for side in (given, true)]
    indicators = np.concatenate([(given == true)[:, None], np.ones((len(true), 1)), *sides], axis=1).astype(float)
    found = {**_classes(given, true, outcome.names), "matthews": Measure(indicators, _matthews)}
    return {**found, **_of_probabilities(outcome.scores, np.eye(len(levels))[true], several=False)}


def _matthews(sums: Array) -> Array:
    """Matthews' correlation of any number of labels (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006)."""
    right, posts = sums[..., 0], sums[..., 1]
    given, true = np.split(sums[..., 2:], 2, axis=-1)
    spread = [posts**2 - (side**2).sum(axis=-1) for side in (given, true)]
    return _ratio(posts * right - (given * true).sum(axis=-1), np.sqrt(np.maximum(spread[0] * spread[1], 0)))


def _of_levels(outcome: Outcome) -> dict[str, Measure]:
    """As heads/ordinal.py: the median of the levels' probabilities is predicted."""
    count = len(outcome.names)
    given, true = (outcome.scores.cumsum(axis=1)[:, :-1] < 0.5).sum(axis=1), outcome.gold[:, 0].astype(int)
    cells = np.eye(count * count)[true * count + given]
    ones, missed = np.ones(len(true)), np.abs(given - true).astype(float)
    return {
        "mae": Measure(np.stack([missed, ones], axis=1), _share),
        "quadratic_kappa": Measure(cells, _quadratic_kappa),
        "spearman": Measure(cells, _spearman_of_levels),
        **_classes(given, true, outcome.names),
        **_of_probabilities(outcome.scores, np.eye(count)[true], several=False),
    }


def _matrix(sums: Array) -> Array:
    count = math.isqrt(sums.shape[-1])
    return sums.reshape(*sums.shape[:-1], count, count)


def _quadratic_kappa(sums: Array) -> Array:
    """Agreement beyond chance, a miss counting by the square of its levels (Cohen 1968, doi:10.1037/h0026256)."""
    matrix = _matrix(sums)
    levels = np.arange(matrix.shape[-1])
    weights = (levels[:, None] - levels) ** 2.0
    true, given, posts = matrix.sum(axis=-1), matrix.sum(axis=-2), matrix.sum(axis=(-1, -2))
    missed = (weights * matrix).sum(axis=(-1, -2))
    chance = _ratio(np.einsum("...i,ij,...j->...", true, weights, given), posts)
    return np.where(chance > 0, 1 - _ratio(missed, chance), 0.0)


def _spearman_of_levels(sums: Array) -> Array:
    """The rank correlation of true and predicted levels; equal ones share the mean of their ranks."""
    matrix = _matrix(sums)
    posts = matrix.sum(axis=(-1, -2))
    sides = [matrix.sum(axis=-1), matrix.sum(axis=-2)]
    ranks = [side.cumsum(axis=-1) - side / 2 - posts[..., None] / 2 for side in sides]  # less their mean
    scale = [(side * rank**2).sum(axis=-1) for side, rank in zip(sides, ranks, strict=True)]
    return _ratio(np.einsum("...i,...ij,...j->...", ranks[0], matrix, ranks[1]), np.sqrt(scale[0] * scale[1]))


def _of_choices(outcome: Outcome) -> dict[str, Measure]:
    return {"accuracy": _right(outcome.scores.argmax(axis=1), outcome.gold[:, 0].astype(int))}


def _of_numbers(outcome: Outcome) -> dict[str, Measure]:
    """Spearman's correlation is not among them: a rank depends on which other posts were drawn."""
    given, true, ones = outcome.scores[:, 0].astype(float), outcome.gold[:, 0].astype(float), np.ones(len(outcome.posts))
    missed, x, y = np.abs(given - true), given - given.mean(), true - true.mean()
    return {
        "mae": Measure(np.stack([missed, ones], axis=1), _share),
        "rmse": Measure(np.stack([missed**2, ones], axis=1), lambda sums: np.sqrt(_share(sums))),
        "pearson": Measure(np.stack([ones, x, y, x * x, y * y, x * y], axis=1), _pearson),
    }


def _pearson(sums: Array) -> Array:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    return _ratio(n * xy - x * y, np.sqrt(np.maximum((n * xx - x * x) * (n * yy - y * y), 0)))


def _of_words(outcome: Outcome) -> dict[str, Measure]:
    """As heads/tokens.py: f1 pools the words of all posts; its mean is over posts with a word marked or predicted."""
    counts = np.zeros((len(outcome.posts), 3))
    for i, (scores, gold) in enumerate(zip(outcome.scores, outcome.gold, strict=True)):
        given, true = (scores >= outcome.thresholds[0]) & (gold >= 0), gold > 0  # NaN, of a word without a token, is neither
        counts[i] = (given & true).sum(), given.sum(), true.sum()
    right, given, true = counts.T
    own = _ratio(2 * right, given + true)
    return {
        "f1": Measure(np.stack([right, given + true], axis=1), _f1),
        "f1_mean_over_posts": Measure(np.stack([own, given + true > 0], axis=1), _share),
        "precision": Measure(np.stack([right, given], axis=1), _share),
        "recall": Measure(np.stack([right, true], axis=1), _share),
    }


PUNCTUATION = str.maketrans("", "", string.punctuation)


def _normalised(answer: str) -> str:
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(PUNCTUATION)).split())


def _of_answers(outcome: Outcome) -> dict[str, Measure]:
    """As hatemtl/answers.py, by SQuAD's official script: of each post the best over its right answers."""
    found = np.ones((len(outcome.posts), 3))
    for i, (answer, right) in enumerate(outcome.answers):
        said, true = _normalised(answer), [*map(_normalised, right)]
        words = [(Counter(said.split()), Counter(one.split())) for one in true]
        f1s = [2 * (a & b).total() / max(a.total() + b.total(), 1) for a, b in words]
        found[i, :2] = said in true, max(f1s, default=0)
    return {name: Measure(found[:, [column, 2]], _share) for column, name in enumerate(("em", "f1"))}


MEASURES: Mapping[str, Callable[[Outcome], dict[str, Measure]]] = {
    "multiclass": _of_classes,
    "multilabel": _of_labels,
    "ordinal": _of_levels,
    "choice": _of_choices,
    "score": _of_numbers,
    "span": _of_answers,
    "tokens": _of_words,
}
