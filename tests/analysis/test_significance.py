"""Tests of systems: hand-worked and named references, floors, power, and (slow) whether each holds its level."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from intervals import (
    Scored,
    Spread,
    beyond,
    crossed,
    detectable,
    errors_found,
    expanded,
    half,
    interval,
    mean_interval,
    runs_needed,
)
from many_comparisons import holm, letters
from outcomes import Measure, _share, label_f1s
from resampling import bootstrap, counts, flips
from scipy import stats
from scipy.integrate import quad
from significance import TESTS, Cannot, Finding, How
from stochastic_order import distances, upper_bound, violation
from tiers import combinations
from verdicts import Comparison, Judgement, Saying, bayes, judged, row_of, sentence

NAMES = ("macro_f1", "matthews", "loss")
HOW = How(alpha=0.05, level=0.05, resamples=2000, seed=0, paired=True)


def measure(right: np.ndarray) -> Measure:
    """Accuracy, or a mean of any numbers a post."""
    return Measure(np.stack([right, np.ones(len(right))], axis=1).astype(float), _share)


def scored(*right: np.ndarray, draws: int = 2000, seeds: tuple[int, ...] = ()) -> Scored:
    """A system by the accuracy of its runs."""
    measures = tuple(map(measure, right))
    values = np.array([of.value() for of in measures])
    return Scored(values, seeds or tuple(range(len(right))), bootstrap(measures, draws, 0), measures)


def of_seeds(*values: float, lower: bool = False) -> Scored:
    return Scored(np.array(values), tuple(range(len(values))), lower=lower)


def test_an_interval_is_cut_to_what_the_metric_can_be_and_a_note_gives_it_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Of .6 and .7 by hand: .65 ± 12.706 · .05."""
    say = Saying(alpha=0.05, family=1, digits=3, rope=None)
    ends = [(row["low"], row["high"]) for row in (row_of(of_seeds(0.6, 0.7), f"test_x_{name}", say) for name in NAMES)]
    assert ends == [pytest.approx(by_hand, abs=1e-3) for by_hand in ((0.015, 1.0), (0.015, 1.0), (0.015, 1.285))]
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2
    assert "test_x_macro_f1: the interval of the mean .650, .015 to 1.285, is cut to what the metric can be" in notes[0]


def test_draws_have_as_many_posts_and_sides_are_all_tried_where_few() -> None:
    drawn = np.concatenate([*counts(50, 30, np.random.default_rng(0))])
    assert drawn.shape == (30, 50) and (drawn.sum(axis=1) == 50).all()
    every = np.concatenate([*flips(4, 100, np.random.default_rng(0))])
    assert len({tuple(row) for row in every.tolist()}) == len(every) == 16
    assert np.concatenate([*flips(50, 100, np.random.default_rng(0))]).shape == (100, 50)


def test_mcnemar_by_hand() -> None:
    """Two alone in one, eight alone in the other: 2·(1 + 10 + 45) / 1024."""
    a, b = np.zeros(30), np.zeros(30)
    a[:12], b[:10], b[20:28] = 1, 1, 1
    found = TESTS["mcnemar"](scored(a), scored(b), HOW)
    assert found.p == pytest.approx(112 / 1024)
    assert found.floor == 2 / 1024
    assert found.effect == ("odds", 4)
    assert found.difference == pytest.approx(6 / 30)


def test_permutations_of_few_posts_are_all_of_them() -> None:
    """Five posts, all gained: 2 of 32 ways are as great."""
    found = TESTS["permutation"](scored(np.zeros(5)), scored(np.ones(5)), HOW)
    assert found.p == found.floor == 2 / 32


def test_permutations_agree_with_the_sign_test_that_accuracy_makes_of_them() -> None:
    draw = np.random.default_rng(1)
    a, b = draw.random(300) < 0.6, draw.random(300) < 0.68
    exact = TESTS["mcnemar"](scored(a), scored(b), HOW).p
    assert TESTS["permutation"](scored(a), scored(b), HOW).p == pytest.approx(exact, abs=0.03)
    assert TESTS["bootstrap"](scored(a), scored(b), HOW).p == pytest.approx(exact, abs=0.03)


