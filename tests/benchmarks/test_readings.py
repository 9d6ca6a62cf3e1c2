from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn.metrics import f1_score

from benchmarks import chart
from benchmarks.flops import Shape, evaluation_flops, training_flops
from benchmarks.posts import draw, macro_f1
from benchmarks.readings import Line, Reading, Spread, fit, lasting, one_after_another, org, ratio, spread


def reading(posts: int = 10, seconds: float = 1.0) -> Reading:
    return Reading(posts, seconds, tokens=100, squares=1000, padded=160)


def test_a_ratio_is_taken_within_a_round() -> None:
    slow_second_round = ratio([10.0, 5.0, 10.0], [5.0, 2.5, 4.0])
    assert slow_second_round == Spread(2.0, 2.0, 2.5)
    assert spread([4.0, 1.0]) == Spread(2.5, 1.0, 4.0)
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


def test_models_one_after_another_take_their_seconds_together() -> None:
    whole = one_after_another([reading(10, 1.0), reading(10, 2.0), reading(6, 1.0)])
    assert (whole.posts, whole.seconds, whole.tokens, whole.padded) == (10, 4.0, 300, 480)
    assert whole.posts_per_second == 2.5
    assert one_after_another([replace(reading(), memory=most) for most in (3, 5, 4)]).memory == 5


def test_passes_are_repeated_until_they_have_lasted() -> None:
    draw = iter([reading(10, 1.0), reading(10, 2.0), reading(10, 3.0)])
    whole = lasting(lambda: next(draw), 2.5)
    assert (whole.posts, whole.seconds, whole.tokens, whole.padded) == (20, 3.0, 200, 320)
    assert lasting(lambda: reading(10, 1.0), 0) == reading(10, 1.0)


def test_fit_is_least_squares() -> None:
    x, y = np.array([1.0, 2, 4, 8]), np.array([2.0, 5, 6, 20])
    line = fit(x.tolist(), y.tolist())
    slope, intercept = np.polyfit(x, y, 1)
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept))
    assert line.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert fit([1, 2, 3], [7, 7, 7]) == Line(0.0, 7.0, 1.0)


def test_flops_by_hand() -> None:
    # one layer, 4 wide, feed-forward 8, a LoRA of rank 16; one post of 3 tokens
    shape = Shape(layers=1, hidden=4, feed_forward=8)
    linear = 2 * (4 * 16 + 2 * 32)  # 256 a token
    lora = 2 * 16 * (3 * (4 + 4) + (4 + 8) + (8 + 4))  # 1,536 a token
    attention = 2 * 3 * 3 * 4 + 2 * 3 * 3 * 4  # scores and weighted sum of 3 by 3 pairs
    assert evaluation_flops(shape, 3, 9) == 3 * linear + attention == 912
    unneeded = 2 * 3 * 4 * (4 + 16)  # the input gradient of q, k and v through W and through A
    assert training_flops(shape, 3, 9) == 3 * (2 * linear + 3 * lora - unneeded) + 3 * attention == 14352


def test_flops_of_minilm() -> None:
    shape = Shape(layers=6, hidden=384, feed_forward=1536)
    assert shape.linear == 24 * 384**2
    assert training_flops(shape, 30, 900) / 30 == pytest.approx(45.9e6, rel=0.01)


def test_draw_is_a_function_of_the_seed() -> None:
    rows = np.arange(100, 200)
    drawn = draw(rows, 10, seed=3)
    assert len(set(drawn)) == 10
    assert set(drawn) <= set(rows)
    assert (drawn == draw(rows, 10, seed=3)).all()
    assert (drawn != draw(rows, 10, seed=4)).any()
    assert (draw(rows, 1000, seed=3) == rows).all()


def test_macro_f1_is_sklearns() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(3, size=200), rng.integers(3, size=200)
    assert macro_f1(predicted, truth, 3) == pytest.approx(f1_score(truth, predicted, average="macro"))


def test_org_tables_line_up() -> None:
    table = org(["arm", "x"], [["a", "1.00"], ["long name", ""]])
    assert table.splitlines() == [
        "| arm       |    x |",
        "|-----------+------|",
        "| a         | 1.00 |",
        "| long name |      |",
    ]


def test_charts_are_well_formed() -> None:
    bars = chart.bars({"training": {"a & b": Spread(2.0, 1.5, 2.5), "c": Spread(0.2, 0.1, 0.3)}}, axis="times")
    lines = chart.lines({"s by posts": ([1.0, 2.0], [3.0, 5.0], Line(2.0, 1.0, 1.0))})
    for svg in (bars, lines):
        assert ElementTree.fromstring(svg).tag.endswith("svg")
