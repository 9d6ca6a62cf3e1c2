"""Every objective that is measured is one that the command line knows."""

import pytest

from benchmarks.objectives import ARMS
from benchmarks.ours import Source, composed
from benchmarks.readings import THREE
from hatemtl.command.configuration import requested


@pytest.mark.slow
@pytest.mark.parametrize("name", ARMS)
def test_an_arm_is_made(name: str) -> None:
    assert ARMS[name].base in ARMS
    assert requested(composed(Source(name="sample", train=80, evaluation=10), THREE, ARMS[name].overrides))