def test_the_bootstraps_error_is_the_formula_of_a_mean() -> None:
    draw = np.random.default_rng(2)
    a, b = draw.random(400), draw.random(400)
    found = TESTS["bootstrap"](scored(a), scored(b), HOW)
    assert found.error == pytest.approx(stats.sem(b - a), rel=0.06)
    assert (found.low, found.high) == pytest.approx(stats.ttest_rel(b, a).confidence_interval(), abs=0.006)
    assert found.p == pytest.approx(stats.ttest_rel(b, a).pvalue, abs=0.03)


def test_the_bootstrap_of_few_posts_is_expanded_to_the_error_of_their_mean() -> None:
    """Of three posts a draw's deviation is √(2/3) of the standard error."""
    a, b = np.zeros(3), np.array([0.0, 0.3, 0.9])
    found = TESTS["bootstrap"](scored(a, draws=20_000), scored(b, draws=20_000), HOW._replace(level=0.2))
    assert found.error == pytest.approx(stats.sem(b), rel=0.03)
    assert found.effect == ("d", pytest.approx(b.mean() / b.std(ddof=1), rel=0.03))
    assert found.df == 2
    assert found.detectable == pytest.approx(float(errors_found(stats.t.isf(0.1, 2), 1 / 2)) * found.error)


def test_the_smallest_p_over_posts_is_the_one_that_comes_out_where_every_post_gains() -> None:
    a, b = scored(np.zeros(200)), scored(np.ones(200))
    assert TESTS["permutation"](a, b, HOW).p == TESTS["permutation"](a, b, HOW).floor == 1 / 2001
    found = TESTS["bootstrap"](a, b, HOW)
    assert found.p == found.floor == expanded(1 / 2001, 200)
    assert found.p == TESTS["bootstrap"](b, a, HOW).p


@pytest.mark.parametrize("test", ["bootstrap", "permutation"])
def test_too_few_draws_for_so_many_comparisons_are_told_with_how_many_would_do(test: str) -> None:
    """Of 300 the first must come down to .05 / 300; of 2,000 draws even perfect posts come to 1/2001, or twice that."""
    a, b, how = scored(np.zeros(200)), scored(np.ones(200)), HOW._replace(level=HOW.alpha / 300)
    found = TESTS[test](a, b, how)
    (note,) = found.notes
    assert "2,000 draws keep p above 0.00017, which the first of all comparisons must reach: type --resamples " in note
    few = Comparison("test_x_accuracy", "a", "b", found, test, "200 posts", lower=False)
    said = [
        sentence(one, told, [], Saying(alpha=0.05, family=300, digits=3, rope=None))
        for one, told in zip([few] * 300, judged([few] * 300, 0.05), strict=True)
    ]
    assert "cannot be decided with 200 posts: the smallest p that can come out is" in said[0] and "--resamples" in said[0]
    draws = int(note.rpartition(" ")[2])
    assert not f"{draws}"[2:].strip("0")  # two digits are plenty
    a, b = (scored(right, draws=draws) for right in (np.zeros(200), np.ones(200)))
    enough = TESTS[test](a, b, how._replace(resamples=draws))
    assert 0.8 * how.level < enough.floor <= how.level and not enough.notes


@pytest.mark.parametrize("test", ["bootstrap", "permutation", "mcnemar"])
def test_where_nothing_can_be_found_no_difference_is_called_detectable(test: str) -> None:
    """Four posts that differ have a floor of .125; of two equal runs no difference of posts is known."""
    a, b = np.zeros(60), np.zeros(60)
    b[:4] = 1
    one, other, how = scored(a), scored(b), HOW
    if test == "permutation":
        one, other = scored(a[:4]), scored(b[:4])
    if test == "bootstrap":
        how = HOW._replace(level=1e-4)
    found = TESTS[test](one, other, how)
    assert found.floor > how.level and found.detectable == math.inf
    said = Comparison("test_x_accuracy", "a", "b", found, test, "posts", lower=False)
    words = sentence(said, Judgement("cannot be decided", 1.0, 1.0), [], Saying(0.05, 1, 3, None))
    assert "80 %" not in words
    if test != "mcnemar":  # whose interval of no discordant post has a width
        same = said._replace(finding=TESTS[test](one, one, HOW._replace(level=0.5)))
        words = sentence(same, Judgement("no difference shown", 1.0, 1.0), [], Saying(0.05, 1, 3, None))
        assert math.isnan(same.finding.detectable) and "Nothing varies here" in words and "80 %" not in words


