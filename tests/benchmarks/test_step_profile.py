"""The profile of a step shares out all of its time."""

import pytest

from benchmarks.ours import Source
from benchmarks.step_profile import KINDS, REST, shares


@pytest.mark.slow  # trains twice
def test_kinds_of_operators_and_the_rest_are_the_whole_step() -> None:
    found = shares(Source(name="sample", train=32, evaluation=8), ["encoder=tiny", "method=full"])
    assert [*found] == [*KINDS, REST]
    assert sum(found.values()) == pytest.approx(1)
    assert all(0 < share < 1 for share in found.values())
