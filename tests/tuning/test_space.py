"""What may be searched is read as it is typed, and what is no range or list is named."""

from typing import Any

import pytest
from searches import tuning

from hatemtl.errors import UserError
from hatemtl.tuning.space import Choice, Range, grid, read_space


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("log(1e-5, 3e-3)", Range("log", 1e-5, 3e-3)),
        ("uniform(-1, 1)", Range("uniform", -1, 1)),
        ("int(4,16)", Range("int", 4, 16)),
        ("choice(tiny, minilm)", Choice(("tiny", "minilm"))),
        ([4, 0.5, None, True, "a"], Choice((4, 0.5, None, True, "a"))),
    ],
)
def test_forms(given: Any, read: Any) -> None:
    assert read_space({"a": {"b": given}}) == read_space({"a.b": given}) == {"a.b": read}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "nothing to search"),
        ("log(1, 2)", "tune.space=log(1, 2): expected keys, each with what it may be; type for instance tune.space."),
        ({"a": 4}, "expected log(low, high)"),
        ({"a": "lag(1, 2)"}, "expected log(low, high)"),
        ({"a": "log(0, 1)"}, "begins above 0; type uniform(0, 1)"),
        ({"a": "uniform(2, 1)"}, "low below high"),
        ({"a": "int(1, 2.5)"}, "low below high"),
        ({"a": "log(1)"}, "low below high"),
        ({"a": []}, "expected log(low, high)"),
        ({"a": [1, 1]}, "twice"),
        ({"a": [[1]]}, "expected log(low, high)"),
        ({"a.w.1": [0, 1], "a.w.2": [0, 1]}, "tune.space.a.w has the places 1, 2: expected each of a list, from 0 on"),
        ({"a.w.00": [0, 1], "a.w.0": [0, 1], "a.w": [1]}, "is there whole, and by its places"),
        ({"a.w": [1, 2], "a.w.0": [0, 1]}, "tune.space.a.w is there whole, and by its places"),
    ],
)
def test_what_is_no_space(given: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        read_space(given)
    assert said in str(error.value)


def test_a_grid_is_every_combination_once() -> None:
    points = [*grid(read_space({"a": [1, 2, 3], "b": "int(4, 6)"}))]
    assert len(points) == len({repr(point) for point in points}) == 9
    with pytest.raises(UserError, match="tune.space.a is a range without end"):
        grid(read_space({"a": "log(1, 2)"}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"trials": 0}, "tune.trials=0"),
        ({"minutes": 0.0}, "tune.minutes=0.0"),
        ({"seeds": [1, 1]}, "each once"),
        ({"again": -1}, "tune.again=-1"),
        ({"trials": None}, "has no end of its own; type tune.trials=20"),
        ({"sampler": "cma"}, "searches numbers, and tune.space.a is a list"),
        ({"sampler": "grid", "space": {"a": "log(1, 2)"}}, "takes lists"),
    ],
)
def test_what_is_no_search(given: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        print(tuning(**given).dimensions)
    assert said in str(error.value)