def test_mcnemar_tells_what_it_could_have_found_and_refuses_what_is_no_accuracy() -> None:
    a, b = np.zeros(30), np.zeros(30)
    a[:12], b[:10], b[20:28] = 1, 1, 1
    found = TESTS["mcnemar"](scored(a), scored(b), HOW)
    assert found.detectable == pytest.approx(float(errors_found(stats.t.isf(0.025, 29), 1 / 29)) * found.error)
    assert found.notes == ["8 posts right in {b} alone, 2 in {a} alone"]
    same = TESTS["mcnemar"](scored(a), scored(a), HOW)
    assert same.p == same.floor == 1 and math.isnan(same.effect[1])
    assert TESTS["mcnemar"](scored(np.zeros(4)), scored(np.ones(4)), HOW).effect == ("odds", math.inf)
    with pytest.raises(Cannot, match="^is for accuracy over posts that no group joins$"):
        TESTS["mcnemar"](scored(a / 2), scored(b), HOW)
    with pytest.raises(Cannot, match="less of this metric is better"):
        TESTS["mcnemar"](replace(scored(a), lower=True), replace(scored(b), lower=True), HOW)


def test_effects_and_mcnemars_interval_by_hand() -> None:
    """Cohen's d of 1, 2, 3 against 3, 4, 8 is 3/√4, less 3 of 15; of nine pairs eight are gained and one is tied."""
    a, b = of_seeds(1.0, 2.0, 3.0), of_seeds(3.0, 4.0, 8.0)
    assert TESTS["welch"](a, b, HOW).effect == ("g", pytest.approx((1 - 3 / 15) * 3 / 2))
    assert TESTS["mann_whitney"](a, b, HOW).effect == ("δ", pytest.approx(8 / 9))
    right = np.zeros((2, 30))
    right[0, :12], right[1, :10], right[1, 20:28] = 1, 1, 1
    found = TESTS["mcnemar"](scored(right[0]), scored(right[1]), HOW)
    error = math.sqrt((12 / 32 - (6 / 32) ** 2) / 32)
    assert (found.low, found.high) == pytest.approx((6 / 32 - 1.959964 * error, 6 / 32 + 1.959964 * error))
    assert (found.error, found.df) == (pytest.approx(error), 29)


def test_systems_that_differ_by_nothing_in_any_pair_have_no_effect() -> None:
    found = TESTS["wilcoxon"](of_seeds(0.1, 0.2, 0.3), of_seeds(0.1, 0.2, 0.3), HOW)
    assert (found.p, found.floor, found.effect) == (1, 1, ("r", 0.0))


def test_the_runs_that_are_needed_are_those_of_the_pairs() -> None:
    """Pairs that go up and down together need few; taken as unrelated they would need many."""
    a, b = of_seeds(0.1, 0.5, 0.9, 0.3), of_seeds(0.15, 0.56, 0.95, 0.36)
    assert TESTS["wilcoxon"](a, b, HOW).needed < 10 < TESTS["mann_whitney"](a, b, HOW).needed  # type: ignore[operator]


def test_drawn_deals_are_those_of_the_seed() -> None:
    draw = np.random.default_rng(0)
    a, b = of_seeds(*draw.random(12)), of_seeds(*(draw.random(12) + 0.2))
    few = HOW._replace(resamples=500)
    for test in ("mann_whitney", "aso", "wilcoxon"):
        found = [TESTS[test](a, b, how).p for how in (few, few, few._replace(seed=1))]
        assert found[0] == found[1], test
    assert TESTS["mann_whitney"](a, b, few).p != TESTS["mann_whitney"](a, b, few._replace(seed=1)).p


