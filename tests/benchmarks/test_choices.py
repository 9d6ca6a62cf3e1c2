"""Every choice that is measured is one that the command line knows."""

import pytest

from benchmarks.choices import CHOICES
from benchmarks.ours import Source, composed


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_composes(name: str) -> None:
    source = Source(name="sample", train=80, evaluation=10)
    assert composed(source, ("label",), CHOICES[name]).tasks.label.corpus.train == 80
