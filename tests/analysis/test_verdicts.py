"""Verdicts in words and rows, of findings made by hand: each number stands where it belongs, with its sign."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from intervals import Scored, mean_interval
from outcomes import Measure, _share
from resampling import bootstrap
from scipy import stats
from significance import Finding
from verdicts import Comparison, Judgement, Saying, compared_row, judged, row_of, sentence, short, shown_cells

SAY = Saying(alpha=0.05, family=1, digits=3, rope=None)
FOUND = Finding(
    -0.02, -0.031, -0.009, p=0.01, floor=0.001, error=0.005, df=4, detectable=0.04, effect=("g", -1.5), needed=7.0,
    notes=["a note"],
)  # fmt: skip


def of(test: str = "Welch", over: str = "5 runs", lower: bool = False, **other: Any) -> Comparison:
    return Comparison("test_x_f1", "old", "new", replace(FOUND, **other), test, over, lower)


def test_what_is_worse_is_so_by_a_positive_number() -> None:
    said = sentence(of(), Judgement("worse", 0.01, 0.001), ["best of 5"], SAY)
    assert (
        said == "new is worse than old by .020 test_x_f1 (95 % interval .009 to .031; p = .010, Welch). a note. best of 5."
    )
    less = sentence(of(), Judgement("better", 0.01, 0.001), [], SAY)  # of a loss
    assert less.startswith("new is better than old by .020 test_x_f1 (95 % interval .009 to .031;")
    more = sentence(of(difference=0.02, low=0.009, high=0.031), Judgement("better", 0.0001, 0.001), [], SAY)
    assert "by .020 test_x_f1 (95 % interval .009 to .031; p < .001, Welch)" in more


def test_what_was_not_shown_says_what_would_be_and_keeps_its_sign() -> None:
    said = sentence(of(low=-0.05), Judgement("no difference shown", 0.2, 0.02), [], SAY._replace(family=3))
    assert said == (
        "new against old: no difference was shown, -.020 test_x_f1 (95 % interval -.050 to -.009; p = .200 after Holm "
        "over 3, Welch). One of .040 would be found with a power of 80 %; for the one seen, 7 runs a side. a note."
    )
    assert "80 %. a note." in sentence(of(needed=None), Judgement("no difference shown", 0.2, 0.02), [], SAY)
    never = sentence(of(needed=math.inf), Judgement("no difference shown", 0.2, 0.02), [], SAY)
    assert "for the one seen, more than 10,000 runs a side." in never
    posts = sentence(of(needed=math.inf, over="5 runs × 100 posts"), Judgement("no difference shown", 0.2, 0.02), [], SAY)
    assert "for the one seen, no number of runs would do: it takes more posts." in posts


def test_what_cannot_be_decided_names_the_floor_before_and_after_holm() -> None:
    alone = sentence(of(floor=0.25), Judgement("cannot be decided", 0.3, 0.25), [], SAY)
    assert "cannot be decided with 5 runs: the smallest p that can come out is .250, above α = .050. Seen: -.020" in alone
    among = sentence(of(floor=0.25), Judgement("cannot be decided", 0.3, 0.75), [], SAY._replace(family=3))
    assert "the smallest p that can come out is .250, .750 after Holm over 3, above α" in among
    drawn = sentence(of(floor=0.0002), Judgement("cannot be decided", 0.06, 0.056), [], SAY._replace(family=270))
    assert "the smallest p that can come out is < .001, .056 after Holm over 270, above α" in drawn


@pytest.mark.parametrize(("lower", "worse"), [(False, 1.0), (True, 0.0)])
def test_equivalence_knows_which_way_is_better(lower: bool, worse: float) -> None:
    say = SAY._replace(rope=0.001)
    comparison = of(lower=lower, error=0.001)
    said = sentence(comparison, Judgement("worse", 0.01, 0.001), [], say)
    assert f"Probability of worse {short(worse)}, equal within ±0.001 .000, better {short(1 - worse)}." in said
    row = compared_row(comparison, Judgement("worse", 0.01, 0.001), said, say)
    assert [round(float(row[key]), 3) for key in ("p_worse", "p_equal", "p_better")] == [worse, 0, 1 - worse]  # type: ignore[arg-type]
    assert shown_cells(row, say)["worse/equal/better"] == f"{worse:.3f}/0.000/{1 - worse:.3f}"


def test_each_cell_holds_its_own_numbers() -> None:
    beside = compared_row(of(), Judgement("worse", 0.03, 0.001), "words", SAY)
    row = {"metric": "m", "runs": 5.0, "mean": 0.6, "low": 0.55, "high": 0.65, **beside}
    assert beside["p"] == 0.01 and beside["p_holm"] == 0.03 and beside["standard_error"] == 0.005
    assert shown_cells(row, SAY) == {
        "mean": "0.600",
        "95 % interval": "0.550 to 0.650",
        "difference": "-0.020",
        "its 95 % interval": "-0.031 to -0.009",
        "p": "0.030",
        "smallest p": "0.001",
        "effect": "g -1.500",
        "detectable": "0.040",
        "runs needed": "7",
        "verdict": "worse",
    }
    base = shown_cells({"mean": 0.6, "low": math.nan, "high": math.nan, "letters": "a"}, SAY._replace(rope=0.1))
    assert [base[key] for key in ("95 % interval", "p", "smallest p", "effect", "worse/equal/better")] == [""] * 5
    assert (base["letters"], base["verdict"]) == ("a", "")
    tiny = shown_cells({**row, "p_holm": 0.0001, "smallest_p": 0.0, "runs_needed": math.inf}, SAY)
    assert (tiny["p"], tiny["smallest p"], tiny["runs needed"]) == ("<0.001", "none", "none")


def test_holm_decides_and_a_floor_that_it_lifts_over_alpha_leaves_undecided() -> None:
    told = judged([of(p=0.01, floor=0.001), of(p=0.04, floor=0.03), of(p=0.5, floor=0.001, difference=0.1)], 0.05)
    assert [one.told for one in told] == ["worse", "cannot be decided", "no difference shown"]
    assert [one.p for one in told] == pytest.approx([0.03, 0.08, 0.5])
    assert judged([of(p=0.01, lower=True)], 0.05)[0].told == "better"


def test_the_interval_of_a_mean_over_runs_and_posts_is_students_where_posts_add_nothing() -> None:
    """Every post says the same, so that runs alone vary: 2.776 standard errors at five runs."""
    values = np.array([0.60, 0.62, 0.58, 0.65, 0.61])
    measures = tuple(Measure(np.tile([value, 1.0], (50, 1)), _share) for value in values)
    scored = Scored(values, tuple(range(5)), bootstrap(measures, 500, 0), measures)
    reach = stats.t.ppf(0.975, 4) * stats.sem(values)
    assert mean_interval(scored, 0.05) == pytest.approx((values.mean() - reach, values.mean() + reach))
    row = row_of(scored, "test_x_f1", SAY)
    assert (row["runs"], row["mean"], row["low"]) == (5, pytest.approx(values.mean()), pytest.approx(values.mean() - reach))


def test_two_posts_have_an_interval_and_one_has_none() -> None:
    for posts, there in ((1, False), (2, True)):
        measures = (Measure(np.stack([np.arange(posts) / 2, np.ones(posts)], axis=1), _share),)
        scored = Scored(np.array([0.25]), (0,), bootstrap(measures, 200, 0), measures)
        assert math.isnan(mean_interval(scored, 0.05)[0]) is not there