def test_what_speaks_against_a_test_is_noted() -> None:
    odd, even = of_seeds(0.1, 0.1001, 0.1002, 0.1003, 0.9), of_seeds(0.1, 0.2, 0.31, 0.4, 0.5)
    [note] = TESTS["welch"](odd, even, HOW).notes
    assert "{a}'s seeds are not normal (Shapiro p = 0.00" in note
    assert not TESTS["welch"](even, even, HOW).notes
    [note] = TESTS["aso"](of_seeds(0.1, 0.5, 0.4), of_seeds(0.2, 0.3, 0.6), HOW).notes
    assert re.fullmatch(r"the order is not even almost stochastic, ε_min = (0\.[5-9]\d|1\.00)", note)
    assert not TESTS["aso"](of_seeds(0.1, 0.2), of_seeds(0.5, 0.7), HOW).notes


def test_no_distance_is_no_order() -> None:
    assert violation(np.array([1.0, 2.0]), np.array([2.0, 1.0])) == 0.5


def test_chunks_of_draws_are_as_many_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resampling.CHUNK", 64)
    for draws in (counts(20, 10, np.random.default_rng(0)), flips(20, 10, np.random.default_rng(0))):
        assert [len(chunk) for chunk in draws] == [3, 3, 3, 1]


def test_seed_tests_are_scipys() -> None:
    a, b = [0.61, 0.63, 0.60, 0.64, 0.62, 0.66], [0.64, 0.62, 0.65, 0.69, 0.66, 0.68]
    welch = stats.ttest_ind(b, a, equal_var=False)
    found = TESTS["welch"](of_seeds(*a), of_seeds(*b), HOW)
    assert (found.p, found.low, found.high) == pytest.approx((welch.pvalue, *welch.confidence_interval()))
    assert found.df == pytest.approx(welch.df)
    signed = TESTS["wilcoxon"](of_seeds(*a), of_seeds(*b), HOW)
    assert signed.p == pytest.approx(stats.wilcoxon(np.subtract(b, a).round(6), method=stats.PermutationMethod()).pvalue)
    paired = stats.ttest_rel(b, a).confidence_interval()
    assert (signed.low, signed.high) == pytest.approx(tuple(paired))
    ranks, order = (TESTS[test](of_seeds(*a), of_seeds(*b), HOW) for test in ("mann_whitney", "aso"))
    for other in (ranks, order):
        assert (other.low, other.high, other.needed) == (found.low, found.high, ranks.needed)
    c = [value + 0.001 for value in b]  # no ties
    assert TESTS["mann_whitney"](of_seeds(*a), of_seeds(*c), HOW).p == pytest.approx(
        stats.mannwhitneyu(c, a, method="exact").pvalue
    )


@pytest.mark.parametrize(("n", "wilcoxon", "mann_whitney"), [(3, 0.25, 0.1), (5, 0.0625, 2 / 252), (7, 2 / 128, 2 / 3432)])
def test_floors_are_reached_where_all_of_one_are_above(n: int, wilcoxon: float, mann_whitney: float) -> None:
    a, b = of_seeds(*(0.1 + 0.01 * i for i in range(n))), of_seeds(*(0.5 + 0.013 * i for i in range(n)))
    for test, floor in (("wilcoxon", wilcoxon), ("mann_whitney", mann_whitney), ("aso", mann_whitney)):
        found = TESTS[test](a, b, How(0.05, 0.05, 10_000, 0, True))
        assert found.p == pytest.approx(found.floor) == pytest.approx(floor), test
    assert found.effect == ("ε", 0.0)


def test_equal_differences_are_ties_whatever_doubles_make_of_them() -> None:
    """.3 - .2, .4 - .3, .2 - .3 differ in their last bits: ranks 2, 2, 2, so δ = 2 - 1 of 3."""
    found = TESTS["wilcoxon"](of_seeds(0.2, 0.3, 0.3), of_seeds(0.3, 0.4, 0.2), HOW)
    assert found.effect == ("r", pytest.approx(1 / 3)) and found.p == 1


@pytest.mark.parametrize(("a", "b", "told"), [(0.0, 1.0, (0, 0, 1)), (1.0, 0.0, (1, 0, 0)), (1.0, 1.0, (0, 1, 0))])
def test_without_an_error_all_probability_is_at_the_difference(a: float, b: float, told: tuple[float, ...]) -> None:
    found = TESTS["bootstrap"](scored(np.full(20, a)), scored(np.full(20, b)), HOW)
    assert found.error == 0
    assert bayes(found, 0.01, lower=False) == told
    assert bayes(found, 0.01, lower=True) == told[::-1]


@pytest.mark.parametrize(("test", "paired"), [("hierarchical", True), ("hierarchical", False), ("welch", False)])
def test_probabilities_are_of_the_distribution_that_p_and_the_interval_are_of(test: str, paired: bool) -> None:
    """Three seeds whose posts make most of the error: p is of a mix of two t, of 2 and of 149 degrees of freedom."""
    [(a, b)] = layouts(3, 1, 0.01, 0.3, 0.05, gain=0.13)
    found = TESTS[test](a, b, HOW._replace(paired=paired))
    assert 0 < found.p < 0.2
    assert bayes(found, 1e-12, lower=False)[2] == pytest.approx(1 - found.p / 2)
    assert found.high - found.difference == pytest.approx(found.error * stats.t.isf(0.025, found.df))
    worse, same, better = bayes(found, 0.05, lower=False)
    assert worse + same + better == pytest.approx(1) and min(worse, same, better) > 0


def test_stochastic_order_by_hand() -> None:
    """Quantiles 0 and 3 against 1 and 1: above by 2, below by 1, each on half of the line."""
    x, y = np.array([3.0, 0.0]), np.array([1.0, 1.0])
    assert distances(x, y) == (2.0, 0.5)
    assert violation(x, y) == 0.2 and violation(y, x) == 0.8
    assert distances(np.array([1.0]), np.array([0.0, 2.0])) == (0.5, 0.5)  # unlike numbers of runs
    assert violation(x, y) < upper_bound(x, y, 0.05, np.random.default_rng(0)) <= 1
    lower = TESTS["aso"](of_seeds(3, 0, lower=True), of_seeds(1, 1, lower=True), HOW)
    assert lower.p == TESTS["aso"](of_seeds(1, 1), of_seeds(3, 0), HOW).p


def test_an_order_against_the_means_is_no_difference() -> None:
    """Means 1.00 and .90, but the squared distance is nearly all the other way."""
    draw = np.random.default_rng(0)
    x, y = np.ones(40) + draw.normal(0, 0.001, 40), np.r_[np.zeros(34), np.full(6, 6.0)] + draw.normal(0, 0.001, 40)
    assert violation(x, y) == pytest.approx(0.815, abs=0.01)
    assert TESTS["aso"](of_seeds(*y), of_seeds(*x), HOW).p == TESTS["aso"](of_seeds(*x), of_seeds(*y), HOW).p == 1


def test_the_variance_of_seeds_and_posts_is_that_of_the_two_way_layout() -> None:
    draw = np.random.default_rng(3)
    posts, runs = 4000, 40
    made = draw.normal(size=(posts, 1)) + 0.05 * draw.normal(size=runs) + 0.5 * draw.normal(size=(posts, runs))
    weights = np.concatenate([*counts(posts, 1500, draw)]) / posts
    spread = crossed([(made.mean(axis=0), weights @ made)], posts)
    assert spread.shared == pytest.approx(1 / posts, rel=0.15)
    assert spread.of_runs[0][0] == pytest.approx(0.05**2 + 0.25 / posts, rel=0.5)
    error, _ = spread.reach(0.025)
    assert error**2 == pytest.approx(spread.shared + spread.of_runs[0][0] / runs)


def test_intervals_over_seeds() -> None:
    assert all(map(math.isnan, interval([0.7])))
    low, high = interval([0.7, 0.72, 0.77], 0.9)
    assert (low, high) == pytest.approx(stats.ttest_1samp([0.7, 0.72, 0.77], 0).confidence_interval(0.9))
    a = scored(*(np.random.default_rng(i).random(100) < 0.7 for i in range(3)))
    low, high = mean_interval(a, 0.05)
    assert low < a.values.mean() < high and high - low < 0.5
    assert half([0.7]) is None and half([0.6, 0.7]) == pytest.approx(0.05 * 12.7062, rel=1e-5)


@pytest.mark.parametrize(
    ("metric", "values", "told"),
    [
        ("macro_f1", [0.98, 0.99], True),
        ("macro_f1", [0.01, 0.02], True),
        ("macro_f1", [0.6, 0.61], False),
        ("macro_f1", [0.99], False),
        ("loss", [0.98, 0.99], False),
    ],
)
def test_an_interval_beyond_what_the_metric_can_be_is_told(metric: str, values: list[float], told: bool) -> None:
    """Of two seeds it reaches 12.7 · half their distance: .0635."""
    assert beyond(f"test_x_{metric}", values) == told


def test_without_spread_of_posts_it_is_the_t_test_and_without_that_of_runs_the_normal() -> None:
    assert Spread([(1.0, 4)], 0.0, 1e9).reach(0.025)[1] == pytest.approx(stats.t.isf(0.025, 3))
    assert Spread([(0.0, 4)], 1.0, 1e9).reach(0.025)[1] == pytest.approx(stats.norm.isf(0.025), abs=1e-6)
    between = Spread([(4.0, 4)], 1.0, 1e9)
    assert between.reach(0.025)[1] == pytest.approx((stats.t.isf(0.025, 3) + stats.norm.isf(0.025)) / 2, abs=1e-6)
    error, quantile = between.reach(0.01)
    assert between.p(float(error * quantile)) == pytest.approx(0.02)


def test_the_degrees_of_freedom_of_runs_and_posts_by_hand() -> None:
    """Unpaired, of 4/4 and 6/3 of runs and .6 of posts, Satterthwaite's; paired, t of 3 and of 9 weighed as 1 to 1."""
    error, weight, df = map(float, Spread([(4.0, 4), (6.0, 3)], 0.6, 10).mixed())
    assert (error, weight, df) == pytest.approx((math.sqrt(3.6), 1, 3.6**2 / (1 / 3 + 2**2 / 2 + 0.6**2 / 9)))
    assert float(Spread([(4.0, 4), (6.0, 2)], 0.6, 10).mixed()[2]) == 1
    pairs = Spread([(4.0, 4)], 1.0, 10)
    quantile = (stats.t.isf(0.025, 3) + stats.t.isf(0.025, 9)) / 2
    inverse = (1 / 3 + 1 / 9) / 4
    assert float(detectable(pairs, 0.05)) == pytest.approx(math.sqrt(2) * float(errors_found(quantile, inverse)))


def test_where_nothing_varies_p_is_of_whether_there_is_a_difference() -> None:
    same = Spread([(0.0, 3), (0.0, 3)], 0.0, 10)
    assert [*map(float, same.mixed())] == [0, 1, math.inf]
    assert (same.p(0.0), same.p(1.0)) == (1, 0)


@pytest.mark.parametrize("df", [1, 2, 4, 60])
@pytest.mark.parametrize("level", [0.05, 0.05 / 28])
def test_a_detectable_difference_has_its_power_at_few_runs_and_strict_levels_too(df: int, level: float) -> None:
    """Of a t of so many degrees of freedom, integrated over the error that is measured; a twentieth too much at most."""
    spread = Spread([(float(df + 1), df + 1)], 0.0, math.inf)  # an error of 1
    quantile, planted = stats.t.isf(level / 2, df), float(detectable(spread, level))
    root = math.sqrt(df)

    def power(difference: float) -> float:
        return quad(lambda s: stats.norm.sf(quantile * s - difference) * stats.chi.pdf(s * root, df) * root, 0, 6)[0]

    assert power(planted / 1.055) < 0.8 <= power(planted) + 0.001


def test_runs_needed_have_the_power_that_they_promise() -> None:
    spread = Spread([(1.0, 5), (1.0, 5)], 0.0, math.inf)
    n = runs_needed(1.0, spread, 0.05)
    assert n == 17  # as tables of the two-sample t-test have it (Cohen 1988, d = 1)
    assert runs_needed(0.0, spread, 0.05) == math.inf
    assert runs_needed(0.0, spread._replace(of_runs=[(0.0, 3)]), 0.05) == math.inf  # nothing was seen to be found
    assert runs_needed(1.0, spread._replace(shared=1.0), 0.05) == math.inf  # the posts alone hide it


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("means", "differ", "expected"),
    [
        ([3, 2, 1], [(0, 1), (0, 2), (1, 2)], ["a", "b", "c"]),
        ([1, 2, 3], [], ["a", "a", "a"]),
        ([4, 3, 2, 1], [(0, 2), (0, 3), (1, 3)], ["a", "ab", "bc", "c"]),
        ([3, 2, 1], [(0, 1)], ["a", "b", "ab"]),
    ],
)
def test_letters(means: list[float], differ: list[tuple[int, int]], expected: list[str]) -> None:
    assert letters(means, lambda i, j: (min(i, j), max(i, j)) in differ) == expected


def test_letters_say_what_differs_and_nothing_else() -> None:
    draw = np.random.default_rng(0)
    for _ in range(30):
        n = int(draw.integers(2, 8))
        differ = {(i, j) for j in range(n) for i in range(j) if draw.random() < 0.5}
        found = letters(draw.random(n).tolist(), lambda i, j, differ=differ: (min(i, j), max(i, j)) in differ)  # type: ignore[misc]
        for j in range(n):
            for i in range(j):
                assert bool(set(found[i]) & set(found[j])) == ((i, j) not in differ)


# Whether each test holds its level: true nulls are rejected no more often than α, within three Monte-Carlo errors.


def rejected(test: str, pairs: Iterator[tuple[Scored, Scored]], how: How) -> float:
    return float(np.mean([TESTS[test](a, b, how).p <= how.alpha for a, b in pairs]))


def most(sims: int, alpha: float = 0.05) -> float:
    return alpha + 3 * math.sqrt(alpha * (1 - alpha) / sims)


def layouts(
    n: int, sims: int, of_seed: float, of_post: float, of_both: float, gain: float = 0.0, posts: int = 150, draws: int = 200
) -> Iterator[tuple[Scored, Scored]]:
    """Two systems of n seeds each that score each post by a normal number: of the post, of the seed, of both."""
    draw = np.random.default_rng(n)
    weights = np.concatenate([*counts(posts, draws, draw)]) / posts
    units = (measure(np.zeros(posts)),)
    for _ in range(sims):
        made = (
            of_post * draw.normal(size=(2, posts, 1))
            + of_seed * draw.normal(size=(2, 1, n))
            + of_both * draw.normal(size=(2, posts, n))
        )
        a, b = (Scored(each.mean(axis=0), tuple(range(n)), weights @ each, units) for each in made)
        yield a, Scored(b.values + gain, b.seeds, b.draws + gain, units)


@pytest.mark.parametrize(("n", "of_seed", "paired"), combinations([3, 5, 10], [0.0, 0.02, 0.1], [True, False], slow=4))
def test_hierarchical_holds_its_level(n: int, of_seed: float, paired: bool) -> None:
    """Posts' part of the error is .3/√150·√2 = .035: seeds vary by nothing, by less, and by more than that."""
    pairs = layouts(n, 2000, of_seed, 0.3, 0.3)
    assert rejected("hierarchical", pairs, HOW._replace(paired=paired)) <= most(2000)


@pytest.mark.slow
def test_a_percentile_of_draws_of_seeds_and_posts_would_not() -> None:
    """What `crossed` says of it: at three seeds it rejects true nulls more than twice too often."""
    draw, found = np.random.default_rng(0), []
    for a, b in layouts(3, 600, 0.1, 0.3, 0.3):
        assert a.draws is not None and b.draws is not None
        seeds = draw.integers(0, 3, (2, len(a.draws), 3))
        ends = [np.take_along_axis(side.draws, of, axis=1).mean(axis=1) for side, of in zip((a, b), seeds, strict=True)]
        low, high = np.quantile(ends[1] - ends[0], [0.025, 0.975])
        found.append(not low <= 0 <= high)
    assert np.mean(found) > 0.1


@pytest.mark.parametrize(("test", "n"), combinations(["wilcoxon", "mann_whitney", "welch", "aso"], [3, 5, 10], slow=3))
def test_seed_tests_hold_their_level(test: str, n: int) -> None:
    draw = np.random.default_rng(n)
    pairs = ((of_seeds(*draw.normal(size=n)), of_seeds(*draw.normal(size=n))) for _ in range(400))
    assert rejected(test, pairs, HOW._replace(resamples=300)) <= most(400)


@pytest.mark.parametrize(("test", "posts"), combinations(["bootstrap", "permutation", "mcnemar"], [40, 400], slow=2))
def test_post_tests_hold_their_level(test: str, posts: int) -> None:
    draw = np.random.default_rng(posts)
    pairs = (tuple(scored(draw.random(posts) < 0.7, draws=400) for _ in range(2)) for _ in range(400))
    assert rejected(test, pairs, HOW._replace(resamples=400)) <= most(400)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("test", ["bootstrap", "permutation"])
def test_post_tests_of_macro_f1_with_rare_labels_hold_their_level(test: str) -> None:
    """Of 300 posts some labels have three: a formula of few counts, and no mean."""
    draw, found, sims = np.random.default_rng(5), [], 300
    for _ in range(sims):
        gold = draw.random((300, 6)) < [0.3, 0.2, 0.1, 0.05, 0.02, 0.01]
        measures = [label_f1s(gold ^ (draw.random(gold.shape) < 0.05), gold, "abcdef")["macro_f1"] for _ in range(2)]
        draws = bootstrap(measures, 400, 0)
        a, b = (Scored(np.array([m.value()]), (0,), draws[:, [i]], (m,)) for i, m in enumerate(measures))
        found.append(TESTS[test](a, b, HOW._replace(resamples=400)).p <= 0.05)
    assert np.mean(found) <= most(sims)


def clustered(sims: int, groups: int, each: int, grouped: bool) -> Iterator[tuple[Scored, Scored]]:
    """Posts of one group are right or wrong together more often than not."""
    draw = np.random.default_rng(groups)
    of = np.repeat(np.arange(groups), each)
    for _ in range(sims):
        right = draw.random((2, groups * each)) < (draw.random((2, groups)) < 0.5)[:, of] * 0.6 + 0.2
        measures = [measure(side) for side in right]
        if grouped:
            measures = [side.grouped(of) for side in measures]
        yield tuple(Scored(np.array([m.value()]), (0,), bootstrap([m], 400, 0), (m,)) for m in measures)  # type: ignore[misc]


@pytest.mark.parametrize(("test", "groups"), combinations(["bootstrap", "permutation"], [8, 30], slow=2))
def test_posts_that_share_groups_need_the_cluster_bootstrap(test: str, groups: int) -> None:
    how = HOW._replace(resamples=400)
    assert rejected(test, clustered(400, groups, 10, True), how) <= most(400)
    assert rejected(test, clustered(400, groups, 10, False), how) > 0.15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("test", "pairs"),
    [
        ("hierarchical", lambda gain: layouts(5, 500, 0.05, 0.3, 0.3, gain)),
        ("welch", lambda gain: layouts(5, 500, 0.05, 0.0, 0.0, gain)),
        ("bootstrap", lambda gain: layouts(1, 500, 0.0, 0.3, 0.0, gain)),
    ],
)
def test_a_detectable_difference_is_found_four_times_in_five(test: str, pairs: Callable[[float], Iterator[tuple]]) -> None:
    """The median of what the runs themselves say is detectable, planted."""
    how = HOW._replace(paired=False)
    found: list[Finding] = [TESTS[test](a, b, how) for a, b in pairs(0.0)]
    gain = math.sqrt(np.mean([of.error**2 for of in found])) * np.median([of.detectable / of.error for of in found])
    power = rejected(test, pairs(gain), how)
    assert 0.72 < power < 0.9
